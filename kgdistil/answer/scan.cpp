// Ranks and top-k answers over entities that are four-bit codes, or rows of numbers: what `native.py` loads.
// One source, compiled for several instruction sets when the package is built (setup.py): AVX-512 as since Ice Lake and
// Zen 4, AVX2, NEON, or none.
// Codes. A query is a table [M][16], the score of an entity the sum of the M entries that its codes choose. The table is
// rounded to two bytes of seven bits; byte shuffles look up 64 entries at a time (André et al. 2015, FAISS's fast scan).
// Sums of bytes bound the score, and an entity whose bounds leave open on which side of the goal it lies is scored in
// float32; only that decides. A float32 score is added up in one order, group m into partial sum m mod 4, without fused
// operations, so it is the same bits on every machine, and equal codes tie exactly.
// Rows. They lie in tiles, 16 entities transposed to [W][16], so that scores need no horizontal sums.
#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>
#if defined(KGD_PLAIN)  // as on a processor that has none of these
#elif defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512VBMI__) && \
    defined(__AVX512VNNI__)
#define WIDE
#include <immintrin.h>
#elif defined(__AVX2__)
#define MIDDLE
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#define NEON
#include <arm_neon.h>
#endif

namespace {

constexpr int BLOCK = 64, LANES = 16;  // entities of a word of candidates, and of a tile
constexpr float INFINITE = std::numeric_limits<float>::infinity();

struct Job {  // mirrored in native.py, which compares the size
    const uint8_t* entities;  // codes: [⌈E/64⌉][⌈M/2⌉][64], two a byte; rows: [⌈E/16⌉][W][16]; at any address
    const uint8_t* scale;     // rows of int8: float32 [E], by which they are multiplied, or null
    const float* queries;     // [n, width]
    const float* book;        // codes: [M, g, 16]
    const int32_t* columns;   // codes: [M·g], where in a query the numbers of the groups lie
    const int64_t* target;    // [n] ids: count what scores above and equal; null: find the best
    const float* goal;        // [n] what the target scores, which then may be −1; null: as it lies here
    const int64_t *known_start, *known_end;  // [n] spans of `known`, or null
    const int32_t* known;     // ids to leave out, ascending within a span
    const uint64_t* allowed;  // a bit for each entity that may come, or null
    int32_t *greater, *equal; // out [n]
    float* score;             // out [n, k], descending; −inf past the last candidate
    int32_t* best;            // out [n, k]; −1 past the last candidate
    int64_t n, num_entities, width, next_allowed, groups, size, row;  // words from a query's `allowed` to the next's
    int32_t kind, squared, type, threads, k, unused;
};
enum Kind { DOT, DISTANCE, MODULUS, HYPERPLANE };
enum Type { FLOAT, HALF, BYTE };

// ---- what every scan needs ------------------------------------------------------------------------------------------
class Candidates {  // which entities count for a query; blocks are asked for once each, in ascending order
    const int32_t *at = nullptr, *end = nullptr;
    const uint64_t* allowed = nullptr;
    int64_t target = -1, num_entities = 0;

  public:
    Candidates() = default;
    Candidates(const Job& job, int64_t n, int64_t first_block) : num_entities(job.num_entities) {
        if (job.known_start) at = job.known + job.known_start[n], end = job.known + job.known_end[n];
        if (job.allowed) allowed = job.allowed + n * job.next_allowed;
        if (job.target) target = job.target[n];  // it does not tie with itself
        at = std::lower_bound(at, end, first_block * BLOCK);
    }
    uint64_t of(int64_t block) {
        const int64_t first = block * BLOCK, rest = num_entities - first;
        uint64_t word = allowed ? allowed[block] : ~uint64_t(0);
        if (rest < BLOCK) word &= (uint64_t(1) << rest) - 1;
        if (target >= first && target < first + BLOCK) word &= ~(uint64_t(1) << (target - first));
        for (; at < end && *at < first + BLOCK; at++)
            if (*at >= first) word &= ~(uint64_t(1) << (*at - first));
        return word;
    }
};

using Answer = std::pair<float, int32_t>;  // (−score, id): the worst kept answer is the largest

struct Best {  // entities are offered in ascending order, so of ties the one that is there stays
    std::vector<Answer> heap;
    size_t k = 0;
    bool full() const { return heap.size() == k; }
    float bar() const { return full() ? -heap.front().first : -INFINITE; }
    void offer(float score, int32_t e) {
        if (std::isnan(score) || (full() && !(score > bar()))) return;
        if (full()) std::pop_heap(heap.begin(), heap.end()), heap.pop_back();
        heap.emplace_back(-score, e), std::push_heap(heap.begin(), heap.end());
    }
};

void write_best(const Job& job, int64_t n, std::vector<Answer>& best) {
    std::sort(best.begin(), best.end());
    for (int64_t i = 0; i < job.k; i++) {
        const bool there = i < int64_t(best.size());
        job.score[n * job.k + i] = there ? -best[i].first : -INFINITE;
        job.best[n * job.k + i] = there ? best[i].second : -1;
    }
}

// 0, or 1 where memory ran out; no exception leaves
template <class Work> int32_t each(int64_t tasks, int64_t threads, Work work) noexcept {
    std::atomic<int64_t> next{0};
    std::atomic<bool> out{false};
    const auto run = [&]() noexcept {
        try {
            for (int64_t i; (i = next++) < tasks;) work(i);
        } catch (const std::bad_alloc&) {
            out = true;
        } catch (const std::length_error&) {
            out = true;
        }
    };
    std::vector<std::thread> others;
    try {
        for (int64_t i = 1; i < std::min(threads, tasks); i++) others.emplace_back(run);
    } catch (...) {  // no more threads are to be had: fewer do the work
    }
    run();
    for (auto& thread : others) thread.join();
    return out;
}

struct Tally {  // of one query in one range of blocks
    int64_t greater = 0, equal = 0;
    std::vector<Answer> best;
};

// Queries are dealt out to threads; the blocks are where queries are few. scan(first query, count, from block, to
// block, tallies). `most`: queries that share a pass.
template <class Scan> int32_t deal(const Job& job, int64_t block_bytes, int64_t most, Scan scan) noexcept {
    constexpr int64_t WORTH = 1 << 21;  // bytes looked at by a thread that is worth its start (about 20 µs)
    try {
        const int64_t blocks = (job.num_entities + BLOCK - 1) / BLOCK;
        const int64_t worth = std::max<int64_t>(1, int64_t(double(block_bytes) * blocks * job.n / WORTH));
        const int64_t threads = std::min<int64_t>(std::max(job.threads, 1), worth);
        const bool few = job.n < 4 * threads;
        const int64_t ranges = few ? std::min(threads, blocks) : 1, by = few ? 1 : threads;
        const int64_t tasks = std::max<int64_t>(1, (job.n + by * most - 1) / (by * most) * by);
        const int64_t count = std::max<int64_t>(1, (job.n + tasks - 1) / tasks);
        const int64_t groups = (job.n + count - 1) / count;
        std::vector<Tally> tally(ranges * job.n);
        const int32_t out = each(groups * ranges, threads, [&](int64_t task) {
            const int64_t first = task / ranges * count, range = task % ranges;
            scan(first, std::min(count, job.n - first), blocks * range / ranges, blocks * (range + 1) / ranges,
                 tally.data() + range * job.n + first);
        });
        if (out) return out;
        for (int64_t n = 0; n < job.n; n++) {
            Tally& all = tally[n];
            for (int64_t range = 1; range < ranges; range++) {
                const Tally& more = tally[range * job.n + n];
                all.greater += more.greater, all.equal += more.equal;
                all.best.insert(all.best.end(), more.best.begin(), more.best.end());
            }
            if (job.target) {
                job.greater[n] = int32_t(all.greater), job.equal[n] = int32_t(all.equal);
                continue;
            }
            write_best(job, n, all.best);
        }
        return 0;
    } catch (const std::bad_alloc&) {
    } catch (const std::length_error&) {
    }
    return 1;
}

// ---- vectors of bytes -----------------------------------------------------------------------------------------------
#if defined(WIDE)
constexpr int VB = 64, QUERIES = 4, ALONE = 4;  // bytes of a vector; queries at a time, and vectors of one query
#elif defined(MIDDLE)
constexpr int VB = 32, QUERIES = 2, ABREAST = 2, ALONE = 2;
#else
constexpr int VB = 16, QUERIES = 2, ABREAST = 4, ALONE = 4;
#endif
typedef uint8_t Bytes __attribute__((vector_size(VB)));
typedef uint16_t Words __attribute__((vector_size(VB)));

inline Bytes load(const uint8_t* x) {
    Bytes out;
    std::memcpy(&out, x, VB);
    return out;
}
inline Bytes look_up(const uint8_t* table, Bytes x) {  // of sixteen bytes
#if defined(WIDE)
    const __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return (Bytes)_mm512_shuffle_epi8(t, (__m512i)x);
#elif defined(MIDDLE)
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return (Bytes)_mm256_shuffle_epi8(t, (__m256i)x);
#elif defined(NEON)
    return (Bytes)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)x);
#else
    uint8_t from[VB], out[VB];
    std::memcpy(from, &x, VB);
    for (int i = 0; i < VB; i++) out[i] = table[from[i]];
    return load(out);
#endif
}
inline uint64_t signs(Bytes x) {  // the highest bit of each byte
#if defined(WIDE)
    return _mm512_movepi8_mask((__m512i)x);
#elif defined(MIDDLE)
    return uint32_t(_mm256_movemask_epi8((__m256i)x));
#else
    uint64_t half[2], bits = 0;
    std::memcpy(half, &x, VB);
    for (int i = 0; i < 2; i++) bits |= ((half[i] & 0x8080808080808080) * 0x0002040810204081 >> 56) << i * 8;
    return bits;
#endif
}

struct Sums {  // of a byte of each entity, 16 bits wide: first those of all bytes as words and of the odd ones
    Words even = {}, odd = {};
    void add(Bytes x) { even += (Words)x, odd += (Words)x >> 8; }
    void finish() { even -= odd << 8; }
};
struct Bound {  // of a sum of high bytes, and of RADIX · high + low
    uint16_t high, low;
};

// ---- codes: tables, bytes and bounds --------------------------------------------------------------------------------
constexpr int CHUNK = 64;  // blocks that stay in cache for the queries of a task, at most
constexpr int64_t SOON = 4;  // blocks ahead of those that are read
constexpr int64_t CHUNK_BYTES = 128 << 10, TABLE_BYTES = 256 << 10, FIRST = 16;
constexpr int RADIX = 128, MOST = RADIX * RADIX - 1;
constexpr double NONE = 65535. * RADIX;  // above every sum of M ≤ 512 groups
typedef float Sixteen __attribute__((vector_size(64), aligned(4)));

struct alignas(64) Line {
    uint8_t x[64];
};
// where the table of a step's first code lies: those of eight groups in two lines, codes of the low half bytes first
inline int64_t place(int64_t step) { return step / 4 * 128 + step % 4 * 16; }

struct Query {
    std::vector<float> table;         // [M][16]
    std::vector<Line> high, low;      // the table in bytes, RADIX·high + low steps; zeros past M
    double base, step, slack, rest;   // rest: the most that the low bytes add
    double most, widest;              // the score of an entity with the best code everywhere; of one group's, the range
    bool blind;                       // numbers that bytes cannot stand for: float32 decides
    bool closely;                     // the goal lies among many: look at the low bytes too, so that less is open
    float goal;
    Bound least[2], above[2];         // sums from which an entity is not surely below, and surely above; closely
    uint64_t not_below[CHUNK], surely[CHUNK];  // the last pass's findings, a bit for each entity
    Candidates candidates;
    Best best;
    int64_t greater, equal;
};

void make_table(const Job& job, const float* vector, float* table) {
    const float* book = job.book;
    const int32_t* column = job.columns;
    for (int64_t m = 0; m < job.groups; m++, table += 16) {
        Sixteen sum = {};
        const auto next = [&] {
            const Sixteen entry = *reinterpret_cast<const Sixteen*>(book);
            const Sixteen x = vector[*column++] - Sixteen{};
            book += 16;
            return job.kind == DOT ? x * entry : x - entry;
        };
        for (int64_t i = 0; i < job.size; i++) {
            Sixteen x = next();
            if (job.kind == DOT) {
                sum += x;
            } else if (job.kind == MODULUS) {
                const Sixteen y = next(), both = x * x + y * y;
                for (int c = 0; c < 16; c++) x[c] = std::sqrt(both[c]);
                sum += x, i++;
            } else if (job.squared) {
                sum += x * x;
            } else {
                for (int c = 0; c < 16; c++) x[c] = std::fabs(x[c]);
                sum += x;
            }
        }
        *reinterpret_cast<Sixteen*>(table) = job.kind == DOT ? sum : -sum;
    }
}

inline std::pair<float, float> ends(Sixteen x) {  // the smallest and largest of sixteen
#if defined(WIDE)
    return {_mm512_reduce_min_ps((__m512)x), _mm512_reduce_max_ps((__m512)x)};
#else
    float least[16], top[16];
    std::memcpy(least, &x, 64), std::memcpy(top, &x, 64);
    for (int half = 8; half; half /= 2)
        for (int c = 0; c < half; c++) {
            least[c] = least[c + half] < least[c] ? least[c + half] : least[c];
            top[c] = top[c + half] > top[c] ? top[c + half] : top[c];
        }
    return {least[0], top[0]};
#endif
}

// v ≤ MOST with |table[m][c] − smallest[m] − step·v| ≤ .51 step; base, the sum of the smallest; slack, the largest
// difference of base + step·(sum of v) and a float32 score: these halves, and what float32 rounds off. What lies more
// than `reach` below the best of its group counts as if it lay there: then a sum is only a bound from above.
void quantise(const Job& job, Query& query, float reach = INFINITE) {
    typedef int32_t Whole __attribute__((vector_size(64)));
    typedef uint8_t Small __attribute__((vector_size(16), aligned(1)));
    const int64_t M = job.groups;
    const Sixteen* table = reinterpret_cast<const Sixteen*>(query.table.data());
    query.high.assign((M + 7) / 8 * 2, {}), query.low.assign((M + 7) / 8 * 2, {});
    double largest = 0, size = 0;
    query.base = query.rest = query.most = 0;
    float smallest[512], range[512];
    Sixteen nothing = {};  // x · 0, or no number
    for (int64_t m = 0; m < M; m++) {
        auto [least, top] = ends(table[m]);
        nothing += table[m] * 0.f;
        size += std::max(std::fabs(top), std::fabs(least)), least = std::max(least, top - reach);
        smallest[m] = least, range[m] = top - least;
        query.base += least, query.most += top;
        largest = std::max(largest, double(top) - least);
    }
    // sums that overflow, or steps that are no float32, are for float32 itself
    query.blind = !(size < 1e37) || (largest > 0 && largest < 1e-30);
    for (int c = 0; c < 16; c++) query.blind |= !(nothing[c] == 0);
    if (query.blind) return;
    if (reach == INFINITE) query.widest = largest;
    query.step = largest > 0 ? largest / MOST : 1;
    const float inverse = largest > 0 ? float(MOST / largest) : 0;
    for (int64_t m = 0; m < M; m++) {
        query.rest += std::min(RADIX - 1.f, range[m] * inverse + 1);
        const Sixteen above = table[m] - smallest[m];
        const Whole rounded = __builtin_convertvector((above > 0 ? above : Sixteen{}) * inverse + .5f, Whole);
        const Whole v = rounded < MOST ? rounded : MOST - Whole{};
        const Small high = __builtin_convertvector(v / RADIX, Small), low = __builtin_convertvector(v % RADIX, Small);
        const int64_t at = place(m / 2) + m % 2 * 64;
        std::memcpy(query.high[0].x + at, &high, 16), std::memcpy(query.low[0].x + at, &low, 16);
    }
    query.slack = M * query.step * .51 + (M + 4) * (size * FLT_EPSILON + FLT_MIN);
}

void aim(Query& query, float goal, bool top) {
    const auto bound = [](double x) {
        const int32_t whole = int32_t(std::clamp(x, 0., NONE));
        return Bound{uint16_t(whole / RADIX), uint16_t(whole % RADIX)};
    };
    query.goal = goal;
    query.least[0] = query.least[1] = bound(0), query.above[0] = query.above[1] = bound(NONE);
    if (query.blind || !std::isfinite(goal)) return;
    const double lowest = std::ceil((goal - query.base - query.slack) / query.step);
    const double highest = std::floor((goal - query.base + query.slack) / query.step);
    query.least[0] = bound(std::ceil((lowest - query.rest) / RADIX) * RADIX), query.least[1] = bound(lowest);
    if (!top) query.above[0] = bound((std::floor(highest / RADIX) + 1) * RADIX), query.above[1] = bound(highest + 1);
}

// ---- codes: float32 scores ------------------------------------------------------------------------------------------
float score_of(const Job& job, const Query& query, int64_t e) {
    const uint8_t* codes = job.entities + e / BLOCK * job.row + e % BLOCK;
    const float* table = query.table.data();
    float sum[4] = {};
    int64_t m = 0;
    for (; m + 4 <= job.groups; m += 4, codes += 2 * BLOCK, table += 64) {
        sum[0] += table[codes[0] & 15], sum[1] += table[16 + (codes[0] >> 4)];
        sum[2] += table[32 + (codes[BLOCK] & 15)], sum[3] += table[48 + (codes[BLOCK] >> 4)];
    }
    for (int i = 0; m < job.groups; m++, i++) sum[i] += table[i * 16 + (codes[i / 2 * BLOCK] >> i % 2 * 4 & 15)];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// of the entities of a quarter of a block that `bits` names; what stands in `out` for others is of no use
void quarter(const Job& job, const Query& query, int64_t first, [[maybe_unused]] uint32_t bits, float* out) {
#if defined(WIDE)
    if (!(bits & (bits - 1))) {
        out[__builtin_ctz(bits)] = score_of(job, query, first + __builtin_ctz(bits));
        return;
    }
    const uint8_t* codes = job.entities + first / BLOCK * job.row + first % BLOCK;
    const float* table = query.table.data();
    __m512 sum[4] = {};
    const auto add = [&](__m512& into, __m512i code) {  // a shuffle reads the lowest four bits
        into = _mm512_add_ps(into, _mm512_permutexvar_ps(code, _mm512_loadu_ps(table))), table += 16;
    };
    const auto next = [&] {
        const __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
        codes += BLOCK;
        return x;
    };
    const auto two = [&](__m512& one, __m512& other) {
        const __m512i x = next();
        add(one, x), add(other, _mm512_srli_epi32(x, 4));
    };
    for (int64_t i = 0; i < job.groups / 4; i++) two(sum[0], sum[1]), two(sum[2], sum[3]);
    if (job.groups % 4 >= 2) two(sum[0], sum[1]);
    if (job.groups % 2) add(sum[job.groups % 4 - 1], next());
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
#else
    for (; bits; bits &= bits - 1) out[__builtin_ctz(bits)] = score_of(job, query, first + __builtin_ctz(bits));
#endif
}

// ---- codes: a pass over a chunk -------------------------------------------------------------------------------------
template <bool CLOSELY> inline uint64_t at_least(const Sums& high, const Sums& low, Bound bound) {
    const auto lane = [&](Words h, Words l) {  // low: what is left of the low bytes' sums
        const Words edge = bound.high - Words{};
        if (!CLOSELY) return (Words)(h >= edge);
        return (Words)(h > edge) | ((Words)(h == edge) & (Words)(l >= bound.low - Words{}));
    };
    return signs((Bytes)((lane(high.even, low.even) & 0x00ff) | (lane(high.odd, low.odd) & 0xff00)));
}

template <int N, int V> inline void add_up(const uint8_t* const* column, int64_t steps, const uint8_t* const* table, Sums sum[][V]) {
    for (int64_t s = 0; s < steps; s++) {
        Bytes x[V], y[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const Bytes both = load(column[v] + s * BLOCK);
            x[v] = both & 15, y[v] = (Bytes)((Words)both >> 4) & 15;
        }
#pragma GCC unroll 4
        for (int j = 0; j < N; j++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                sum[j][v].add(look_up(table[j] + place(s), x[v]) + look_up(table[j] + place(s) + 64, y[v]));
    }
    for (int j = 0; j < N; j++)
        for (int v = 0; v < V; v++) sum[j][v].finish();
}

// Writes what it finds about N queries and V vectors of entities into their `not_below` and `surely`.
template <int N, int V, bool CLOSELY>
inline void vectors(const uint8_t* const* column, int64_t steps, Query* const* query, int64_t at) {
    constexpr int PARTS = BLOCK / VB;
    Sums high[N][V], low[N][V];
    const uint8_t* table[N];
    for (int j = 0; j < N; j++) table[j] = query[j]->high[0].x;
    add_up<N, V>(column, steps, table, high);
    if (CLOSELY) {
        for (int j = 0; j < N; j++) table[j] = query[j]->low[0].x;
        add_up<N, V>(column, steps, table, low);
    }
    for (int j = 0; j < N; j++)
        for (int v = 0; v < V; v++) {
            if (CLOSELY) {
                high[j][v].even += low[j][v].even / RADIX, high[j][v].odd += low[j][v].odd / RADIX;
                low[j][v].even %= RADIX, low[j][v].odd %= RADIX;
            }
            const int64_t i = at + v, shift = i % PARTS * VB % BLOCK;
            if (shift == 0) query[j]->not_below[i / PARTS] = query[j]->surely[i / PARTS] = 0;
            query[j]->not_below[i / PARTS] |= at_least<CLOSELY>(high[j][v], low[j][v], query[j]->least[CLOSELY]) << shift;
            query[j]->surely[i / PARTS] |= at_least<CLOSELY>(high[j][v], low[j][v], query[j]->above[CLOSELY]) << shift;
        }
}

template <int N, int V, bool CLOSELY>
__attribute__((noinline)) void pass(const Job& job, Query* const* query, int64_t first, int64_t last) {
    constexpr int PARTS = BLOCK / VB;
    const int64_t steps = (job.groups + 1) / 2, end = (last - first) * PARTS;
    const uint8_t* start = job.entities + first * job.row;
    const auto column = [&](int64_t i) { return start + i / PARTS * job.row + i % PARTS * VB; };
    const uint8_t* columns[V];
    int64_t i = 0;
    const bool apart = steps * BLOCK < job.row;  // the first codes of more: no processor guesses where the next ones lie
    for (; i + V <= end; i += V) {
        for (int64_t b = SOON; apart && b < SOON + std::max(1, V / PARTS); b++)
            for (int64_t s = 0; s < steps; s++) __builtin_prefetch(column(i + b * PARTS) + s * BLOCK);
        for (int v = 0; v < V; v++) columns[v] = column(i + v);
        vectors<N, V, CLOSELY>(columns, steps, query, i);
    }
    for (; i < end; i++) {
        columns[0] = column(i);
        vectors<N, 1, CLOSELY>(columns, steps, query, i);
    }
}

#if defined(WIDE)
// For many queries the codes of a chunk are turned first: a word holds eight codes of an entity, two a byte, in two lines
// of indices into 64 bytes, four tables beside each other. Then a product adds up four bytes at once.
void turn(const Job& job, int64_t first, int64_t last, Line* out) {
    static constexpr uint8_t nothing[BLOCK] = {};
    const int64_t steps = (job.groups + 1) / 2;
    for (int64_t block = first; block < last; block++)
        for (int64_t s = 0; s < steps; s += 4, out += 8) {
            const uint8_t* row[4];
            for (int i = 0; i < 4; i++)
                row[i] = s + i < steps ? job.entities + block * job.row + (s + i) * BLOCK : nothing;
            uint32_t* low = reinterpret_cast<uint32_t*>(out);
            for (int e = 0; e < BLOCK; e++) {
                const uint32_t word = row[0][e] | row[1][e] << 8 | row[2][e] << 16 | uint32_t(row[3][e]) << 24;
                low[e] = (word & 0x0f0f0f0f) | 0x30201000, low[BLOCK + e] = (word >> 4 & 0x0f0f0f0f) | 0x30201000;
            }
        }
}

template <int N, bool CLOSELY>
__attribute__((noinline)) void turned_pass(const Line* line, int64_t octets, Query* const* query, int64_t blocks) {
    const __m512i ones = _mm512_set1_epi8(1);
    for (int64_t block = 0; block < blocks; block++) {
        __m512i sum[N][4] = {};
        for (int part = 0; part <= int(CLOSELY); part++) {
            const Line* codes = line + block * octets * 8;
            for (int64_t o = 0; o < octets; o++, codes += 8) {
                __m512i x[4], y[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    x[i] = _mm512_load_si512(codes + i), y[i] = _mm512_load_si512(codes + 4 + i);
                    asm("" : "+v"(x[i]), "+v"(y[i]));  // to be loaded once, not at each use
                }
#pragma GCC unroll 4
                for (int j = 0; j < N; j++) {
                    const Line* table = (part ? query[j]->low : query[j]->high).data() + o * 2;
                    const __m512i one = _mm512_load_si512(table), other = _mm512_load_si512(table + 1);
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++) {
                        const __m512i a = _mm512_permutexvar_epi8(x[i], one), b = _mm512_permutexvar_epi8(y[i], other);
                        const __m512i both = _mm512_add_epi8(a, b);
                        // as _mm512_dpbusd_epi32, for which the compiler copies the sum to and fro
                        asm("vpdpbusd %2, %1, %0" : "+v"(sum[j][i]) : "v"(both), "v"(ones));
                    }
                }
            }
            if (CLOSELY && part == 0)
                for (auto& four : sum)
                    for (auto& one : four) one = _mm512_slli_epi32(one, 7);
        }
        for (int j = 0; j < N; j++) {
            const auto at_least = [&](Bound bound) {
                const __m512i edge = _mm512_set1_epi32(CLOSELY ? bound.high * RADIX + bound.low : bound.high);
                uint64_t out = 0;
                for (int i = 0; i < 4; i++) out |= uint64_t(_mm512_cmpge_epu32_mask(sum[j][i], edge)) << i * 16;
                return out;
            };
            query[j]->not_below[block] = at_least(query[j]->least[CLOSELY]);
            query[j]->surely[block] = at_least(query[j]->above[CLOSELY]);
        }
    }
}
#endif

template <bool CLOSELY>
void passes(const Job& job, const std::vector<Query*>& queries, int64_t first, int64_t last, [[maybe_unused]] const Line* turned) {
    Query* const *query = queries.data(), *const *end = query + queries.size();
#if defined(WIDE)
    if (turned) {
        const int64_t octets = (job.groups + 7) / 8;
        for (; query + QUERIES <= end; query += QUERIES) turned_pass<QUERIES, CLOSELY>(turned, octets, query, last - first);
        for (; query < end; query++) turned_pass<1, CLOSELY>(turned, octets, query, last - first);
    }
#else
    for (; query + QUERIES <= end; query += QUERIES) pass<QUERIES, ABREAST, CLOSELY>(job, query, first, last);
#endif
    for (; query < end; query++) pass<1, ALONE, CLOSELY>(job, query, first, last);
}

// after a pass: count what is above, and score what is open; returns how many were
template <bool TOP> int64_t sort_out(const Job& job, Query& query, int64_t first, int64_t last) {
    int64_t count = 0;
    float score[LANES];
    for (int64_t block = first; block < last; block++) {
        uint64_t open = query.not_below[block - first];
        if (!open) continue;
        const uint64_t there = query.candidates.of(block);
        if (!TOP) {
            const uint64_t above = query.surely[block - first];
            query.greater += __builtin_popcountll(above & there), open &= ~above;
        }
        open &= there;
        count += __builtin_popcountll(open);
        for (int64_t e = block * BLOCK; open; e += LANES, open >>= LANES) {
            uint32_t bits = open & 0xffff;
            if (!bits) continue;
            quarter(job, query, e, bits, score);
            for (; bits; bits &= bits - 1) {
                const int i = __builtin_ctz(bits);
                if constexpr (TOP) {
                    query.best.offer(score[i], int32_t(e + i));
                } else {
                    query.greater += score[i] > query.goal, query.equal += score[i] == query.goal;
                }
            }
        }
    }
    if (TOP && query.best.full()) {
        const float bar = query.best.bar();
        // An entity that beats the bar is seldom far below the best in any one group: the bytes are for those that
        // may. In trained codebooks one group's range is often many times that of the others.
        const double reach = std::max((query.most - bar) / 4, query.widest / 64);
        if (!query.blind && std::isfinite(bar) && reach < query.step * MOST * .9) quantise(job, query, float(reach));
        aim(query, bar, true);
    }
    return count;
}

template <bool TOP> void scan(const Job& job, std::vector<Query>& query, int64_t from, int64_t to) {
    const int64_t most = std::clamp<int64_t>(CHUNK_BYTES / job.row, 1, CHUNK), least = TOP ? 1 : std::min(FIRST, most);
    std::vector<Query*> order[2];
    std::vector<Line> turned;
#if defined(WIDE)
    if (query.size() >= QUERIES) turned.resize(most * ((job.groups + 7) / 8) * 8);
#endif
    // the first chunks are small: the best so far, or how many are near, help in the next
    for (int64_t first = from, last; first < to; first = last) {
        last = std::min(to, first + std::clamp(first - from, least, most));
        for (auto& some : order) some.clear();
        for (auto& one : query) order[one.closely].push_back(&one);
#if defined(WIDE)
        if (turned.size()) turn(job, first, last, turned.data());
#endif
        passes<false>(job, order[0], first, last, turned.size() ? turned.data() : nullptr);
        passes<true>(job, order[1], first, last, turned.size() ? turned.data() : nullptr);
        for (auto& one : query) {
            const int64_t open = sort_out<TOP>(job, one, first, last);
            if (!TOP || first - from >= 256) one.closely |= !one.blind && open * 2 > last - first;
        }
    }
}

void scan_codes(const Job& job, int64_t n, int64_t count, int64_t from, int64_t to, Tally* tally) {
    std::vector<Query> work(count);
    for (int64_t j = 0; j < count; j++) {
        Query& query = work[j];
        query.table.resize(job.groups * 16);
        make_table(job, job.queries + (n + j) * job.width, query.table.data());
        quantise(job, query);
        query.candidates = Candidates(job, n + j, from);
        query.greater = query.equal = 0, query.closely = false;
        query.best.k = size_t(std::min<int64_t>(job.k, job.num_entities));
        const auto own = [&] { return job.goal ? job.goal[n + j] : score_of(job, query, job.target[n + j]); };
        aim(query, job.target ? own() : -INFINITE, !job.target);
    }
    job.target ? scan<false>(job, work, from, to) : scan<true>(job, work, from, to);
    for (int64_t j = 0; j < count; j++) {
        tally[j].greater = work[j].greater, tally[j].equal = work[j].equal;
        tally[j].best = std::move(work[j].best.heap);
    }
}

// ---- rows -----------------------------------------------------------------------------------------------------------
// A vector is as wide as the processor's, all of a tile or a part of it: a wider one would lie in memory.
constexpr int VF = VB / 4, PARTS = LANES / VF;  // floats of a vector, and vectors of a tile
typedef float V __attribute__((vector_size(VB)));
typedef int32_t I __attribute__((vector_size(VB)));
constexpr int TOGETHER = 8;  // queries that share a load
constexpr int VECTORS = BLOCK / VF, TASK = 64;  // queries that share a pass over a group of blocks
constexpr int64_t GROUP_BYTES = 256 << 10;

inline V multiply_add(V a, V b, V c) {
#if defined(WIDE)
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(MIDDLE)
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(NEON)
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}
inline V magnitude(V x) { return (V)((I)x & 0x7fffffff); }
inline V exact_root(V x) {
#if defined(MIDDLE)
    return (V)_mm256_sqrt_ps((__m256)x);
#else
    V s;
    for (int i = 0; i < VF; i++) s[i] = std::sqrt(x[i]);
    return s;
#endif
}
inline V root(V x) {  // never of a negative number
#if defined(WIDE)
    // estimate and one Newton step: within 2 units in the last place, and faster than the exact instruction
    const __m512 a = (__m512)(x + 1e-30f);
    const V y = (V)_mm512_rsqrt14_ps(a), s = (V)a * y;
    return s + s * (.5f - .5f * s * y);
#else
    return exact_root(x);
#endif
}
inline uint64_t bits(I x) {  // of lanes that are −1 or 0
#if defined(WIDE)
    return _mm512_movepi32_mask((__m512i)x);
#elif defined(MIDDLE)
    return uint32_t(_mm256_movemask_ps((__m256)x));
#else
    uint64_t out = 0;
    for (int i = 0; i < VF; i++) out |= uint64_t(x[i] & 1) << i;
    return out;
#endif
}

// as many numbers as a vector has, at any address
template <int TYPE> inline V numbers(const uint8_t* at, V scale) {
    if constexpr (TYPE == FLOAT) {
        V out;
        std::memcpy(&out, at, sizeof out);
        return out;
    } else if constexpr (TYPE == BYTE) {
#if defined(WIDE)
        const __m128i small = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
        return (V)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(small)) * scale;
#elif defined(MIDDLE)
        const __m128i small = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
        return (V)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(small)) * scale;
#else
        typedef int8_t Small __attribute__((vector_size(VF)));
        Small x;
        std::memcpy(&x, at, sizeof x);
        return __builtin_convertvector(__builtin_convertvector(x, I), V) * scale;
#endif
    } else {
#if defined(WIDE)
        return (V)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
#elif defined(MIDDLE)
        return (V)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#else
        typedef uint16_t Halves __attribute__((vector_size(2 * VF)));
        Halves x;
        std::memcpy(&x, at, sizeof x);
        const I wide = __builtin_convertvector(x, I);
        const I special = (wide & 0x7c00) == 0x7c00;  // infinite or no number: the largest exponent
        const V value = (V)((wide & 0x7fff) << 13) * 0x1p112f;
        return (V)((I)value | (special & 0x7f800000) | (wide & 0x8000) << 16);
#endif
    }
}

template <int KIND, bool SQUARED, int TYPE> struct Rows {
    static constexpr int64_t BYTES = TYPE == FLOAT ? 4 : TYPE == HALF ? 2 : 1;

    // scores [N][T] of N queries [N][width] and T vectors of entities, the first of which is number `first`
    template <int N, int T>
    static __attribute__((noinline)) void score(const Job& job, const float* const* q, int64_t first, V out[][VECTORS]) {
        const int64_t W = job.row;
        const uint8_t* rows = job.entities + first / PARTS * W * LANES * BYTES + first % PARTS * VF * BYTES;
        V s[N][T] = {}, scale[T] = {};
        if constexpr (TYPE == BYTE)
            for (int t = 0; t < T; t++) {
                const int64_t e = (first + t) * VF, there = std::min<int64_t>(VF, job.num_entities - e);
                if (!job.scale) scale[t] = 1 - V{};
                if (job.scale && there > 0) std::memcpy(&scale[t], job.scale + e * 4, there * 4);
            }
        const auto at = [&](int64_t i, int t) {  // t > 0: from the first vector of a tile on
            return numbers<TYPE>(rows + ((t / PARTS * W + i) * LANES + t % PARTS * VF) * BYTES, scale[t]);
        };
        const auto number = [&](int j, int64_t i) { return q[j][i] - V{}; };
        if constexpr (KIND == DOT) {
            for (int64_t i = 0; i < W; i++)
                for (int t = 0; t < T; t++) {
                    const V x = at(i, t);
                    for (int j = 0; j < N; j++) s[j][t] = multiply_add(number(j, i), x, s[j][t]);
                }
        } else if constexpr (KIND == DISTANCE) {
            for (int64_t i = 0; i < W; i++)
                for (int t = 0; t < T; t++) {
                    const V x = at(i, t);
                    for (int j = 0; j < N; j++) {
                        const V u = number(j, i) - x;
                        s[j][t] = SQUARED ? multiply_add(u, u, s[j][t]) : s[j][t] + magnitude(u);
                    }
                }
        } else if constexpr (KIND == MODULUS) {
            for (int64_t i = 0; i < W / 2; i++)
                for (int t = 0; t < T; t++) {
                    const V x = at(i, t), y = at(W / 2 + i, t);
                    for (int j = 0; j < N; j++) {
                        const V a = number(j, i) - x, b = number(j, W / 2 + i) - y;
                        s[j][t] += root(multiply_add(a, a, b * b));
                    }
                }
        } else {
            V along[N][T] = {};
            for (int64_t i = 0; i < W; i++)
                for (int t = 0; t < T; t++) {
                    const V x = at(i, t);
                    for (int j = 0; j < N; j++) along[j][t] = multiply_add(number(j, W + i), x, along[j][t]);
                }
            for (int64_t i = 0; i < W; i++)
                for (int t = 0; t < T; t++) {
                    const V x = at(i, t);
                    for (int j = 0; j < N; j++) {
                        const V u = multiply_add(along[j][t], number(j, W + i), number(j, i) - x);
                        s[j][t] = SQUARED ? multiply_add(u, u, s[j][t]) : s[j][t] + magnitude(u);
                    }
                }
        }
        for (int j = 0; j < N; j++)
            for (int t = 0; t < T; t++) out[j][t] = KIND == DOT ? s[j][t] : SQUARED ? -exact_root(s[j][t]) : -s[j][t];
    }

    struct Asked {
        const float* vector;
        float goal = 0;
        Candidates candidates;
        Best best;
        int64_t greater = 0, equal = 0;

        void take(const Job& job, int64_t block, const V* s) {
            const uint64_t there = candidates.of(block);
            uint64_t first = 0, second = 0;
            if (job.target) {
                for (int t = 0; t < VECTORS; t++) {
                    first |= bits(s[t] > goal - V{}) << t * VF, second |= bits(s[t] == goal - V{}) << t * VF;
                }
                greater += __builtin_popcountll(first & there), equal += __builtin_popcountll(second & there);
                return;
            }
            const V bar = best.bar() - V{};
            for (int t = 0; t < VECTORS; t++) first |= bits(best.full() ? s[t] > bar : s[t] >= bar) << t * VF;
            for (first &= there; first; first &= first - 1) {
                const int i = __builtin_ctzll(first);
                best.offer(s[i / VF][i % VF], int32_t(block * BLOCK + i));
            }
        }
    };

    static void scan(const Job& job, int64_t n, int64_t count, int64_t from, int64_t to, Tally* tally) {
        const int64_t group = std::max<int64_t>(1, GROUP_BYTES / (job.row * BLOCK * BYTES));
        const int64_t vectors = (job.num_entities + VF - 1) / VF;
        std::vector<Asked> asked(count);
        V s[TOGETHER][VECTORS] = {};
        for (int64_t j = 0; j < count; j++) {
            Asked& one = asked[j];
            one.vector = job.queries + (n + j) * job.width;
            one.candidates = Candidates(job, n + j, from);
            one.best.k = size_t(std::min<int64_t>(job.k, job.num_entities));
            if (job.goal) {
                one.goal = job.goal[n + j];
            } else if (job.target) {
                const int64_t e = job.target[n + j];
                score<1, 1>(job, &one.vector, e / VF, s);
                one.goal = s[0][0][e % VF];
            }
        }
        for (int64_t first = from; first < to; first += group)
            for (int64_t j = 0; j < count;) {
                const int64_t together = count - j >= TOGETHER ? TOGETHER : 1;
                const float* q[TOGETHER];
                for (int64_t i = 0; i < together; i++) q[i] = asked[j + i].vector;
                for (int64_t block = first; block < std::min(to, first + group); block++) {
                    const int64_t there = std::min<int64_t>(VECTORS, vectors - block * VECTORS);
                    if (together == 1 && there == VECTORS) {
                        score<1, VECTORS>(job, q, block * VECTORS, s);
                    } else {
                        for (int64_t t = 0; t < there; t++) {
                            V part[TOGETHER][VECTORS];
                            together == 1 ? score<1, 1>(job, q, block * VECTORS + t, part)
                                          : score<TOGETHER, 1>(job, q, block * VECTORS + t, part);
                            for (int64_t i = 0; i < together; i++) s[i][t] = part[i][0];
                        }
                    }
                    for (int64_t i = 0; i < together; i++) asked[j + i].take(job, block, s[i]);
                }
                j += together;
            }
        for (int64_t j = 0; j < count; j++) {
            tally[j].greater = asked[j].greater, tally[j].equal = asked[j].equal;
            tally[j].best = std::move(asked[j].best.heap);
        }
    }
};

template <int TYPE> int32_t rows_of(const Job& job) {
    const int64_t bytes = job.row * BLOCK * (TYPE == FLOAT ? 4 : TYPE == HALF ? 2 : 1);
    const auto run = [&](auto scan) { return deal(job, bytes, TASK, scan); };
    const auto scan = [&](auto how) {
        return run([&](auto... x) { decltype(how)::scan(job, x...); });
    };
    switch (job.kind) {
        case DOT: return scan(Rows<DOT, false, TYPE>{});
        case DISTANCE: return job.squared ? scan(Rows<DISTANCE, true, TYPE>{}) : scan(Rows<DISTANCE, false, TYPE>{});
        case MODULUS: return scan(Rows<MODULUS, false, TYPE>{});
        default: return job.squared ? scan(Rows<HYPERPLANE, true, TYPE>{}) : scan(Rows<HYPERPLANE, false, TYPE>{});
    }
}

}  // namespace

// all: 0, or 1 where memory ran out
extern "C" int32_t kgd_codes(const Job* job) {
    const int64_t most = std::clamp<int64_t>(TABLE_BYTES / (job->groups * 16), 16, 128);
    return deal(*job, job->row, most, [&](auto... x) { scan_codes(*job, x...); });
}

extern "C" int32_t kgd_listed(const Job* job) {  // codes: the best of those that `known` lists, in place of all
    return each(job->n, job->threads, [job](int64_t n) {
        Query query;
        query.table.resize(job->groups * 16), query.best.k = size_t(job->k);
        make_table(*job, job->queries + n * job->width, query.table.data());
        for (int64_t i = job->known_start[n]; i < job->known_end[n]; i++)
            query.best.offer(score_of(*job, query, job->known[i]), job->known[i]);
        write_best(*job, n, query.best.heap);
    });
}

extern "C" int32_t kgd_rows(const Job* job) {
    return job->type == FLOAT ? rows_of<FLOAT>(*job) : job->type == HALF ? rows_of<HALF>(*job) : rows_of<BYTE>(*job);
}

extern "C" int64_t kgd_size() { return sizeof(Job); }

extern "C" int32_t kgd_level() {  // the best of setup.py's libraries for this processor: 0, 1 (AVX2) or 2 (AVX-512)
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
    return wide ? 2 : 1;
#else
    return 0;
#endif
}
