// The page "Try it": fills the form, scores in the browser, shows the answers of student and teacher.
import { openStudent } from "./kge.mjs";

const here = (path) => new URL(path, import.meta.url).href;
const find = (id) => document.getElementById(id);
const say = (text) => { find("try-status").textContent = text; };
const SUGGESTIONS = 60; // more options than this make a browser slow; of labels that are fetched in parts, a few
const OFTEN = 100; // milliseconds between two looks at answers that are still being read

let graph = null; // the models of the chosen graph, by role
let running = new AbortController(); // of the question that is being answered

const rest = () => new Promise((go) => { setTimeout(go, OFTEN); });
const size = (bytes) => bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
const relation_name = (label) => label.replace(/^_+|_+$/g, "").replaceAll("_", " ");

const title = (role) => role === "student" ? "Student" : "Teacher";

const ROUNDS = 6;
const MOMENT = 4; // milliseconds

/** Milliseconds that one query takes, by role, of models that were fetched whole. They take turns, a first round warms
    up, the best round counts. */
async function clock(models, head, relation) {
  const took = {}, whole = Object.entries(models).filter(([, model]) => model.weights.whole);
  const rows = Object.fromEntries(await Promise.all(whole.map(async ([role, model]) => [role, await model.row(head)])));
  for (let round = 0; round < ROUNDS; round++) {
    for (const [role, model] of whole) {
      const start = performance.now();
      let runs = 0;
      do {
        model.best(head, rows[role], relation);
        runs++;
      } while (performance.now() - start < MOMENT);
      const mean = (performance.now() - start) / runs;
      if (round) took[role] = Math.min(took[role] ?? Infinity, mean);
    }
  }
  return took;
}

async function choose(entry) {
  running.abort();
  say(`Loading ${entry.title} …`);
  const models = {};
  for (const role of ["student", "teacher"]) {
    if (entry[role]) models[role] = await openStudent(here(`${entry.folder}/${role}`));
  }
  const { student } = models;
  for (const [role, model] of Object.entries(models)) {
    if (model.graph_sha256 !== student.graph_sha256) throw new Error(`${role} was trained on another graph than ${entry.title}`);
  }
  graph = { entry, models, student };
  find("try-relation").replaceChildren(...student.relations.map((label, id) => new Option(relation_name(label), id)));
  find("try-head").value = await student.title(entry.example.head);
  find("try-relation").value = String(entry.example.relation);
  await ask();
}

async function suggest() {
  const { student } = graph, typed = find("try-head").value.trim();
  await rest(); // until the typing does
  if (find("try-head").value.trim() !== typed) return;
  const ids = await student.suggest(typed, student.labels.file.small ? SUGGESTIONS : 8);
  const options = await Promise.all(ids.map((id) => student.title(id)));
  if (find("try-head").value.trim() === typed) find("try-heads").replaceChildren(...options.map((x) => new Option(x, x)));
}

async function ask() {
  running.abort();
  const { signal } = running = new AbortController();
  const { student, models, entry } = graph, typed = find("try-head").value.trim();
  const heads = await student.find(typed);
  if (signal.aborted) return;
  find("try-head").setAttribute("aria-invalid", String(heads.length !== 1));
  if (heads.length > 1) {
    const titles = await Promise.all(heads.map((id) => student.title(id)));
    say(`Several entities are called “${typed}”: ${titles.join("; ")}. Pick one.`);
    return;
  }
  if (!heads.length) {
    say(`No entity of ${entry.title} is called “${typed}”: pick one from the list.`);
    return;
  }
  const [head] = heads, relation = Number(find("try-relation").value);
  const [known, took] = [await student.known(head, relation), await clock(models, head, relation)];
  const asked = `${await student.name(head)} — ${relation_name(student.relations[relation])} → ?`;
  if (signal.aborted) return;
  find("try-answers").replaceChildren();
  find("try-stop").hidden = false;
  const said = [];
  for (const [role, model] of Object.entries(models)) {
    let box = document.createElement("div"), last = null, drawing = null;
    find("try-answers").append(box);
    const draw = async (found) => { // names are fetched while numbers come
      const done = found.read === found.of;
      const rows = await Promise.all(found.ids.map(async (id, i) => (
        { id, name: await student.title(id), score: found.scores[i], split: known.get(id) ?? "" })));
      if (signal.aborted) return;
      const next = table(role, model, rows, took[role], done ? "" : `, ${size(found.read)} of ${size(found.of)} read`);
      box.replaceWith(next);
      box = next;
      if (done) said.push(`${role}: ${rows[0]?.name ?? "none"}`);
      else say(`${asked} ${title(role)}: ${size(found.read)} of ${size(found.of)} read; best so far ${rows[0]?.name}.`);
    };
    const follow = async () => { // until nothing has come since it looked
      for (let seen = null; seen !== last && last.read < last.of && !signal.aborted;) {
        await draw(seen = last);
        await rest();
      }
      drawing = null;
    };
    try {
      for await (last of model.ask(head, relation, { signal })) {
        drawing ??= follow();
        drawing?.catch(() => {}); // it is awaited below
      }
      await drawing;
      await draw(last);
    } catch (error) {
      if (!signal.aborted) throw error;
    }
    if (signal.aborted) return;
  }
  find("try-stop").hidden = true;
  say(`${asked} Best answer of the ${said.join("; of the ")}.`);
  document.body.dataset.tryReady = `${entry.folder} ${head} ${relation}`; // what tests wait for
}

function stop() {
  running.abort();
  find("try-stop").hidden = true;
  say(`Stopped. ${find("try-status").textContent}`);
}

function table(role, model, rows, took, progress) {
  const box = document.createElement("div");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", `Answers of the ${role}`);
  const result = document.createElement("table");
  result.dataset.role = role;
  const caption = result.createCaption();
  const heading = document.createElement("strong");
  heading.textContent = `${title(role)}, ${model.model}, ${model.dim} dimensions`;
  const time = took === undefined ? "" : `, ${took.toFixed(3)} ms a query`;
  caption.append(heading, `${size(model.bytes)} in all, ${model.entityBytes} bytes an entity${time}${progress}`);
  const head = result.createTHead().insertRow();
  for (const text of ["", "tail", "score", "in the data"]) {
    const cell = document.createElement(text ? "th" : "td");
    if (text) cell.scope = "col";
    cell.textContent = text;
    head.append(cell);
  }
  const body = result.createTBody();
  rows.forEach((row, i) => {
    const line = body.insertRow();
    line.dataset.id = row.id;
    line.dataset.score = row.score;
    [i + 1, row.name, row.score.toFixed(3), row.split].forEach((text) => { line.insertCell().textContent = text; });
  });
  box.append(result);
  return box;
}

function fail(error) {
  find("try-stop").hidden = true;
  say(`This did not work: ${error.message}`);
  console.error(error);
}

try {
  const { graphs } = await (await fetch(here("graphs.json"))).json();
  const select = find("try-graph");
  const answer = () => ask().catch(fail);
  select.replaceChildren(...graphs.map((entry, i) => new Option(entry.title, i)));
  select.addEventListener("change", () => choose(graphs[Number(select.value)]).catch(fail));
  find("try-head").addEventListener("input", () => suggest().catch(fail));
  find("try-head").addEventListener("change", answer);
  find("try-relation").addEventListener("change", answer);
  find("try-stop").addEventListener("click", stop);
  find("try-form").addEventListener("submit", (event) => { event.preventDefault(); answer(); });
  find("try-form").hidden = false;
  await choose(graphs[0]);
} catch (error) {
  fail(error);
}
