// A student's folder (format 2 or 3, kgdistil/answer/format.py) asked where it lies: its files are fetched in parts, as
// they are needed, and the equations of kgdistil/answer/equations.py answer. No page: `page.mjs` shows what is found.
import { xxh3 } from "./xxh3.mjs";

const VERSIONS = [2, 3]; // the second has whole entities
const BLOCK = 1 << 18; // bytes that have a sum
const WHOLE = 3e6; // bytes up to which a file is fetched at once
const PAGE = 512; // bytes of labels that are fetched at a time
const SLICE = 1 << 22; // bytes that are scanned before others have their turn
const f = Math.fround; // numbers are added up as float32, in the order of scan.cpp

// ---- files ----------------------------------------------------------------------------------------------------------
/** A file of known size on a server, read in spans of bytes [start, end), whose blocks are held to their sums. A server
    may answer with all of it. `small`: it is fetched at once. */
class RemoteFile {
  constructor(url, { bytes, sums }, small) {
    Object.assign(this, { url, size: bytes, sums, small, whole: null, loading: null, tag: undefined, pages: new Map() });
    this.last = { start: 0, bytes: new Uint8Array() }; // what was read last, which often is asked again
  }

  async request(start, end, signal) {
    const part = start > 0 || end < this.size;
    const answer = await fetch(this.url, { signal, headers: part ? { Range: `bytes=${start}-${end - 1}` } : {} });
    if (!answer.ok && answer.status !== 416) throw new Error(`${this.url}: ${answer.status} ${answer.statusText}`);
    const tag = (answer.headers.get("ETag") ?? answer.headers.get("Last-Modified"))?.replace(/^W\/|-gzip(?="$)/g, "");
    if (this.tag === undefined) this.tag = tag;
    const span = answer.status === 206 && answer.headers.get("Content-Range") !== `bytes ${start}-${end - 1}/${this.size}`;
    if (answer.status === 416 || span || tag !== this.tag) throw this.changed();
    return answer;
  }

  changed() {
    return new Error(`${this.url} is not the file that student.json describes, or was replaced meanwhile: load the page again`);
  }

  /** Hold bytes that begin at a block to their sums. */
  check(bytes, start) {
    for (let at = 0; at < bytes.length; at += BLOCK) {
      if (xxh3(bytes.subarray(at, at + BLOCK)) === this.sums[(start + at) / BLOCK]) continue;
      throw new Error(`${this.url} is damaged, or is not the file that student.json describes (bytes ${start + at} and on): load the page again`);
    }
  }

  /** The span of whole blocks that holds a span. */
  around(start, end) {
    return [start - (start % BLOCK), Math.min(Math.ceil(end / BLOCK) * BLOCK, this.size)];
  }

  async read(start, end, signal) {
    if (this.small && !this.whole) await (this.loading ??= this.load(0, this.size).finally(() => { this.loading = null; }));
    if (this.whole) return this.whole.subarray(start, end);
    let { last } = this;
    if (start < last.start || end > last.start + last.bytes.length) {
      const [from, to] = this.around(start, end);
      last = { start: from, bytes: await this.load(from, to, signal) };
      this.check(last.bytes, from);
      this.last = last;
    }
    return last.bytes.subarray(start - last.start, end - last.start);
  }

  async load(start, end, signal) {
    const answer = await this.request(start, end, signal);
    const bytes = new Uint8Array(await answer.arrayBuffer()), part = answer.status === 206;
    if (bytes.length !== (part ? end - start : this.size)) throw this.changed();
    if (part) return bytes;
    this.check(bytes, 0);
    this.whole = bytes;
    return bytes.subarray(start, end);
  }

  /** Few bytes, by pages that are kept: without their sums, for which many more would have to be fetched. */
  async peek(start, end) {
    if (this.whole || this.small) return this.read(start, end);
    const out = new Uint8Array(end - start);
    for (let at = start - (start % PAGE); at < end; at += PAGE) {
      if (!this.pages.has(at)) {
        this.pages.set(at, this.load(at, Math.min(at + PAGE, this.size)));
        this.pages.get(at).catch(() => this.pages.delete(at));
      }
      const page = await this.pages.get(at);
      out.set(page.subarray(Math.max(start - at, 0), end - at), Math.max(at - start, 0));
    }
    return out;
  }

  /** The same bytes as `read`, block by block as they come. */
  async *stream(start, end, signal) {
    if (this.whole) return yield this.whole.subarray(start, end);
    const [from, to] = this.around(start, end), answer = await this.request(from, to, signal);
    const reader = answer.body.getReader(), block = new Uint8Array(BLOCK);
    let at = answer.status === 206 ? from : 0, filled = 0;
    try {
      while (at < end) {
        const { done, value } = await reader.read();
        if (done) throw this.changed();
        for (let i = 0; i < value.length && at < end;) {
          const size = Math.min(BLOCK, this.size - at), take = Math.min(value.length - i, size - filled);
          block.set(value.subarray(i, i + take), filled);
          [i, filled] = [i + take, filled + take];
          if (filled < size) continue;
          this.check(block.subarray(0, size), at);
          if (at + size > start) yield block.slice(Math.max(start - at, 0), Math.min(end - at, size));
          [at, filled] = [at + size, 0];
        }
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }
}

const int32 = (bytes, at = 0) => new DataView(bytes.buffer, bytes.byteOffset).getInt32(at, true);
const int64 = (bytes, at = 0) => (int32(bytes, at) >>> 0) + 2 ** 32 * int32(bytes, at + 4);
const BYTES = { "<f4": 4, "<f2": 2, "|i1": 1, "|u1": 1, "<i4": 4 };
let halves = null; // what the 65,536 numbers of float16 are

/** Numbers of a type as float32; ids as they are. */
function floats(type, bytes) {
  if (type === "|i1") return Float32Array.from(new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length));
  if (type === "<f4") return new Float32Array(bytes.slice().buffer);
  if (type === "<i4") return new Int32Array(bytes.slice().buffer);
  halves ??= Float32Array.from({ length: 1 << 16 }, (_, bits) => {
    const exponent = (bits >> 10) & 31, rest = bits & 1023;
    const size = exponent === 31 ? (rest ? NaN : Infinity)
      : exponent ? (1 + rest / 1024) * 2 ** (exponent - 15) : rest * 2 ** -24;
    return bits >> 15 ? -size : size;
  });
  return Float32Array.from(new Uint16Array(bytes.slice().buffer), (bits) => halves[bits]);
}

// ---- labels ---------------------------------------------------------------------------------------------------------
function compare(a, b) {
  for (let i = 0; i < a.length && i < b.length; i++) if (a[i] !== b[i]) return a[i] - b[i];
  return a.length - b.length;
}

/** Labels, or names, that are searched where they lie: answer/labels.py. */
class Labels {
  constructor(file, places, prefix) {
    const at = (name) => places[prefix + name]?.[2];
    Object.assign(this, { file, text: at("text"), offsets: at("offsets"), order: at("order") });
    this.length = places[`${prefix}offsets`][1][0] - 1;
  }

  async bytes(i) {
    const span = await this.file.peek(this.offsets + 8 * i, this.offsets + 8 * i + 16);
    const start = int64(span), end = int64(span, 8);
    return start === end ? new Uint8Array() : this.file.peek(this.text + start, this.text + end);
  }

  async get(i) {
    return new TextDecoder().decode(await this.bytes(i));
  }

  /** The number of the label at a place of the order. */
  async at(place) {
    return this.order === undefined ? place : int32(await this.file.peek(this.order + 4 * place, this.order + 4 * place + 4));
  }

  /** The numbers of the labels that are a text, or begin with it: at most `limit`, in the order of the labels. */
  async search(text, limit, begin = false) {
    const key = new TextEncoder().encode(text), found = [];
    let low = 0, high = this.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (compare(await this.bytes(await this.at(middle)), key) < 0) low = middle + 1; else high = middle;
    }
    for (; low < this.length && found.length < limit; low++) {
      const i = await this.at(low), bytes = await this.bytes(i);
      if (compare(begin ? bytes.subarray(0, key.length) : bytes, key)) break;
      found.push(i);
    }
    return found;
  }
}

// ---- equations ------------------------------------------------------------------------------------------------------
/** (a + ib)(c + id) for complex numbers stored as [real | imaginary]. */
function product(a, b) {
  const d = a.length / 2, q = new Float32Array(2 * d);
  for (let i = 0; i < d; i++) {
    q[i] = f(a[i] * b[i]) - f(a[d + i] * b[d + i]);
    q[d + i] = f(a[i] * b[d + i]) + f(a[d + i] * b[i]);
  }
  return q;
}

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

function hyperplane(h, r, unit) {
  const d = h.length, normal = r.slice(d);
  const length = unit ? Math.max(Math.sqrt(dot(normal, normal)), 1e-12) : 1;
  const w = normal.map((x) => x / length), along = dot(h, w);
  return Float32Array.of(...h.map((x, i) => x - along * w[i] + r[i]), ...w);
}

/** e = x A: the head through A, the query back through its transpose. */
function lowRank(h, r, { map }) {
  const wide = Float32Array.from(r, (_, j) => h.reduce((sum, x, i) => sum + x * map[i * r.length + j], 0));
  const q = product(wide, r);
  return h.map((_, i) => dot(q, map.subarray(i * r.length)));
}

/** By model: how a query compares with an entity, and the query (h, r, ?), Float32Array. */
const MODELS = {
  TransE: ["distance", (h, r) => h.map((x, i) => x + r[i])],
  TransH: ["hyperplane", (h, r) => hyperplane(h, r, true)],
  FreeTransH: ["hyperplane", (h, r) => hyperplane(h, r, false)],
  ComplEx: ["dot", product],
  ReciprocalComplEx: ["dot", (h, r) => product(h, r.subarray(0, r.length / 2))], // the second half is of (?, r, t)
  LowRankComplEx: ["dot", lowRank],
  LowRankReciprocal: ["dot", (h, r, student) => lowRank(h, r.subarray(0, r.length / 2), student)],
  RotatE: ["modulus", (h, r, { offset, epsilon, dim }) => {
    const angles = r.map((x) => x * f(Math.PI / ((offset + epsilon) / dim)));
    return product(h, Float32Array.of(...angles.map(Math.cos), ...angles.map(Math.sin)));
  }],
  DistMult: ["dot", (h, r) => h.map((x, i) => x * r[i])],
  SimplE: ["dot", (h, r) => {
    const d = h.length / 2;
    return h.map((_, i) => (i < d ? h[d + i] * r[d + i] : h[i - d] * r[i - d]) / 2);
  }],
};

/** Scores of the entities of a tile x [width][lanes]; larger is better. */
const COMPARISONS = {
  dot(q, x, lanes, norm, out) {
    for (let i = 0, at = 0; at < x.length; i++) for (let e = 0; e < lanes; e++, at++) out[e] += f(q[i] * x[at]);
  },

  distance(q, x, lanes, norm, out) {
    for (let i = 0, at = 0; at < x.length; i++) {
      for (let e = 0; e < lanes; e++, at++) {
        const u = f(q[i] - x[at]);
        out[e] -= norm === 1 ? Math.abs(u) : f(u * u);
      }
    }
    if (norm === 2) for (let e = 0; e < lanes; e++) out[e] = -Math.sqrt(-out[e]);
  },

  modulus(q, x, lanes, norm, out) {
    for (let i = 0, at = 0, half = x.length / 2; at < half; i++) {
      for (let e = 0; e < lanes; e++, at++) {
        const a = f(q[i] - x[at]), b = f(q[i + q.length / 2] - x[at + half]);
        out[e] -= f(Math.sqrt(f(f(a * a) + f(b * b))));
      }
    }
  },

  hyperplane(q, x, lanes, norm, out) {
    const d = q.length / 2, w = q.subarray(d), along = new Float32Array(lanes);
    COMPARISONS.dot(w, x, lanes, norm, along);
    const plain = Float32Array.from(x, (value, at) => value - f(along[at % lanes] * w[Math.floor(at / lanes)]));
    COMPARISONS.distance(q.subarray(0, d), plain, lanes, norm, out);
  },
};

// ---- a student ------------------------------------------------------------------------------------------------------
/** Open a student's folder by its address. `whole`: bytes up to which a file is fetched at once. */
export async function openStudent(folder, whole = WHOLE) {
  const answer = await fetch(`${folder}/student.json`);
  if (!answer.ok) throw new Error(`${folder}/student.json: ${answer.status} ${answer.statusText}`);
  const header = await answer.json();
  if (!VERSIONS.includes(header.version) || !(header.model in MODELS)) {
    throw new Error(`${folder}/student.json: format ${header.version}, model ${header.model} cannot be read here`);
  }
  const files = Object.fromEntries(Object.entries(header.files).map(
    ([name, about]) => [name, new RemoteFile(`${folder}/${name}`, about, about.bytes <= whole)]));
  const student = new Student(header, files);
  await student.open();
  return student;
}

class Student {
  constructor(header, files) {
    const [weights, labels, triples] = ["weights.bin", "labels.bin", "triples.bin"].map((name) => files[name]);
    Object.assign(this, { header, weights, triples, ...header });
    const words = header.files["labels.bin"].arrays;
    this.labels = new Labels(labels, words, "");
    this.names = "names.text" in words ? new Labels(labels, words, "names.") : null;
    this.places = header.files["weights.bin"].arrays;
    const [type, [blocks, rows, lanes], start] = this.places.entities;
    Object.assign(this, { type, blocks, rows, lanes, start, blockBytes: rows * lanes * BYTES[type] });
    this.total = blocks * this.blockBytes; // bytes of all entities
    this.filled = 0; // bytes of them that are here, in `kept`
    this.bytes = Object.entries(this.places).reduce(
      (sum, [name, [kind, shape]]) => sum + BYTES[kind] * (name === "entities" ? rows * this.num_entities : shape.reduce((a, b) => a * b)), 0);
  }

  async open() {
    const numbers = async (name) => {
      if (!(name in this.places)) return null;
      const [type, shape, start] = this.places[name];
      return floats(type, await this.weights.read(start, start + BYTES[type] * shape.reduce((a, b) => a * b, 1)));
    };
    this.relationRows = await numbers("relations");
    [this.map, this.scale, this.book] = [await numbers("map"), await numbers("entities.scale"), await numbers("entities.book")];
    [this.width, this.size] = [this.rows, 0];
    const [ids, rows, scales] = [await numbers("whole"), await numbers("whole.rows"), await numbers("whole.scale")];
    this.few = new Map([...(ids ?? [])].map((id, i) => [id, [i * (rows.length / ids.length), scales[i]]])); // whole entities
    this.wholeRows = rows;
    if (this.book) {
      const [size, , groups, depth = 1] = [...this.places["entities.book"][1]].reverse(); // several codes of a group are added
      const paired = ["ComplEx", "ReciprocalComplEx", "RotatE"].includes(this.model); // real and imaginary parts lie beside each other
      this.size = size;
      this.width = groups * size;
      this.depth = depth;
      const place = (i) => (paired ? (i % 2) * (this.width / 2) + (i >> 1) : i);
      this.column = Uint32Array.from({ length: depth * this.width }, (_, i) => place(i % this.width));
    }
    if (this.weights.whole) this.keep(this.weights.whole.subarray(this.start, this.start + this.total));
  }

  keep(bytes) {
    [this.kept, this.filled] = [bytes, bytes.length];
  }

  /** Bytes an entity takes. */
  get entityBytes() {
    return this.rows * BYTES[this.type] + (this.scale ? 4 : 0);
  }

  /** A name to read; the label where there is none. */
  async name(i) {
    return (this.names && await this.names.get(i)) || (await this.labels.get(i)).replaceAll("_", " ");
  }

  /** The name, and the label where it says more. */
  async title(i) {
    const [name, label] = [await this.name(i), await this.labels.get(i)];
    return name === label.replaceAll("_", " ") ? name : `${name} (${label})`;
  }

  /** The numbers of the entities that a label, a name or a title calls; none, or several. */
  async find(text) {
    const label = / \((.*)\)$/s.exec(text)?.[1];
    const small = text.toLowerCase();
    for (const asked of [label ?? text, text, text.replaceAll(" ", "_"), small, small.replaceAll(" ", "_")]) {
      for (const words of [this.labels, this.names]) {
        const found = words && asked ? await words.search(asked, 6) : [];
        if (found.length) return found;
      }
    }
    return [];
  }

  /** The numbers of some entities whose title holds a text; where labels are fetched in parts, whose name or label
      begins with it. */
  async suggest(text, limit) {
    if (this.labels.file.small) {
      this.titles ??= await Promise.all(Array.from({ length: this.num_entities }, async (_, i) => (await this.title(i)).toLowerCase()));
      const found = [], typed = text.toLowerCase(), all = this.titles.includes(typed);
      for (let i = 0; i < this.num_entities && found.length < limit; i++) if (all || this.titles[i].includes(typed)) found.push(i);
      return found;
    }
    const found = this.names && text ? await this.names.search(text, limit, true) : [];
    return [...new Set([...found, ...await this.labels.search(text.replaceAll(" ", "_"), limit, true)])].slice(0, limit);
  }

  /** What is known of (head, relation, ?): Map of tail to split; empty where the student came without its triples. */
  async known(head, relation) {
    const found = new Map();
    if (!this.triples) return found;
    const places = this.header.files["triples.bin"].arrays, { triples } = this;
    const head_of = async (i) => int32(await triples.peek(places.head[2] + 4 * i, places.head[2] + 4 * i + 4));
    const span = await triples.peek(places.first[2] + 8 * relation, places.first[2] + 8 * relation + 16);
    let low = int64(span), high = int64(span, 8);
    const end = high;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (await head_of(middle) < head) low = middle + 1; else high = middle;
    }
    for (; low < end && await head_of(low) === head; low++) {
      const tail = int32(await triples.peek(places.tail[2] + 4 * low, places.tail[2] + 4 * low + 4));
      const [split] = await triples.peek(places.split[2] + low, places.split[2] + low + 1);
      found.set(tail, ["train", "valid", "test"][split]);
    }
    return found;
  }

  // ---- numbers ------------------------------------------------------------------------------------------------------
  /** The decoded numbers [width][lanes] of a block, whose first entity has that number. */
  tile(bytes, first) {
    const { lanes, size, column, book, scale } = this;
    if (!book) return scale ? floats(this.type, bytes).map((x, at) => x * scale[first + (at % lanes)]) : floats(this.type, bytes);
    const out = new Float32Array(this.width * lanes);
    for (let m = 0; m < column.length / size; m++) {
      for (let e = 0; e < lanes; e++) {
        const code = (bytes[(m >> 1) * lanes + e] >> (4 * (m & 1))) & 15;
        for (let i = 0; i < size; i++) out[column[m * size + i] * lanes + e] += book[(m * 16 + code) * size + i];
      }
    }
    return out;
  }

  /** The numbers of an entity that has no codes. */
  wholeRow([at, scale]) {
    return this.wholeRows.subarray(at, at + this.width).map((x) => x * scale);
  }

  /** One entity's numbers, Float32Array. */
  async row(entity, signal) {
    if (this.few.has(entity)) return this.wholeRow(this.few.get(entity));
    const { lanes, blockBytes, width } = this, block = Math.floor(entity / lanes), at = block * blockBytes;
    const bytes = at + blockBytes <= this.filled ? this.kept.subarray(at, at + blockBytes)
      : await this.weights.read(this.start + at, this.start + at + blockBytes, signal);
    const tile = this.tile(bytes, block * lanes);
    return Float32Array.from({ length: width }, (_, i) => tile[i * lanes + (entity % lanes)]);
  }

  /** What finds the best tails of (head, relation, ?) in blocks that are given one after the other. */
  scan(head, row, relation, k) {
    const width = this.relationRows.length / this.num_relations;
    const [comparison, query] = MODELS[this.model];
    const q = query(row, this.relationRows.subarray(relation * width, (relation + 1) * width), this);
    const own = (this.reflexive ?? []).includes(relation) ? -1 : head;
    return new Scan(this, comparison === "modulus" && this.norm === 2 ? "distance" : comparison, q, own, k);
  }

  /** The k best tails at once, where all numbers are here: { ids, scores }. */
  best(head, row, relation, k = 10) {
    const scan = this.scan(head, row, relation, k);
    scan.go(this.total);
    return scan.found();
  }

  /** The k best tails of (head, relation, ?): yields { ids, scores, read, of } as bytes come, and when all are seen.
      The query's own entity is no answer, unless training has a triple of that relation from an entity to itself. */
  async *ask(head, relation, { k = 10, signal } = {}) {
    const scan = this.scan(head, await this.row(head, signal), relation, k);
    const state = () => ({ ...scan.found(), read: scan.done, of: this.total });
    this.kept ??= new Uint8Array(this.total);
    while (scan.done + this.blockBytes <= this.filled) {
      scan.go(Math.min(this.filled, scan.done + SLICE));
      if (scan.done < this.total) {
        yield state();
        await new Promise((go) => { setTimeout(go); }); // others' turn
        signal?.throwIfAborted();
      }
    }
    if (this.filled < this.total) {
      let at = this.filled;
      for await (const bytes of this.weights.stream(this.start + at, this.start + this.total, signal)) {
        signal?.throwIfAborted();
        this.kept.set(bytes, at);
        at += bytes.length;
        this.filled = Math.max(this.filled, at);
        scan.go(at);
        if (at < this.total) yield state();
      }
    }
    yield state();
  }
}

class Scan {
  constructor(student, comparison, q, own, k) {
    Object.assign(this, { student, comparison, q, own, k, done: 0, ids: [], scores: [] });
    this.out = new Float32Array(student.lanes);
    const { book, size, depth } = student, apart = comparison === "distance" || (comparison === "modulus" && size % 2 === 0);
    if (book && (comparison === "dot" || (apart && depth === 1))) this.tabulate();
  }

  /** A look-up for each code: the table [groups][16] of kgdistil/answer/native.py. */
  tabulate() {
    const { student: { book, size, column, rows, norm }, comparison, q } = this;
    this.table = new Float32Array(32 * rows); // an odd last group has a partner of zeros
    for (let at = 0; at < book.length / size; at++) {
      const group = at >> 4;
      let sum = 0;
      for (let i = 0; i < size; i++) {
        const x = q[column[group * size + i]], b = book[at * size + i], u = f(x - b);
        if (comparison === "dot") sum = f(sum + f(x * b));
        else if (comparison === "modulus") {
          const v = f(q[column[group * size + ++i]] - book[at * size + i]);
          sum = f(sum - f(Math.sqrt(f(f(u * u) + f(v * v)))));
        } else sum = f(sum - (norm === 2 ? f(u * u) : Math.abs(u)));
      }
      this.table[at] = sum;
    }
    this.part = new Float32Array(4 * 64);
  }

  codes(bytes) {
    const { table, part, out } = this;
    part.fill(0);
    for (let at = 0, step = 0; at < bytes.length; step++) { // group m into partial sum m mod 4
      const from = 32 * step, to = 128 * (step & 1);
      for (let e = 0; e < 64; e++, at++) {
        part[to + e] += table[from + (bytes[at] & 15)];
        part[to + 64 + e] += table[from + 16 + (bytes[at] >> 4)];
      }
    }
    for (let e = 0; e < 64; e++) out[e] = f(part[e] + part[64 + e]) + f(part[128 + e] + part[192 + e]);
  }

  /** The score of one row. */
  alone(row) {
    const out = new Float32Array(1);
    COMPARISONS[this.comparison](this.q, row, 1, this.student.norm, out);
    return out[0];
  }

  /** Score what lies whole within the first `until` bytes of the entities. */
  go(until) {
    const { student, out, ids, scores, k } = this, { blockBytes, lanes, num_entities: count } = student;
    for (; this.done + blockBytes <= until; this.done += blockBytes) {
      const first = (this.done / blockBytes) * lanes, bytes = student.kept.subarray(this.done, this.done + blockBytes);
      if (this.table) this.codes(bytes);
      else COMPARISONS[this.comparison](this.q, student.tile(bytes, first), lanes, student.norm, out.fill(0));
      for (let e = 0; e < lanes && first + e < count; e++) {
        const few = student.few.get(first + e), score = few ? this.alone(student.wholeRow(few)) : out[e];
        if ((ids.length === k && score <= scores[k - 1]) || first + e === this.own || Number.isNaN(score)) continue;
        let place = ids.length;
        while (place > 0 && scores[place - 1] < score) place--; // of equal ones the lower number first
        ids.splice(place, 0, first + e);
        scores.splice(place, 0, score);
        if (ids.length > k) ids.pop(), scores.pop();
      }
    }
  }

  /** The best so far. */
  found() {
    const rooted = this.table && this.comparison === "distance" && this.student.norm === 2; // squares were compared
    const plus = MODELS[this.student.model][0] === "dot" ? 0 : f(this.student.offset);
    return { ids: [...this.ids], scores: this.scores.map((x) => f((rooted ? -f(Math.sqrt(-x)) : x) + plus)) };
  }
}
