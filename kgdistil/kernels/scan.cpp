// Filtered ranks and top-k answers over entities of four-bit codes: exact, yet most entities are scored in bytes.
//   -DKGD_GROUPS=M codes of an entity   -DKGD_PATH=0|1|2, the best instructions to use: portable, AVX2, AVX-512
// A query is a table [M][16] and the score of an entity the sum of the M entries that its codes choose. The table is
// rounded to bytes, and byte shuffles look up 64 entries at a time (André et al. 2015, FAISS's fast scan). A byte of
// group m counts w[m] steps (with AVX-512 one number for two groups), so that small numbers are rounded finely. The sum
// of bytes bounds the score: an entity whose bounds leave open on which side of the target it lies is scored in
// float32, and only that decides. A float32 score is added up in one order, group m into partial sum m mod 4, wherever
// it is computed, so equal codes tie exactly.
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
#ifndef KGD_PATH
#define KGD_PATH 2
#endif
#if KGD_PATH == 2 && defined(__AVX512VBMI__) && defined(__AVX512VBMI2__) && defined(__AVX512VNNI__)
#define WIDE
#include <immintrin.h>
#elif KGD_PATH >= 1 && defined(__AVX2__)
#define MIDDLE
#include <immintrin.h>
#endif

namespace {

constexpr int M = KGD_GROUPS, BLOCK = 64, TASK = 64;  // entities of a block; queries that share a pass over a chunk
constexpr int BATCH = 64;  // entities that are scored in float32 at a time, at least
constexpr int64_t CHUNK_BYTES = 128 << 10;  // of codes, which stay in cache for these queries
constexpr float INFINITE = std::numeric_limits<float>::infinity();

// where the code of a group lies: four or eight groups of an entity side by side, or one byte of each of 64 entities
#ifdef WIDE
constexpr int STEPS = (M + 7) / 8, BYTES = STEPS * BLOCK * 4, SLOTS = STEPS * 8;
constexpr int MOST = 65534;  // of the sums of two groups: their high bytes are added before they are weighed
constexpr int HEAVIEST = M <= 256 ? 127 : 127 * 256 / M;  // weights are signed bytes, all sums fit 31 bits
constexpr int ROW = (STEPS + 3) / 4 * 4;  // words of an entity beside each other, to look at few entities
inline int lane(int b) { return b % 16 / 4 * 16 + b / 16 * 4 + b % 4; }  // of a block's words, in the order of `signs`
inline int64_t place(int64_t e, int m) {
    return ((e / BLOCK * STEPS + m / 8) * BLOCK + lane(e % BLOCK)) * 4 + m % 8 / 2;
}
inline int slot(int m) { return m / 8 * 8 + m % 2 * 4 + m % 8 / 2; }  // of the byte table: even groups, then odd ones
#else
constexpr int STEPS = (M + 1) / 2, BYTES = STEPS * BLOCK, SLOTS = STEPS * 2;
constexpr int MOST = (M > 257 ? 65535 / M : 255) * 256 + 255, HEAVIEST = 1;  // sums of high bytes are 16 bits wide
inline int64_t place(int64_t e, int m) { return (e / BLOCK * STEPS + m / 2) * BLOCK + e % BLOCK; }
inline int slot(int m) { return m; }
#endif

struct Job {  // as in rank.cpp, so that Python needs one structure
    const uint8_t* codes;  // [⌈E/64⌉][BYTES], then with AVX-512 int32 [⌈E/64⌉·64][ROW]; by kgd_tiles, zero past E
    const float* tables;   // [n, M, 16]
    const int64_t* target;  // [n] entity ids (ranks only)
    const int64_t *known_start, *known_end;  // [n] spans of `known`
    const int32_t* known;  // ids to leave out, ascending within a span
    int64_t n, num_entities;
    int32_t threads, k;
    int32_t *greater, *equal;  // out (ranks)
    float* best_score;         // out (top-k) [n, k], descending; −inf past the last candidate
    int32_t* best;             // out (top-k) [n, k]; −1 past the last candidate
};

using Answer = std::pair<float, int32_t>;  // (−score, id): the worst kept answer is the largest

struct Query {
    alignas(64) uint8_t high[SLOTS * 16], low[SLOTS * 16];  // the table in 16 bits: w · (256·high + low)
    int32_t weight[(SLOTS + 7) / 8];  // a byte for each pair of groups
    alignas(64) int32_t waiting[BATCH + BLOCK + 16];  // entities to score in float32, ascending
    int32_t count;
    int32_t least, band;  // sums of high bytes below `least` are surely below the goal, above least + band surely above
    int32_t fine_least, fine_most;  // so are sums of 16 bits below and above these
    int32_t greater, equal, k, weights;
    float goal;
    double base, step, slack;
    const float* table;
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
        const __m128i* rows = reinterpret_cast<const __m128i*>(job.codes + blocks * BYTES);
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
            if (const int m = s * 8 + i; m < M)
                sum[m % 4] = _mm512_add_ps(sum[m % 4], _mm512_permutexvar_ps(word, _mm512_loadu_ps(table + m * 16)));
    }
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}
#else
inline void scores(const Job& job, const float* table, const int32_t* ids, int n, float* out) {
    for (int i = 0; i < n; i++) {
        float sum[4] = {};
        for (int m = 0; m < M; m++)
            sum[m % 4] += table[m * 16 + (job.codes[place(ids[i], m)] >> m % 2 * 4 & 15)];
        out[i] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
}
#endif

#ifdef WIDE
// A word holds eight codes: four in the low halves of its bytes, four in the high ones. One shuffle looks four up for
// sixteen entities, each code in its quarter of a table of 64 bytes. A byte's two groups are of one weight.
inline __m512i quarters(__m512i x) {
    const __m512i nibble = _mm512_set1_epi32(0x0f0f0f0f), quarter = _mm512_set1_epi32(0x30201000);
    return _mm512_ternarylogic_epi32(x, nibble, quarter, 0xea);  // (x & nibble) | quarter
}
inline __m512i look_up(__m512i x, const uint8_t* bytes, int half) {
    return _mm512_permutexvar_epi8(x, reinterpret_cast<const __m512i*>(bytes)[half]);
}
inline __m512i add_up(__m512i sum, __m512i bytes, int32_t weight) {
    return _mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi32(weight));
}
inline __m512i add_high(__m512i sum, __m512i even, __m512i odd, const Query& query, int s) {
    const uint8_t* bytes = query.high + s * 128;
    return add_up(sum, _mm512_add_epi8(look_up(even, bytes, 0), look_up(odd, bytes, 1)), query.weight[s]);
}
inline __m512i fine_sums(const Job& job, const Query& query, const int32_t* ids, int n) {
    const Words words(job, ids, n);
    __m512i high = {}, low = {}, x[4];
    for (int s = 0; s < STEPS; s++) {
        if (s % 4 == 0) words.four(s, x);
        const __m512i even = quarters(x[s % 4]), odd = quarters(_mm512_srli_epi16(x[s % 4], 4));
        high = add_high(high, even, odd, query, s);
        low = add_up(low, look_up(even, query.low + s * 128, 0), query.weight[s]);
        low = add_up(low, look_up(odd, query.low + s * 128, 1), query.weight[s]);
    }
    return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}
#endif

// ---- bytes and bounds -----------------------------------------------------------------------------------------------
inline std::pair<float, float> ends(const float* x) {  // the smallest and largest of sixteen
#ifdef WIDE
    const __m512 all = _mm512_loadu_ps(x);
    return {_mm512_reduce_min_ps(all), _mm512_reduce_max_ps(all)};
#else
    const auto found = std::minmax_element(x, x + 16);
    return {*found.first, *found.second};
#endif
}

// v of 16 bits with |table[m][c] − smallest[m] − w[m]·step·v| ≤ ½ w[m]·step; base, the sum of the smallest; slack, the
// largest difference of base + step·(sum of w·v) and a float32 score: these halves, and what float32 rounds off
void quantise(Query& query, const float* table) {
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
    for (int m = 0; m + 1 < M; m += 2) range[m] = range[m + 1] = range[m] + range[m + 1];  // what the two take together
#endif
    for (int m = 0; m < M; m++) largest = std::max(largest, range[m]);
    query.table = table;
    query.step = largest > 0 ? largest / (double(MOST) * HEAVIEST) : 1;
    query.weights = 0;
    int32_t w[M];
    const double steps = query.step * MOST;
    for (int m = 0; m < M; m++) {
        w[m] = std::min(std::max(int32_t(std::ceil(range[m] / steps)), 1), HEAVIEST);
        inverse[m] = 1 / (query.step * w[m]);
    }
    for (int m = 0; m < M; m++) {
        reinterpret_cast<int8_t*>(query.weight)[m / 2] = int8_t(w[m]), query.weights += w[m];
#ifdef WIDE
        const __m512d low = _mm512_set1_pd(smallest[m]), scale = _mm512_set1_pd(inverse[m]), half = _mm512_set1_pd(.5);
        __m256i v[2];
        for (int i = 0; i < 2; i++) {
            const __m512d x = _mm512_sub_pd(_mm512_cvtps_pd(_mm256_loadu_ps(table + m * 16 + i * 8)), low);
            v[i] = _mm512_cvttpd_epi32(_mm512_fmadd_pd(x, scale, half));
        }
        const __m256i both = _mm512_cvtepi32_epi16(_mm512_inserti64x4(_mm512_castsi256_si512(v[0]), v[1], 1));
        _mm_store_si128((__m128i*)(query.low + slot(m) * 16), _mm256_cvtepi16_epi8(both));
        _mm_store_si128((__m128i*)(query.high + slot(m) * 16), _mm256_cvtepi16_epi8(_mm256_srli_epi16(both, 8)));
#else
        for (int c = 0; c < 16; c++) {
            const int32_t v = int32_t((table[m * 16 + c] - double(smallest[m])) * inverse[m] + .5);
            query.high[slot(m) * 16 + c] = uint8_t(v >> 8), query.low[slot(m) * 16 + c] = uint8_t(v);
        }
#endif
    }
    query.slack = query.weights * query.step * .500001 + (M + 4) * (size * FLT_EPSILON + FLT_MIN);
}

void aim(Query& query, float goal) {
    constexpr double END = (1 << 30) + (1 << 29);  // above every sum
    const double below = std::clamp(std::ceil((goal - query.base - query.slack) / query.step), -1., END);
    const double above = std::clamp(std::floor((goal - query.base + query.slack) / query.step), -1., END);
    query.goal = goal;
    query.fine_least = int32_t(below), query.fine_most = int32_t(above);
    query.least = int32_t(std::max(0., std::ceil((below - 255. * query.weights) / 256)));  // low bytes add 0 to 255 w
    query.band = int32_t(std::floor(above / 256)) - query.least;
}

// ---- entities that wait for their float32 score ---------------------------------------------------------------------
inline void leave_open(Query& query) { query.band = 1 << 29, query.fine_most = INT32_MAX; }  // no entity is surely above

void keep(Query& query, int32_t e, float score) {
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
     for (int at = 0; at < count; at += 16) {  // 16 bits decide most
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

template <bool TOP>
inline void sort_out(const Job& job, Query& query, int64_t block, uint64_t not_below, uint64_t above) {
    const int64_t rest = job.num_entities - block * BLOCK;
    if (rest < BLOCK) not_below &= (uint64_t(1) << rest) - 1, above &= (uint64_t(1) << rest) - 1;
    query.greater += __builtin_popcountll(above);
    uint64_t open = not_below & ~above;
    if (!open) return;
    const int32_t first = int32_t(block * BLOCK);
#ifdef WIDE
    __m512i which = _mm512_maskz_compress_epi8(open, numbers());
    const int found = __builtin_popcountll(open);
    for (int i = 0; i < found; i += 16, which = _mm512_alignr_epi64(which, which, 2)) {
        const __m512i ids = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(which));
        _mm512_storeu_si512(query.waiting + query.count + i, _mm512_add_epi32(ids, _mm512_set1_epi32(first)));
    }
    query.count += found;
#else
    for (; open; open &= open - 1) query.waiting[query.count++] = first + __builtin_ctzll(open);
#endif
    if (query.count >= BATCH) settle<TOP>(job, query, false);
}

// ---- sums of bytes --------------------------------------------------------------------------------------------------
#ifdef WIDE
constexpr int QUERIES = 4;
inline uint64_t signs(__m512i a, __m512i b) {  // of 64 numbers, in the order of `lane`
    return _mm512_movepi8_mask(_mm512_packs_epi16(a, b));
}
template <bool TOP>
__attribute__((noinline)) void look(const Job& job, Query& query, int64_t block, __m512i a, __m512i b) {
    // saturated numbers lie at the band's end or in it, and so are looked at again
    const __m512i band = _mm512_set1_epi16(int16_t(std::min(query.band, 32767)));
    sort_out<TOP>(job, query, block, ~signs(a, b), signs(_mm512_subs_epi16(band, a), _mm512_subs_epi16(band, b)));
}
template <int N, bool TOP> void pass(const Job& job, Query* query, int64_t first, int64_t last) {
    for (int64_t block = first; block < last; block++) {
        const __m512i* codes = reinterpret_cast<const __m512i*>(job.codes + block * BYTES);
        __m512i sum[N][4], x[N][2];
        bool any[N];
#pragma GCC unroll 16
        for (int j = 0; j < N; j++)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) sum[j][i] = _mm512_set1_epi32(-query[j].least);
#pragma GCC unroll 1
        for (int s = 0; s < STEPS; s++) {
            __m512i even[4], odd[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const __m512i c = _mm512_load_si512(codes + s * 4 + i);
                even[i] = quarters(c), odd[i] = quarters(_mm512_srli_epi16(c, 4));
            }
#pragma GCC unroll 16
            for (int j = 0; j < N; j++) {
                const __m512i* table = reinterpret_cast<const __m512i*>(query[j].high) + s * 2;
                __m512i one = _mm512_load_si512(table), other = _mm512_load_si512(table + 1);
                __m512i weight = _mm512_set1_epi32(query[j].weight[s]);
                asm("" : "+v"(one), "+v"(other), "+v"(weight));  // to be loaded once, not at each use
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    const __m512i a = _mm512_permutexvar_epi8(even[i], one), b = _mm512_permutexvar_epi8(odd[i], other);
                    const __m512i bytes = _mm512_add_epi8(a, b);
                    // as `add_up`, for which the compiler copies the sum to and fro
                    asm("vpdpbusd %2, %1, %0" : "+v"(sum[j][i]) : "v"(bytes), "v"(weight));
                }
            }
        }
#pragma GCC unroll 16
        for (int j = 0; j < N; j++) {
            x[j][0] = _mm512_packs_epi32(sum[j][0], sum[j][1]), x[j][1] = _mm512_packs_epi32(sum[j][2], sum[j][3]);
            any[j] = _mm512_movepi16_mask(_mm512_max_epi16(x[j][0], x[j][1])) != 0xffffffff;
        }
#pragma GCC unroll 16
        for (int j = 0; j < N; j++)
            if (any[j]) look<TOP>(job, query[j], block, x[j][0], x[j][1]);
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
template <int N, bool TOP> void pass(const Job& job, Query* query, int64_t first, int64_t last) {
    for (int64_t block = first; block < last; block++) {
        alignas(64) uint16_t sum[BLOCK];
        sums(job.codes + block * BYTES, query->high, sum);
        int32_t most = 0;
        for (int e = 0; e < BLOCK; e++) most = std::max<int32_t>(most, sum[e]);
        if (most < query->least) continue;
        uint64_t not_below = 0, above = 0;
        for (int e = 0; e < BLOCK; e++) {
            not_below |= uint64_t(sum[e] >= query->least) << e;
            above |= uint64_t(sum[e] > query->least + query->band) << e;
        }
        sort_out<TOP>(job, *query, block, not_below, above);
    }
}
#endif

template <bool TOP> void scan(const Job& job, Query* query, int count) {
    const int64_t blocks = (job.num_entities + BLOCK - 1) / BLOCK, chunk = std::max<int64_t>(1, CHUNK_BYTES / BYTES);
    for (int64_t first = 0; first < blocks; first += chunk) {
        const int64_t last = std::min(blocks, first + chunk);
        int j = 0;
        for (; j + QUERIES <= count; j += QUERIES) pass<QUERIES, TOP>(job, query + j, first, last);
        for (; j < count; j++) pass<1, TOP>(job, query + j, first, last);
    }
    for (int j = 0; j < count; j++) settle<TOP>(job, query[j], true);
}

// ---- ranks and top-k ------------------------------------------------------------------------------------------------
void start(const Job& job, Query& query, int64_t n) {
    quantise(query, job.tables + n * M * 16);
    query.known = job.known + job.known_start[n], query.known_end = job.known + job.known_end[n];
    query.count = query.greater = query.equal = 0;
}

void rank_task(const Job& job, Query* work, int64_t from, int64_t to) {
    alignas(64) float score[16];
    for (int64_t n = from; n < to; n++) {
        Query& query = work[n - from];
        start(job, query, n);
        const int32_t target = int32_t(job.target[n]);
        scores(job, query.table, &target, 1, score);
        aim(query, score[0]);
    }
    scan<false>(job, work, int(to - from));
    for (int64_t n = from; n < to; n++) {
        Query& query = work[n - from];
        for (const int32_t* at = query.known; at < query.known_end; at += 16) {
            const int size = int(std::min<int64_t>(16, query.known_end - at));
            scores(job, query.table, at, size, score);
            for (int i = 0; i < size; i++) {
                query.greater -= score[i] > query.goal;
                query.equal -= score[i] == query.goal;
            }
        }
        // the true entity does not tie with itself: it is known, or taken off here
        query.equal -= !std::binary_search(query.known, query.known_end, int32_t(job.target[n]));
        job.greater[n] = query.greater, job.equal[n] = query.equal;
    }
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

template <class Task> void each_task(const Job& job, Task run) {
    const int64_t share = (job.n + job.threads - 1) / job.threads;
    const int64_t size = std::max<int64_t>(1, std::min<int64_t>(TASK, (share + QUERIES - 1) / QUERIES * QUERIES));
#pragma omp parallel num_threads(job.threads)
    {
        std::vector<Query> work(size);
#pragma omp for schedule(dynamic)
        for (int64_t from = 0; from < job.n; from += size) run(job, work.data(), from, std::min(job.n, from + size));
    }
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
        std::memset(out + block * BYTES, 0, BYTES);
        for (int64_t e = first; e < last; e++)
            for (int m = 0; m < M; m++) out[place(e, m)] |= codes[e * M + m] << m % 2 * 4;
#ifdef WIDE
        int32_t* rows = reinterpret_cast<int32_t*>(out + blocks * BYTES) + first * ROW;
        std::memset(rows, 0, BLOCK * ROW * 4);
        for (int64_t e = first; e < last; e++)
            for (int s = 0; s < STEPS; s++) std::memcpy(rows + (e - first) * ROW + s, out + place(e, s * 8), 4);
#endif
    }
}

extern "C" void kgd_rank(const Job* job) { each_task(*job, rank_task); }

extern "C" void kgd_top(const Job* job) { each_task(*job, top_task); }
