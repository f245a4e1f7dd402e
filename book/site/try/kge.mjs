// The score functions of kgdistil/models.py on typed arrays. No page, no network: `read` fetches the files.

const FORMAT = 1;
const LITTLE = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

/** A model exported by kgdistil.students.browser.export. `read(path)` resolves to an ArrayBuffer. */
export async function openModel(folder, read) {
  const header = JSON.parse(new TextDecoder().decode(await read(`${folder}/model.json`)));
  if (header.format !== FORMAT || !(header.model in MODELS)) {
    throw new Error(`${folder}/model.json: format ${header.format}, model ${header.model} cannot be read here`);
  }
  const file = async (name, size) => {
    const bytes = await read(`${folder}/${name}`);
    if (bytes.byteLength !== size) throw new Error(`${folder}/${name} has ${bytes.byteLength} bytes, ${size} expected`);
    return bytes;
  };
  const [[count, width], group] = [header.entities, header.group];
  const relations = floats(await file("relations.f32", 4 * header.relations[0] * header.relations[1]));
  const map = header.model === "LowRankComplEx" ? floats(await file("map.f32", 4 * width * header.relations[1])) : null;
  let entities, bytes = 4 * relations.length + (map ? 4 * map.length : 0);
  if (group) {
    const packed = new Uint8Array(await file("entities.u8", count * Math.ceil(width / group / 2)));
    const book = floats(await file("book.f32", 4 * 16 * width));
    entities = new Codes(packed, book, count, width, group, header.paired);
    bytes += packed.length + 4 * book.length;
  } else {
    entities = floats(await file("entities.f32", 4 * count * width));
    bytes += 4 * entities.length;
  }
  return { ...header, count, width, bytes, entityBytes: group ? Math.ceil(width / group / 2) : 4 * width,
           tables: { entities, relations, map } };
}

/** Entities of four-bit codes, two a byte, as kgdistil/quantise.py packs them: group m of an entity is one of the sixteen
    vectors of `size` numbers that the book [groups][16][size] holds for it. */
export class Codes {
  constructor(packed, book, count, width, size, paired) {
    Object.assign(this, { packed, book, count, width, size, groups: width / size, stride: Math.ceil(width / size / 2) });
    // where the i-th number of the groups, one after the other, stands in a row
    this.column = Uint32Array.from({ length: width }, (_, i) => (paired ? (i % 2) * (width / 2) + (i >> 1) : i));
  }

  /** One entity's numbers, Float32Array. */
  row(entity) {
    const { packed, book, size, groups, stride, column } = this;
    const out = new Float32Array(this.width);
    for (let m = 0; m < groups; m++) {
      const code = (packed[entity * stride + (m >> 1)] >> (4 * (m & 1))) & 15;
      for (let i = 0; i < size; i++) out[column[m * size + i]] = book[(m * 16 + code) * size + i];
    }
    return out;
  }

  /** q · e for every entity e: one look-up a group in place of a product a number. */
  products(q, out) {
    const { packed, book, size, groups, stride, column, count } = this;
    const table = new Float64Array(32 * stride); // an odd last group has a partner of zeros
    for (let m = 0; m < groups; m++) {
      for (let code = 0; code < 16; code++) {
        let sum = 0;
        for (let i = 0; i < size; i++) sum += q[column[m * size + i]] * book[(m * 16 + code) * size + i];
        table[m * 16 + code] = sum;
      }
    }
    for (let e = 0, at = 0; e < count; e++) {
      let sum = 0;
      for (let b = 0; b < stride; b++, at++) sum += table[32 * b + (packed[at] & 15)] + table[32 * b + 16 + (packed[at] >> 4)];
      out[e] = sum;
    }
  }

  /** All numbers, for the scores that are no products; made once. */
  decoded() {
    if (!this.all) {
      this.all = new Float32Array(this.count * this.width);
      for (let e = 0; e < this.count; e++) this.all.set(this.row(e), e * this.width);
    }
    return this.all;
  }
}

/** Little-endian float32 on any machine. */
function floats(bytes) {
  if (LITTLE) return new Float32Array(bytes);
  const view = new DataView(bytes);
  return Float32Array.from({ length: bytes.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** Scores of every tail of (head, relation), ids; Float32Array of the number of entities. Larger is more plausible. */
export function scoreTails(model, head, relation, out = new Float32Array(model.count)) {
  const { entities, relations } = model.tables;
  const coded = entities instanceof Codes;
  const h = coded ? entities.row(head) : entities.subarray(head * model.width, (head + 1) * model.width);
  const size = model.relations[1];
  const r = relations.subarray(relation * size, (relation + 1) * size);
  MODELS[model.model](model, h, r, coded && !PRODUCTS.has(model.model) ? entities.decoded() : entities, out);
  return out;
}

/** The k ids with the highest scores, best first; of equal ones the smaller id first. */
export function best(scores, k) {
  const ids = [];
  for (let e = 0; e < scores.length; e++) {
    if (ids.length === k && scores[e] <= scores[ids[k - 1]]) continue;
    let place = ids.length;
    while (place > 0 && scores[ids[place - 1]] < scores[e]) place--;
    ids.splice(place, 0, e);
    if (ids.length > k) ids.pop();
  }
  return ids;
}

function distances(model, q, entities, out) {
  const { width, norm, offset, count } = model;
  for (let e = 0, at = 0; e < count; e++) {
    let sum = 0;
    for (let i = 0; i < width; i++, at++) {
      const x = q[i] - entities[at];
      sum += norm === 1 ? Math.abs(x) : x * x;
    }
    out[e] = offset - (norm === 1 ? sum : Math.sqrt(sum));
  }
}

const PRODUCTS = new Set(["ComplEx", "LowRankComplEx", "DistMult", "SimplE"]); // their scores are products of a query with each entity

function products(model, q, entities, out) {
  if (entities instanceof Codes) return entities.products(q, out);
  const { width, count } = model;
  for (let e = 0, at = 0; e < count; e++) {
    let sum = 0;
    for (let i = 0; i < width; i++, at++) sum += q[i] * entities[at];
    out[e] = sum;
  }
}

/** (a + ib)(c + id) for d complex numbers stored as [real | imaginary]. */
function complexProduct(a, b, d) {
  const q = new Float64Array(2 * d);
  for (let i = 0; i < d; i++) {
    q[i] = a[i] * b[i] - a[d + i] * b[d + i];
    q[d + i] = a[i] * b[d + i] + a[d + i] * b[i];
  }
  return q;
}

const dot = (a, b, d) => { let sum = 0; for (let i = 0; i < d; i++) sum += a[i] * b[i]; return sum; };

export const MODELS = {
  TransE(model, h, r, entities, out) {
    distances(model, Float64Array.from(h, (x, i) => x + r[i]), entities, out);
  },

  TransH(model, h, r, entities, out) {
    const { dim: d, norm, offset, count } = model;
    const length = Math.max(Math.sqrt(dot(r.subarray(d), r.subarray(d), d)), 1e-12);
    const w = Float64Array.from(r.subarray(d), (x) => x / length);
    const along = dot(h, w, d);
    const q = Float64Array.from(h, (x, i) => x - along * w[i] + r[i]);
    for (let e = 0; e < count; e++) {
      const t = entities.subarray(e * d, (e + 1) * d);
      const share = dot(t, w, d);
      let sum = 0;
      for (let i = 0; i < d; i++) {
        const x = q[i] - t[i] + share * w[i];
        sum += norm === 1 ? Math.abs(x) : x * x;
      }
      out[e] = offset - (norm === 1 ? sum : Math.sqrt(sum));
    }
  },

  ComplEx(model, h, r, entities, out) {
    products(model, complexProduct(h, r, model.dim), entities, out);
  },

  LowRankComplEx(model, h, r, entities, out) { // e = x A: the head through A, the query back through its transpose
    const { dim: d, width, tables: { map } } = model;
    const row = new Float64Array(2 * d), q = new Float64Array(width);
    for (let i = 0; i < width; i++) for (let j = 0; j < 2 * d; j++) row[j] += h[i] * map[2 * d * i + j];
    const wide = complexProduct(row, r, d);
    for (let i = 0; i < width; i++) q[i] = dot(wide, map.subarray(2 * d * i), 2 * d);
    products(model, q, entities, out);
  },

  RotatE(model, h, r, entities, out) {
    const { dim: d, count, offset } = model;
    const rotation = new Float64Array(2 * d);
    for (let i = 0; i < d; i++) {
      const angle = (r[i] * Math.PI) / model.range;
      rotation[i] = Math.cos(angle);
      rotation[d + i] = Math.sin(angle);
    }
    const q = complexProduct(h, rotation, d);
    if (model.norm === 2) return distances(model, q, entities, out); // PyKEEN's RotatE
    for (let e = 0; e < count; e++) {
      const at = 2 * d * e;
      let sum = 0;
      for (let i = 0; i < d; i++) {
        const a = q[i] - entities[at + i], b = q[d + i] - entities[at + d + i];
        sum += Math.sqrt(a * a + b * b);
      }
      out[e] = offset - sum;
    }
  },

  DistMult(model, h, r, entities, out) {
    products(model, Float64Array.from(h, (x, i) => x * r[i]), entities, out);
  },

  SimplE(model, h, r, entities, out) {
    const d = model.dim;
    const q = Float64Array.from(h, (_, i) => (i < d ? h[d + i] * r[d + i] : h[i - d] * r[i - d]) / 2);
    products(model, q, entities, out);
  },
};
