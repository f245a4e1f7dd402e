// Filtered ranks and top-k answers over entities of four-bit codes: exact, yet most entities are scored in bytes.
//   -DKGD_GROUPS=M codes of an entity   -DKGD_PATH=0|1|2, the best instructions to use: portable, AVX2, AVX-512
// A query is a table [M][16] and the score of an entity the sum of the M entries that its codes choose. The table is
// rounded to bytes, and byte shuffles look up 64 entries at a time (André et al. 2015, FAISS's fast scan). A byte of
// group m counts w[m] steps (with AVX-512 one number for two groups), so that small numbers are rounded finely. The sum
// of bytes bounds the score: an entity whose bounds leave open on which side of the target it lies is scored in
// float32, and only that decides. A float32 score is added up in one order, group m into partial sum m mod 4, wherever
// it is computed, so equal codes tie exactly. Groups should come with those that decide most first.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>
#include <omp.h>
#include "job.h"
#include "memory.h"
#ifndef KGD_PATH
#define KGD_PATH 2
#endif
#if KGD_PATH == 2 && defined(__AVX512VBMI__) && defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && \
    defined(__AVX512VPOPCNTDQ__)
#define WIDE
#include <immintrin.h>
#elif KGD_PATH >= 1 && defined(__AVX2__)
#define MIDDLE
#include <immintrin.h>
#endif

namespace {

constexpr int M = KGD_GROUPS, BLOCK = 64, TASK = 128;  // entities of a block; queries that share a pass over a chunk
constexpr int BATCH = 64;  // entities that are scored in float32 at a time, at least
constexpr int64_t CHUNK_BYTES = 128 << 10;  // of codes, which stay in cache for these queries
constexpr int64_t CHUNK = 64, FIRST = 16;  // blocks of a chunk, at most, and of the first
// How a pass over a chunk tells which entities are surely below the goal, which surely above it, and which are open.
// BOTH: by the sums of high bytes. SHORT, where few come near: by those of the early steps, and all that is not surely
// below is open. CLOSELY, where the goal lies among many: by the sums of all bytes, so that less is open.
enum Mode { SHORT, BOTH, CLOSELY };
// Entities of a block at which `choose` changes the mode. They and EARLY decide speed alone. Measured with AVX-512, one
// thread, random tables whose ranges fall tenfold from the first of 128 groups to the last, 40,943 entities: µs a query
// whose target is among the ten best, the thousand best, or anywhere.
//   as set         24  28  34      FEW, SOME, MANY = 4, 8, 12  26  62  44
//   never CLOSELY  24  28  73                        0, 1, 2   21  25  33
//   never SHORT    18  25  35      EARLY = STEPS / 2           20  27  34
// On these tables SHORT does not pay; it was set for trained codebooks, whose first groups decide more.
constexpr int64_t FEW = 1, SOME = 2, MANY = 3;
constexpr float INFINITE = std::numeric_limits<float>::infinity();

// where the code of a group lies: in a byte, beside those of three other groups, or in half of an entity's byte
#ifdef WIDE
constexpr int STEPS = (M + 7) / 8, SLOTS = STEPS * 8, BYTES = SLOTS * BLOCK;
constexpr int EARLY = STEPS - STEPS / 4;  // of a SHORT pass
constexpr int RADIX = 128, MOST = 32766;  // of two groups' sums: their bytes are added in bytes
constexpr int HEAVIEST = 127;  // weights are signed bytes, all sums fit 31 bits
constexpr int ROW = (STEPS + 3) / 4 * 4;  // words of an entity beside each other, to look at few entities
inline int lane(int b) { return b % 16 / 4 * 16 + b / 16 * 4 + b % 4; }  // of a block's words, in the order of `signs`
inline int64_t place(int64_t e, int m) {
    return ((e / BLOCK * STEPS * 2 + m / 4) * BLOCK + lane(e % BLOCK)) * 4 + m % 4;
}
#else
constexpr int STEPS = (M + 1) / 2, BYTES = STEPS * BLOCK, SLOTS = STEPS * 2;
constexpr int EARLY = STEPS, RADIX = 256, HEAVIEST = 1;
constexpr int MOST = (M > 257 ? 65535 / M : 255) * RADIX + RADIX - 1;  // sums of high bytes are 16 bits wide
inline int64_t place(int64_t e, int m) { return (e / BLOCK * STEPS + m / 2) * BLOCK + e % BLOCK; }
#endif

// entities: [⌈E/64⌉][BYTES], then with AVX-512 int32 [⌈E/64⌉·64][ROW]; queries: tables [n, M, 16], with a book vectors
// [n, M·size], which make the tables by inner products
using Job = JobOf<uint8_t>;

using Answer = std::pair<float, int32_t>;  // (−score, id): the worst kept answer is the largest

struct Query {
    alignas(64) uint8_t high[SLOTS * 16], low[SLOTS * 16];  // the table: w · (RADIX·high + low)
    int32_t weight[(SLOTS + 7) / 8];  // a byte for each pair of groups
    alignas(64) int32_t waiting[BATCH + BLOCK + 16];  // entities to score in float32, ascending
    int32_t count;
    int32_t least, band;  // sums of high bytes below `least` are surely below the goal, above least + band surely above
    int32_t short_least;  // sums of the early steps' high bytes below it are surely below the goal
    int32_t fine_least, fine_most;  // so are whole sums below and above these
    int32_t greater, equal, k, weights, early_weights;
    alignas(64) uint64_t below[CHUNK], above[CHUNK];  // the last pass's findings, a bit for each entity
    int64_t open, near;  // how many were neither; and with those above
    Mode mode;
    bool tried_short;  // and too much was open
    bool blind;        // its table holds numbers that are not finite
    float goal;
    double base, step, slack, late;  // late: the most that steps after the early ones add
    const float* table;
    alignas(64) float made[M * 16];  // the table where it is made of a vector
    const int32_t *known, *known_end;
    std::vector<Answer> heap;
};

// ---- float32 scores -------------------------------------------------------------------------------------------------
// scores of n ≤ 16 entities; what stands past them in `ids` and `out` is of no use, but must be there
#ifdef WIDE
struct Words {  // of sixteen entities, of which n count: eight codes of each at a time
    const __m128i* row[16];
    Words(const Job& job, const int32_t* ids, int n) {
        const int64_t blocks = (job.num_entities + BLOCK - 1) / BLOCK;
        const __m128i* rows = reinterpret_cast<const __m128i*>(job.entities + blocks * BYTES);
        if (n < 16) {
            for (int i = 0; i < 16; i++) row[i] = rows + int64_t(ids[i < n ? i : 0]) * (ROW / 4);
        } else {
            for (int i = 0; i < 16; i++) row[i] = rows + int64_t(ids[i]) * (ROW / 4);
        }
    }
    void four(int s, __m512i* x) const {  // the words of steps s to s + 3: a transpose
        __m512i r[4];
        for (int i = 0; i < 4; i++) {
            r[i] = _mm512_castsi128_si512(_mm_load_si128(row[i] + s / 4));
            r[i] = _mm512_inserti32x4(r[i], _mm_load_si128(row[4 + i] + s / 4), 1);
            r[i] = _mm512_inserti32x4(r[i], _mm_load_si128(row[8 + i] + s / 4), 2);
            r[i] = _mm512_inserti32x4(r[i], _mm_load_si128(row[12 + i] + s / 4), 3);
        }
        const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpacklo_epi32(r[2], r[3]);
        const __m512i c = _mm512_unpackhi_epi32(r[0], r[1]), d = _mm512_unpackhi_epi32(r[2], r[3]);
        x[0] = _mm512_unpacklo_epi64(a, b), x[1] = _mm512_unpackhi_epi64(a, b);
        x[2] = _mm512_unpacklo_epi64(c, d), x[3] = _mm512_unpackhi_epi64(c, d);
    }
};
inline void scores(const Job& job, const float* table, const int32_t* ids, int n, float* out) {
    const Words words(job, ids, n);
    __m512 sum[4] = {};
    __m512i x[4];
    for (int s = 0; s < STEPS; s++) {
        if (s % 4 == 0) words.four(s, x);
        __m512i word = x[s % 4];
        for (int i = 0; i < 8; i++, word = _mm512_srli_epi32(word, 4))  // a shuffle reads the lowest four bits
            if (const int m = s * 8 + i / 2 + i % 2 * 4; m < M)
                sum[m % 4] = _mm512_add_ps(sum[m % 4], _mm512_permutexvar_ps(word, _mm512_loadu_ps(table + m * 16)));
    }
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}
#else
inline void scores(const Job& job, const float* table, const int32_t* ids, int n, float* out) {
    for (int i = 0; i < n; i++) {
        float sum[4] = {};
        for (int m = 0; m < M; m++)
            sum[m % 4] += table[m * 16 + (job.entities[place(ids[i], m)] >> m % 2 * 4 & 15)];
        out[i] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
}
#endif

#ifdef WIDE
// A shuffle looks up four codes of sixteen entities, each in its quarter of a table of 64 bytes, which the code's byte
// names. Groups m and m + 4 of a step are of one weight.
inline __m512i quarters(__m512i x) {  // the codes in the low halves of bytes
    const __m512i nibble = _mm512_set1_epi32(0x0f0f0f0f), quarter = _mm512_set1_epi32(0x30201000);
    return _mm512_ternarylogic_epi32(x, nibble, quarter, 0xea);  // (x & nibble) | quarter
}
inline __m512i look_up(const uint8_t* bytes, __m512i x, __m512i y) {  // of eight groups, added in pairs
    const __m512i* table = reinterpret_cast<const __m512i*>(bytes);
    return _mm512_add_epi8(_mm512_permutexvar_epi8(x, table[0]), _mm512_permutexvar_epi8(y, table[1]));
}
inline __m512i fine_sums(const Job& job, const Query& query, const int32_t* ids, int n) {
    const Words words(job, ids, n);
    __m512i high = {}, low = {}, word[4];
    for (int s = 0; s < STEPS; s++) {
        if (s % 4 == 0) words.four(s, word);
        const __m512i x = quarters(word[s % 4]), y = quarters(_mm512_srli_epi16(word[s % 4], 4));
        const __m512i weight = _mm512_set1_epi32(query.weight[s]);
        high = _mm512_dpbusd_epi32(high, look_up(query.high + s * 128, x, y), weight);
        low = _mm512_dpbusd_epi32(low, look_up(query.low + s * 128, x, y), weight);
    }
    return _mm512_add_epi32(_mm512_slli_epi32(high, 7), low);
}
#endif

// ---- bytes and bounds -----------------------------------------------------------------------------------------------
typedef float Sixteen __attribute__((vector_size(64), aligned(4)));

inline bool all_finite(const float* table) {
    Sixteen nothing = {};  // x · 0, or NaN
    for (int m = 0; m < M; m++) nothing += *reinterpret_cast<const Sixteen*>(table + m * 16) * 0.f;
    bool finite = true;
    for (int i = 0; i < 16; i++) finite &= nothing[i] == 0;
    return finite;
}

inline std::pair<float, float> ends(const float* x) {  // the smallest and largest of sixteen
#ifdef WIDE
    const __m512 all = _mm512_loadu_ps(x);
    return {_mm512_reduce_min_ps(all), _mm512_reduce_max_ps(all)};
#else
    const auto found = std::minmax_element(x, x + 16);
    return {*found.first, *found.second};
#endif
}

// v below 2¹⁶ with |table[m][c] − smallest[m] − w[m]·step·v| ≤ ½ w[m]·step; base, the sum of the smallest; slack, the
// largest difference of base + step·(sum of w·v) and a float32 score: these halves, and what float32 rounds off
void quantise(Query& query, const float* table) {
    query.table = table;
    query.blind = !all_finite(table);
    if (query.blind) {  // numbers that bytes cannot stand for: all bytes are zero, and float32 decides
        std::memset(query.high, 0, sizeof query.high), std::memset(query.low, 0, sizeof query.low);
        std::memset(query.weight, 0, sizeof query.weight);
        return;
    }
    double range[M], inverse[M], largest = 0, size = 0;
    float smallest[M], top[M];
    query.base = 0;
    for (int m = 0; m < M; m++) std::tie(smallest[m], top[m]) = ends(table + m * 16);
    for (int m = 0; m < M; m++) range[m] = double(top[m]) - smallest[m];
    for (int m = 0; m < M; m++) {
        query.base += smallest[m];
        size += std::max(std::fabs(top[m]), std::fabs(smallest[m]));
    }
#ifdef WIDE
    for (int m = 0; m + 4 < M; m++)  // what the two of a pair take together
        if (m % 8 < 4) range[m] = range[m + 4] = range[m] + range[m + 4];
#endif
    for (int m = 0; m < M; m++) largest = std::max(largest, range[m]);
    query.step = largest > 0 ? largest / (double(MOST) * HEAVIEST) : 1;
    query.weights = query.early_weights = 0, query.late = 0;
    int32_t w[M];
    const double steps = query.step * MOST;
    for (int m = 0; m < M; m++) {
        w[m] = std::min(std::max(int32_t(std::ceil(range[m] / steps)), 1), HEAVIEST);
        inverse[m] = 1 / (query.step * w[m]);
    }
    for (int m = 0; m < M; m++) {
        reinterpret_cast<int8_t*>(query.weight)[m / 8 * 4 + m % 4] = int8_t(w[m]), query.weights += w[m];
        if (m < EARLY * 8) {
            query.early_weights += w[m];
        } else {
            query.late += w[m] * ((double(top[m]) - smallest[m]) * inverse[m] + 1);
        }
#ifdef WIDE
        const __m512d low = _mm512_set1_pd(smallest[m]), scale = _mm512_set1_pd(inverse[m]), half = _mm512_set1_pd(.5);
        __m256i v[2];
        for (int i = 0; i < 2; i++) {
            const __m512d x = _mm512_sub_pd(_mm512_cvtps_pd(_mm256_loadu_ps(table + m * 16 + i * 8)), low);
            v[i] = _mm512_cvttpd_epi32(_mm512_fmadd_pd(x, scale, half));
        }
        const __m256i both = _mm512_cvtepi32_epi16(_mm512_inserti64x4(_mm512_castsi256_si512(v[0]), v[1], 1));
        const __m256i low_bits = _mm256_and_si256(both, _mm256_set1_epi16(RADIX - 1));
        _mm_store_si128((__m128i*)(query.low + m * 16), _mm256_cvtepi16_epi8(low_bits));
        _mm_store_si128((__m128i*)(query.high + m * 16), _mm256_cvtepi16_epi8(_mm256_srli_epi16(both, 7)));
#else
        for (int c = 0; c < 16; c++) {
            const int32_t v = int32_t((table[m * 16 + c] - double(smallest[m])) * inverse[m] + .5);
            query.high[m * 16 + c] = uint8_t(v / RADIX), query.low[m * 16 + c] = uint8_t(v % RADIX);
        }
#endif
    }
    // half a step each, and a millionth for what the doubles round off: v < 2¹⁶ of 53 bits is off by less than 2⁻³⁶
    query.slack = query.weights * query.step * .500001 + (M + 4) * (size * FLT_EPSILON + FLT_MIN);
}

inline void leave_open(Query& query) { query.band = 1 << 29, query.fine_most = INT32_MAX; }  // no entity is surely above

void aim(Query& query, float goal) {
    query.goal = goal;
    if (query.blind || !std::isfinite(goal)) {
        query.least = query.short_least = query.fine_least = 0, leave_open(query);
        return;
    }
    constexpr double END = (1 << 30) + (1 << 29);  // above every sum
    const double below = std::clamp(std::ceil((goal - query.base - query.slack) / query.step), -1., END);
    const double above = std::clamp(std::floor((goal - query.base + query.slack) / query.step), -1., END);
    query.fine_least = int32_t(below), query.fine_most = int32_t(above);
    query.least = int32_t(std::max(0., std::ceil((below - (RADIX - 1.) * query.weights) / RADIX)));
    query.band = int32_t(std::floor(above / RADIX)) - query.least;
    const double early = below - query.late - (RADIX - 1.) * query.early_weights;
    query.short_least = int32_t(std::max(0., std::ceil(early / RADIX)));
}

// ---- entities that wait for their float32 score ---------------------------------------------------------------------
void keep(Query& query, int32_t e, float score) {
    if (std::isnan(score)) return;
    const Answer answer = {-score, e};
    auto& heap = query.heap;
    const bool full = int(heap.size()) == query.k;
    if ((full && !(answer < heap.front())) || std::binary_search(query.known, query.known_end, e)) return;
    if (full) std::pop_heap(heap.begin(), heap.end()), heap.pop_back();
    heap.push_back(answer), std::push_heap(heap.begin(), heap.end());
}

// score those that wait, all of them or whole vectors
template <bool TOP> __attribute__((noinline)) void settle(const Job& job, Query& query, bool all) {
    const int count = all ? query.count : query.count / 16 * 16;
    int open = count;
#ifdef WIDE
    open = 0;
    for (int at = 0; at < count; at += 16) {  // sums of all bytes decide most
        const __m512i sum = fine_sums(job, query, query.waiting + at, std::min(16, count - at));
        const __mmask16 there = 0xffff >> std::max(0, at + 16 - count);
        const __mmask16 above = _mm512_mask_cmpgt_epi32_mask(there, sum, _mm512_set1_epi32(query.fine_most));
        const __mmask16 rest = _mm512_mask_cmpge_epi32_mask(there & ~above, sum, _mm512_set1_epi32(query.fine_least));
        const __m512i ids = _mm512_maskz_compress_epi32(rest, _mm512_loadu_si512(query.waiting + at));
        _mm512_storeu_si512(query.waiting + open, ids);
        query.greater += __builtin_popcount(above), open += __builtin_popcount(rest);
    }
#endif
    for (int at = 0; at < open; at += 16) {
        const int n = std::min(16, open - at);
        alignas(64) float score[16];
        scores(job, query.table, query.waiting + at, n, score);
        if constexpr (TOP) {
            for (int i = 0; i < n; i++) keep(query, query.waiting[at + i], score[i]);
        } else {
            for (int i = 0; i < n; i++) query.greater += score[i] > query.goal, query.equal += score[i] == query.goal;
        }
    }
    query.count -= count;
    std::memmove(query.waiting, query.waiting + count, sizeof(int32_t) * query.count);
    if (TOP && int(query.heap.size()) == query.k) aim(query, -query.heap.front().first), leave_open(query);
}

#ifdef WIDE
inline __m512i numbers() {  // 0 … 63
    struct Numbers {
        alignas(64) uint8_t x[64];
        constexpr Numbers() : x() {
            for (int i = 0; i < 64; i++) x[i] = uint8_t(i);
        }
    };
    static constexpr Numbers n;
    return _mm512_load_si512(n.x);
}
#endif

// ---- sums of bytes --------------------------------------------------------------------------------------------------
// `pass` writes what it finds about N queries and the entities of some blocks into their `below` and `above`.
#ifdef WIDE
constexpr int QUERIES = 4;
inline uint64_t signs(__m512i a, __m512i b) {  // of 64 numbers, in the order of `lane`
    return _mm512_movepi8_mask(_mm512_packs_epi16(a, b));
}
template <int N, Mode MODE>
__attribute__((noinline)) void pass(const Job& job, Query* const* query, int64_t first, int64_t last) {
    __m512i least[N], band[N];  // saturated numbers lie at the band's end or in it, and so are scored in float32
#pragma GCC unroll 16
    for (int j = 0; j < N; j++) {
        const int32_t width = MODE == CLOSELY ? query[j]->fine_most - query[j]->fine_least : query[j]->band;
        band[j] = _mm512_set1_epi16(int16_t(std::min(width, 32767)));
        least[j] = _mm512_set1_epi32(MODE == CLOSELY ? 0 : -(MODE == SHORT ? query[j]->short_least : query[j]->least));
    }
    for (int64_t block = first; block < last; block++) {
        const __m512i* codes = reinterpret_cast<const __m512i*>(job.entities + block * BYTES);
        __m512i sum[N][4];
#pragma GCC unroll 16
        for (int j = 0; j < N; j++)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) sum[j][i] = least[j];
#pragma GCC unroll 2
        for (int part = 0; part < 1 + (MODE == CLOSELY); part++) {
#pragma GCC unroll 2
            for (int s = 0; s < (MODE == SHORT ? EARLY : STEPS); s++) {
                __m512i x[4], y[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    x[i] = _mm512_load_si512(codes + s * 8 + i), y[i] = _mm512_load_si512(codes + s * 8 + 4 + i);
                    asm("" : "+v"(x[i]), "+v"(y[i]));  // to be loaded once, not at each use
                }
#pragma GCC unroll 16
                for (int j = 0; j < N; j++) {
                    const uint8_t* bytes = part ? query[j]->low : query[j]->high;
                    const __m512i* table = reinterpret_cast<const __m512i*>(bytes) + s * 2;
                    __m512i one = _mm512_load_si512(table), other = _mm512_load_si512(table + 1);
                    __m512i weight = _mm512_set1_epi32(query[j]->weight[s]);
                    asm("" : "+v"(one), "+v"(other), "+v"(weight));
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++) {
                        const __m512i a = _mm512_permutexvar_epi8(x[i], one), b = _mm512_permutexvar_epi8(y[i], other);
                        const __m512i both = _mm512_add_epi8(a, b);
                        // as _mm512_dpbusd_epi32, for which the compiler copies the sum to and fro
                        asm("vpdpbusd %2, %1, %0" : "+v"(sum[j][i]) : "v"(both), "v"(weight));
                    }
                }
            }
            if (MODE == CLOSELY && part == 0)
#pragma GCC unroll 16
                for (int j = 0; j < N; j++)
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++) {
                        const __m512i shifted = _mm512_slli_epi32(sum[j][i], 7);
                        sum[j][i] = _mm512_sub_epi32(shifted, _mm512_set1_epi32(query[j]->fine_least));
                    }
        }
#pragma GCC unroll 16
        for (int j = 0; j < N; j++) {
            const __m512i a = _mm512_packs_epi32(sum[j][0], sum[j][1]), b = _mm512_packs_epi32(sum[j][2], sum[j][3]);
            query[j]->below[block - first] = signs(a, b);
            if (MODE != SHORT)
                query[j]->above[block - first] = signs(_mm512_subs_epi16(band[j], a), _mm512_subs_epi16(band[j], b));
        }
    }
}
#else
constexpr int QUERIES = 1;
#ifdef MIDDLE
// a byte of each entity: 32 look-ups a shuffle; 16-bit sums of all bytes, and of the odd ones, which are then taken off
inline void sums(const uint8_t* codes, const uint8_t* bytes, uint16_t* out) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i sum[2] = {}, odd[2] = {};
    for (int s = 0; s < STEPS; s++) {
        const __m256i low = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)(bytes + s * 32)));
        const __m256i high = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)(bytes + s * 32 + 16)));
        for (int i = 0; i < 2; i++) {
            const __m256i x = _mm256_load_si256((const __m256i*)(codes + s * BLOCK + i * 32));
            const __m256i a = _mm256_shuffle_epi8(low, _mm256_and_si256(x, nibble));
            const __m256i b = _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble));
            sum[i] = _mm256_add_epi16(sum[i], _mm256_add_epi16(a, b));
            odd[i] = _mm256_add_epi16(odd[i], _mm256_add_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8)));
        }
    }
    for (int i = 0; i < 2; i++) {
        const __m256i even = _mm256_sub_epi16(sum[i], _mm256_slli_epi16(odd[i], 8));
        const __m256i a = _mm256_unpacklo_epi16(even, odd[i]), b = _mm256_unpackhi_epi16(even, odd[i]);
        _mm256_storeu_si256((__m256i*)(out + i * 32), _mm256_permute2x128_si256(a, b, 0x20));
        _mm256_storeu_si256((__m256i*)(out + i * 32 + 16), _mm256_permute2x128_si256(a, b, 0x31));
    }
}
#else
inline void sums(const uint8_t* codes, const uint8_t* bytes, uint16_t* out) {
    std::memset(out, 0, sizeof(uint16_t) * BLOCK);
    for (int s = 0; s < STEPS; s++)
        for (int e = 0; e < BLOCK; e++)
            out[e] += bytes[s * 32 + (codes[s * BLOCK + e] & 15)] + bytes[s * 32 + 16 + (codes[s * BLOCK + e] >> 4)];
}
#endif
template <int N, Mode> void pass(const Job& job, Query* const* queries, int64_t first, int64_t last) {
    Query& query = **queries;
    for (int64_t block = first; block < last; block++) {
        alignas(64) uint16_t sum[BLOCK];
        sums(job.entities + block * BYTES, query.high, sum);
        int32_t most = 0;
        for (int e = 0; e < BLOCK; e++) most = std::max<int32_t>(most, sum[e]);
        uint64_t not_below = 0, above = 0;
        for (int e = 0; e < BLOCK && most >= query.least; e++) {
            not_below |= uint64_t(sum[e] >= query.least) << e;
            above |= uint64_t(sum[e] > query.least + query.band) << e;
        }
        query.below[block - first] = ~not_below, query.above[block - first] = above;
    }
}
#endif

// after a pass over these blocks: count what is above, put on the list what is open, and settle much of it
template <bool TOP> __attribute__((noinline)) void sort_out(const Job& job, Query& query, int64_t first, int64_t last) {
    const int64_t rest = job.num_entities - (last - 1) * BLOCK;
    if (rest < BLOCK) {
        const uint64_t there = (uint64_t(1) << rest) - 1;
        query.below[last - 1 - first] |= ~there, query.above[last - 1 - first] &= there;
    }
#ifdef WIDE
    // the blocks in which something is open, without a branch for each: it could not be foreseen
    alignas(64) uint64_t open[CHUNK + 8];
    alignas(64) int64_t where[CHUNK + 8];
    int found = 0;
    __m512i count = {}, block = _mm512_add_epi64(_mm512_set1_epi64(first), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    for (int64_t i = 0; i < last - first; i += 8, block = _mm512_add_epi64(block, _mm512_set1_epi64(8))) {
        const __mmask8 there = last - first - i < 8 ? (1 << (last - first - i)) - 1 : 0xff;
        const __m512i below = _mm512_load_si512(query.below + i);
        const __m512i above = query.mode == SHORT ? _mm512_setzero_si512() : _mm512_load_si512(query.above + i);
        count = _mm512_mask_add_epi64(count, there, count, _mm512_popcnt_epi64(above));
        const __m512i rest = _mm512_ternarylogic_epi64(above, below, below, 0x03);  // neither
        const __mmask8 any = _mm512_mask_test_epi64_mask(there, rest, rest);
        _mm512_storeu_si512(open + found, _mm512_maskz_compress_epi64(any, rest));
        _mm512_storeu_si512(where + found, _mm512_maskz_compress_epi64(any, block));
        found += __builtin_popcount(any);
    }
    const int64_t surely = _mm512_reduce_add_epi64(count);
    query.greater += int32_t(surely), query.near = surely, query.open = 0;
    for (int i = 0; i < found; i++) {
        __m512i which = _mm512_maskz_compress_epi8(open[i], numbers());
        const __m512i at = _mm512_set1_epi32(int32_t(where[i] * BLOCK));
        const int size = __builtin_popcountll(open[i]);
        for (int k = 0; k < size; k += 16, which = _mm512_alignr_epi64(which, which, 2)) {
            const __m512i ids = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(which));
            _mm512_storeu_si512(query.waiting + query.count + k, _mm512_add_epi32(ids, at));
        }
        query.count += size, query.open += size;
        if (query.count >= BATCH) settle<TOP>(job, query, false);
    }
    query.near += query.open;
#else
    for (int64_t block = first; block < last; block++) {
        const uint64_t above = query.above[block - first];
        query.greater += __builtin_popcountll(above);
        for (uint64_t open = ~(query.below[block - first] | above); open; open &= open - 1)
            query.waiting[query.count++] = int32_t(block * BLOCK) + __builtin_ctzll(open);
        if (query.count >= BATCH) settle<TOP>(job, query, false);
    }
#endif
    if (TOP) settle<TOP>(job, query, last <= CHUNK);
}

void choose(Query& query, int64_t blocks) {  // how to pass the next chunk, after one of so many blocks
#ifdef WIDE
    if (query.mode == SHORT && query.open > SOME * blocks) {
        query.mode = BOTH, query.tried_short = true;
    } else if (query.mode == BOTH && query.open > MANY * blocks) {
        query.mode = CLOSELY;
    } else if (query.mode == BOTH && query.near <= FEW * blocks && !query.tried_short) {
        query.mode = SHORT;
    }
#endif
}

template <Mode MODE> void passes(const Job& job, Query* const* query, Query* const* end, int64_t first, int64_t last) {
    for (; query + QUERIES <= end; query += QUERIES) pass<QUERIES, MODE>(job, query, first, last);
    if (end - query == 1) pass<1, MODE>(job, query, first, last);
    if (end - query == 2) pass<2, MODE>(job, query, first, last);
    if (end - query == 3) pass<3, MODE>(job, query, first, last);
}

template <bool TOP> void scan(const Job& job, Query* query, int count) {
    const int64_t blocks = (job.num_entities + BLOCK - 1) / BLOCK;
    const int64_t most = std::clamp<int64_t>(CHUNK_BYTES / BYTES, 1, CHUNK), least = TOP ? 1 : std::min(FIRST, most);
    Query* order[3][TASK];
    // the first chunks are small: the best so far, or how many are near, help in the next
    for (int64_t first = 0, last; first < blocks; first = last) {
        last = std::min(blocks, first + std::clamp(first, least, most));
        Query** end[3] = {order[SHORT], order[BOTH], order[CLOSELY]};
        for (int j = 0; j < count; j++) *end[query[j].mode]++ = query + j;
        passes<SHORT>(job, order[SHORT], end[SHORT], first, last);
        passes<BOTH>(job, order[BOTH], end[BOTH], first, last);
        passes<CLOSELY>(job, order[CLOSELY], end[CLOSELY], first, last);
        for (int j = 0; j < count; j++) {
            sort_out<TOP>(job, query[j], first, last);
            if (!TOP) choose(query[j], last - first);
        }
    }
    for (int j = 0; j < count; j++) settle<TOP>(job, query[j], true);
}

// ---- ranks and top-k ------------------------------------------------------------------------------------------------
void make_table(const Job& job, const float* vector, float* table) {
    const float* book = job.book;
    const int32_t* column = job.columns;
    for (int m = 0; m < M; m++) {
        Sixteen sum = {};
        for (int64_t i = 0; i < job.size; i++, book += 16)
            sum += vector[*column++] * *reinterpret_cast<const Sixteen*>(book);
        *reinterpret_cast<Sixteen*>(table + m * 16) = sum;
    }
}

void start(const Job& job, Query& query, int64_t n) {
    if (job.book) make_table(job, job.queries + n * M * job.size, query.made);
    quantise(query, job.book ? query.made : job.queries + n * M * 16);
    query.known = job.known + job.known_start[n], query.known_end = job.known + job.known_end[n];
    query.count = query.greater = query.equal = 0, query.mode = BOTH, query.tried_short = false;
}

void rank_task(const Job& job, Query* work, int64_t from, int64_t to) {
    alignas(64) float score[16];
    for (int64_t n = from; n < to; n++) {
        Query& query = work[n - from];
        start(job, query, n);
        const int32_t target = int32_t(job.target[n]);
        scores(job, query.table, &target, 1, score);
        aim(query, score[0]);
        for (const int32_t* at = query.known; at < query.known_end; at += 16) {
            const int size = int(std::min<int64_t>(16, query.known_end - at));
            scores(job, query.table, at, size, score);
            for (int i = 0; i < size; i++) {
                query.greater -= score[i] > query.goal;
                query.equal -= score[i] == query.goal;
            }
        }
        // the true entity does not tie with itself: it is known, or taken off here
        query.equal -= !std::binary_search(query.known, query.known_end, target);
    }
    scan<false>(job, work, int(to - from));
    for (int64_t n = from; n < to; n++)
        job.greater[n] = work[n - from].greater, job.equal[n] = work[n - from].equal;
}

void top_task(const Job& job, Query* work, int64_t from, int64_t to) {  // ties: the lower id first
    for (int64_t n = from; n < to; n++) {
        Query& query = work[n - from];
        start(job, query, n);
        query.k = int32_t(std::min<int64_t>(job.k, job.num_entities));
        query.least = query.fine_least = 0, leave_open(query);
        query.heap.clear();
    }
    scan<true>(job, work, int(to - from));
    for (int64_t n = from; n < to; n++) {
        auto& heap = work[n - from].heap;
        std::sort_heap(heap.begin(), heap.end());
        for (int i = 0; i < job.k; i++) {
            const bool there = i < int(heap.size());
            job.best_score[n * job.k + i] = there ? -heap[i].first : -INFINITE;
            job.best[n * job.k + i] = there ? heap[i].second : -1;
        }
    }
}

template <class Task> int32_t each_task(const Job& job, Task run) {  // 0, or 1 where memory ran out
    const int64_t tasks = (job.n + job.threads * TASK - 1) / (job.threads * TASK) * job.threads;  // as many for each
    const int64_t size = std::max<int64_t>(1, (job.n + tasks - 1) / std::max<int64_t>(1, tasks));
    Memory memory;
#pragma omp parallel num_threads(job.threads)
    {
        std::vector<Query> work;
        const bool ready = memory.enough_for([&] { work.resize(size); });
#pragma omp for schedule(dynamic)
        for (int64_t from = 0; from < job.n; from += size)
            if (ready) memory.enough_for([&] { run(job, work.data(), from, std::min(job.n, from + size)); });
    }
    return memory.out;
}

}  // namespace

extern "C" int64_t kgd_bytes(int64_t num_entities) {
    const int64_t blocks = (num_entities + BLOCK - 1) / BLOCK;
#ifdef WIDE
    return blocks * (BYTES + BLOCK * ROW * 4);
#else
    return blocks * BYTES;
#endif
}

extern "C" void kgd_tiles(const uint8_t* codes, int64_t num_entities, int32_t threads, uint8_t* out) {
    const int64_t blocks = (num_entities + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads)
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t first = block * BLOCK, last = std::min(num_entities, first + BLOCK);
#ifdef WIDE
        for (int i = 0; i < BYTES; i++) out[block * BYTES + i] = i % 4 << 4;
        for (int64_t e = first; e < last; e++)
            for (int m = 0; m < M; m++) out[place(e, m)] |= codes[e * M + m];
        uint8_t* rows = out + blocks * BYTES + first * ROW * 4;
        std::memset(rows, 0, BLOCK * ROW * 4);
        for (int64_t e = first; e < last; e++)
            for (int m = 0; m < M; m++)
                rows[(e - first) * ROW * 4 + m / 8 * 4 + m % 4] |= codes[e * M + m] << m % 8 / 4 * 4;
#else
        std::memset(out + block * BYTES, 0, BYTES);
        for (int64_t e = first; e < last; e++)
            for (int m = 0; m < M; m++) out[place(e, m)] |= codes[e * M + m] << m % 2 * 4;
#endif
    }
}

extern "C" int32_t kgd_rank(const Job* job) { return each_task(*job, rank_task); }

extern "C" int32_t kgd_top(const Job* job) { return each_task(*job, top_task); }
