// XXH3, 64 bits, of up to a block of a student's file: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
// Sums of 64 bits are kept as two halves of 32 where most bytes go through: BigInt takes twenty times as long.

const SECRET = Uint8Array.from(
  ("b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248e" +
   "e03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d" +
   "8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc" +
   "8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e").match(/../g), (x) => parseInt(x, 16));
const PRIME32 = [0x9e3779b1n, 0x85ebca77n, 0xc2b2ae3dn];
const PRIME64 = [0x9e3779b185ebca87n, 0xc2b2ae3d27d4eb4fn, 0x165667b19e3779f9n, 0x85ebca77c2b2ae63n, 0x27d4eb2f165667c5n];
const [MIX1, MIX2] = [0x165667919e3779f9n, 0x9fb21c651e98df25n];
const STRIPE = 64, BLOCK = 1024; // bytes that are added at once, and after which the sums are scrambled

const u64 = (x) => BigInt.asUintN(64, x);
const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const read = (data, at) => data.getBigUint64(at, true);
const secret = view(SECRET);
const turned = (x, bits) => u64(x << bits) | (x >> (64n - bits));
const fold = (a, b) => u64(a * b) ^ ((a * b) >> 64n);

function swapped(x) {
  const data = new DataView(new ArrayBuffer(8));
  data.setBigUint64(0, x, true);
  return data.getBigUint64(0);
}

function avalanche(x, shift = 37n, factor = MIX1) {
  const mixed = u64((x ^ (x >> shift)) * factor);
  return mixed ^ (mixed >> 32n);
}

function old_avalanche(x) {
  return avalanche(u64((x ^ (x >> 33n)) * PRIME64[1]), 29n, PRIME64[2]);
}

const mixed = (data, at, place) => (
  fold(read(data, at) ^ read(secret, place), read(data, at + 8) ^ read(secret, place + 8)));

/** Of at most 16 bytes. */
function tiny(data, n) {
  const size = BigInt(n), flip = (a, b) => read(secret, a) ^ read(secret, b);
  if (n > 8) {
    const low = read(data, 0) ^ flip(24, 32), high = read(data, n - 8) ^ flip(40, 48);
    return avalanche(u64(size + swapped(low) + high + fold(low, high)));
  }
  if (n > 3) {
    let x = (BigInt(data.getUint32(n - 4, true)) + (BigInt(data.getUint32(0, true)) << 32n)) ^ flip(8, 16);
    x = u64((x ^ turned(x, 49n) ^ turned(x, 24n)) * MIX2);
    x = u64((x ^ ((x >> 35n) + size)) * MIX2);
    return x ^ (x >> 28n);
  }
  if (!n) return old_avalanche(flip(56, 64));
  const bytes = data.getUint8(0) * 2 ** 16 + data.getUint8(n >> 1) * 2 ** 24 + data.getUint8(n - 1) + n * 2 ** 8;
  return old_avalanche(BigInt(bytes) ^ BigInt((secret.getUint32(0, true) ^ secret.getUint32(4, true)) >>> 0));
}

/** Of 17 to 240 bytes. */
function short(data, n) {
  let sum = BigInt(n) * PRIME64[0];
  if (n <= 128) {
    for (let i = 0; i < Math.ceil(n / 32); i++) sum += mixed(data, 16 * i, 32 * i) + mixed(data, n - 16 * (i + 1), 32 * i + 16);
    return avalanche(u64(sum));
  }
  for (let i = 0; i < 8; i++) sum += mixed(data, 16 * i, 16 * i);
  sum = avalanche(u64(sum));
  for (let i = 8; i < n >> 4; i++) sum += mixed(data, 16 * i, 16 * (i - 8) + 3);
  return avalanche(u64(sum + mixed(data, n - 16, 119)));
}

/** Add a stripe of 64 bytes to the sums [8][low, high], with the secret from a place on. */
function add(sums, data, at, place) {
  for (let i = 0; i < 16; i += 2) {
    const low = data.getUint32(at + 4 * i, true), high = data.getUint32(at + 4 * i + 4, true);
    const a = low ^ secret.getUint32(place + 4 * i, true), b = high ^ secret.getUint32(place + 4 * i + 4, true);
    const a0 = a & 0xffff, a1 = a >>> 16, b0 = b & 0xffff, b1 = b >>> 16;
    const middle = a1 * b0 + ((a0 * b0) >>> 16), rest = a0 * b1 + (middle & 0xffff); // a · b = top · 2³² + Math.imul(a, b)
    const top = a1 * b1 + Math.floor(middle / 65536) + Math.floor(rest / 65536);
    const other = i ^ 2;
    let sum = sums[other] + low;
    sums[other] = sum;
    sums[other + 1] += high + (sum > 0xffffffff);
    sum = sums[i] + (Math.imul(a, b) >>> 0);
    sums[i] = sum;
    sums[i + 1] += top + (sum > 0xffffffff);
  }
}

function long(data, n) {
  const sums = new Uint32Array(16), wide = new BigUint64Array(sums.buffer);
  wide.set([PRIME32[2], PRIME64[0], PRIME64[1], PRIME64[2], PRIME64[3], PRIME32[1], PRIME64[4], PRIME32[0]]);
  for (let at = 0; at + STRIPE < n; at += STRIPE) {
    add(sums, data, at, (at % BLOCK) / 8);
    if ((at + STRIPE) % BLOCK === 0) {
      wide.forEach((x, i) => { wide[i] = (x ^ (x >> 47n) ^ read(secret, 128 + 8 * i)) * PRIME32[0]; });
    }
  }
  add(sums, data, n - STRIPE, 121);
  let sum = BigInt(n) * PRIME64[0];
  for (let i = 0; i < 8; i += 2) sum += fold(wide[i] ^ read(secret, 11 + 8 * i), wide[i + 1] ^ read(secret, 19 + 8 * i));
  return avalanche(u64(sum));
}

/** The sum of bytes as 16 hexadecimal digits, as `xxhash.xxh3_64_hexdigest` gives it. */
export function xxh3(bytes) {
  const data = view(bytes), n = bytes.length;
  return (n > 240 ? long : n > 16 ? short : tiny)(data, n).toString(16).padStart(16, "0");
}
