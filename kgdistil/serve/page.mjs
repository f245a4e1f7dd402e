// The page "Try it": completes labels, asks the server it came from, shows the answers.
const find = (id) => document.getElementById(id);
const PLACES = { head: "entity", relation: "relation", tail: "entity" };
const PAUSE = 120; // milliseconds without a key before labels are looked up

async function get(path, asked = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(asked)}`);
  const told = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
  if (!answer.ok) throw new Error(told.error);
  return told;
}

const latest = {}; // the newest look-up of each place: an older answer that comes late is dropped

async function complete(place) {
  const prefix = find(place).value;
  const mine = (latest[place] = Symbol(place));
  const rows = await get("labels", { prefix, kind: PLACES[place], k: student.most });
  if (latest[place] !== mine) return;
  find(`${place}s`).replaceChildren(...rows.map(({ label, name }) =>
    new Option(name && name !== label ? name : "", label)));
}

async function ask() {
  const asked = { k: find("k").value };
  for (const place of Object.keys(PLACES)) if (find(place).value) asked[place] = find(place).value;
  if (find("new").checked) asked.new = true;
  const start = performance.now();
  find("answers").replaceChildren();
  delete document.body.dataset.ready;
  const given = Object.keys(PLACES).filter((place) => asked[place]);
  if (given.length !== 2) {
    find("status").textContent = "Give two of head, relation and tail, and leave the third empty.";
    return;
  }
  const rows = await get("predict", asked);
  const took = performance.now() - start;
  const open = Object.keys(PLACES).find((place) => !asked[place]);
  const line = Object.keys(PLACES).map((place) => asked[place] ?? "?").join(" — ");
  const best = rows[0] && (rows[0].relation ?? rows[0].name);
  find("status").textContent = best ? `${line}. Best answer: ${best}.` : `${line}. No answer is left.`;
  if (rows.length) find("answers").append(table(open, rows, took));
  document.body.dataset.ready = line; // what tests wait for
}

function table(open, rows, took) {
  const shown = document.createElement("table");
  const names = rows.some((row) => row.name && row.name !== row.entity);
  const columns = ["rank", ...(names ? ["name"] : []), open === "relation" ? "relation" : "entity", "score"];
  shown.createCaption().textContent = `${took.toFixed(1)} ms with the way there and back`;
  const head = shown.createTHead().insertRow();
  const body = shown.createTBody();
  const add = (row, kind, text, name) => {
    const cell = row.appendChild(document.createElement(kind));
    cell.textContent = text;
    if (kind === "th") cell.scope = "col";
    if (name === "score") cell.className = "number";
  };
  for (const name of columns) add(head, "th", name === "entity" ? open : name, name);
  for (const row of rows) {
    const line = body.insertRow();
    for (const name of columns) add(line, "td", name === "score" ? row.score?.toFixed(3) ?? "" : row[name], name);
  }
  return shown;
}

function fail(error) {
  find("status").textContent = error.message;
}

const student = { most: 20 };
const askAgain = () => ask().catch(fail);
try {
  const about = await get("student");
  student.most = Math.min(20, about.limits.k);
  find("k").max = about.limits.k;
  find("new").disabled = !about.triples;
  find("about").textContent = `${about.model} of ${about.graph}: ${about.entities.toLocaleString("en")} entities, ` +
    `${about.relations.toLocaleString("en")} relations, ${about.bytes.toLocaleString("en")} bytes. ` +
    "Give two of head, relation and tail; the third is what is asked for.";
  for (const place of Object.keys(PLACES)) {
    let timer;
    find(place).addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => complete(place).catch(fail), PAUSE);
    });
    find(place).addEventListener("focus", () => complete(place).catch(fail));
  }
  find("form").addEventListener("submit", (event) => { event.preventDefault(); askAgain(); });
  if (about.example) {
    find("head").value = about.example.head;
    find("relation").value = about.example.relation;
    await ask();
  }
} catch (error) {
  fail(error);
}
