// The page "Try it": fills the form, scores in the browser, shows the answers of student and teacher.
import { best, openModel, scoreTails } from "./kge.mjs";

const here = (path) => new URL(path, import.meta.url);
const find = (id) => document.getElementById(id);
const read = async (path) => {
  const answer = await fetch(here(path));
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
};
const readJson = async (path) => JSON.parse(new TextDecoder().decode(await read(path)));
const SUGGESTIONS = 60; // more options than this make a browser slow

let graph = null; // names, known triples and models of the chosen graph
let byName = new Map();

const size = (bytes) => bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;

const ROUNDS = 6;
const MOMENT = 4; // milliseconds

/** Milliseconds that one query takes, by role. The models take turns, a first round warms up, the best round counts. */
function clock(models, head, relation) {
  const took = {};
  for (let round = 0; round < ROUNDS; round++) {
    for (const [role, model] of Object.entries(models)) {
      const scores = new Float32Array(model.count);
      const start = performance.now();
      let runs = 0;
      do {
        best(scoreTails(model, head, relation, scores), 10);
        runs++;
      } while (performance.now() - start < MOMENT);
      const mean = (performance.now() - start) / runs;
      if (round) took[role] = Math.min(took[role] ?? Infinity, mean);
    }
  }
  return took;
}

async function choose(entry) {
  find("try-status").textContent = `Loading ${entry.title} …`;
  const names = await readJson(`${entry.folder}/names.json`);
  const triples = new Int32Array(await read(`${entry.folder}/triples.i32`));
  const models = {};
  for (const role of ["student", "teacher"]) {
    if (entry[role]) models[role] = await openModel(`${entry.folder}/${role}`, read);
  }
  for (const [role, model] of Object.entries(models)) {
    if (model.graph !== names.graph) throw new Error(`${role} was trained on another graph than ${entry.title}`);
  }
  const known = new Map(); // "h r" -> Map(t -> split)
  let at = 0;
  for (const [split, count] of Object.entries(names.splits)) {
    for (let i = 0; i < count; i++, at += 3) {
      const key = `${triples[at]} ${triples[at + 1]}`;
      if (!known.has(key)) known.set(key, new Map());
      if (!known.get(key).has(triples[at + 2])) known.get(key).set(triples[at + 2], split);
    }
  }
  graph = { entry, names, models, known };
  byName = new Map(names.entities.map((name, id) => [name.toLowerCase(), id]));
  names.labels.forEach((label, id) => byName.set(label.toLowerCase(), id));
  find("try-relation").replaceChildren(...names.relations.map((name, id) => new Option(name, id)));
  const first = entry.example;
  find("try-head").value = names.entities[first.head];
  find("try-relation").value = String(first.relation);
  suggest();
  ask();
}

function suggest() {
  const typed = find("try-head").value.trim().toLowerCase();
  const whole = byName.has(typed);
  const options = [];
  for (const name of graph.names.entities) {
    if (whole || name.toLowerCase().includes(typed)) options.push(new Option(name, name));
    if (options.length === SUGGESTIONS) break;
  }
  find("try-heads").replaceChildren(...options);
}

function ask() {
  const typed = find("try-head").value.trim();
  const head = byName.get(typed.toLowerCase());
  const input = find("try-head");
  input.setAttribute("aria-invalid", String(head === undefined));
  if (head === undefined) {
    find("try-status").textContent = `No entity of ${graph.entry.title} is called “${typed}”: pick one from the list.`;
    return;
  }
  const relation = Number(find("try-relation").value);
  const known = graph.known.get(`${head} ${relation}`) ?? new Map();
  const answers = find("try-answers");
  answers.replaceChildren();
  const said = [];
  const took = clock(graph.models, head, relation);
  for (const [role, model] of Object.entries(graph.models)) {
    const scores = scoreTails(model, head, relation);
    const ids = best(scores, 10);
    const rows = ids.map((id) => ({ id, name: graph.names.entities[id], score: scores[id], split: known.get(id) ?? "" }));
    answers.append(table(role, model, rows, took[role]));
    said.push(`${role}: ${rows[0].name}`);
  }
  find("try-status").textContent =
    `${graph.names.entities[head]} — ${graph.names.relations[relation]} → ? Best answer of the ${said.join("; of the ")}.`;
  document.body.dataset.tryReady = `${graph.entry.folder} ${head} ${relation}`; // what tests wait for
}

function table(role, model, rows, took) {
  const box = document.createElement("div");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", `Answers of the ${role}`);
  const result = document.createElement("table");
  result.dataset.role = role;
  const caption = result.createCaption();
  const title = document.createElement("strong");
  title.textContent = `${role === "student" ? "Student" : "Teacher"}, ${model.model}, ${model.dim} dimensions`;
  caption.append(title, `${size(model.bytes)} in all, ${model.entityBytes} bytes an entity, ${took.toFixed(3)} ms a query`);
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
  find("try-status").textContent = `This did not work: ${error.message}`;
  console.error(error);
}

try {
  const { graphs } = await readJson("graphs.json");
  const select = find("try-graph");
  select.replaceChildren(...graphs.map((entry, i) => new Option(entry.title, i)));
  select.addEventListener("change", () => choose(graphs[Number(select.value)]).catch(fail));
  find("try-head").addEventListener("input", suggest);
  find("try-head").addEventListener("change", ask);
  find("try-relation").addEventListener("change", ask);
  find("try-form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  find("try-form").hidden = false;
  await choose(graphs[0]);
} catch (error) {
  fail(error);
}
