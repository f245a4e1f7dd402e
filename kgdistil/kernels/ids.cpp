// Ids of a step: which stand in several places, what is drawn for a batch besides its answers, and spans in a row.
#include <algorithm>
#include <cstdint>
#include <vector>
#include "memory.h"

// Ascending by the upper halves, in the order in which they stand where those are the same: eleven bits at a time.
static void sort(std::vector<uint64_t>& keys, std::vector<uint64_t>& spare) {
    uint64_t all = 0;
    for (uint64_t key : keys) all |= key;
    spare.resize(keys.size());
    for (int shift = 32; shift < 64 && all >> shift; shift += 11) {
        uint32_t first[2049] = {};
        for (uint64_t key : keys) first[(key >> shift & 2047) + 1]++;
        for (int i = 0; i < 2048; i++) first[i + 1] += first[i];
        for (uint64_t key : keys) spare[first[key >> shift & 2047]++] = key;
        keys.swap(spare);
    }
}

// Of ids [n], 0 to 2^32 - 1: the different ones, ascending, their number in `found`; ids order[start[i] .. start[i + 1]]
// are the i-th of them, and id j is the place[j]-th. Returns 0, 1 where memory ran out, or 2 where an id is too large.
extern "C" int32_t kgd_group(const int64_t *ids, int64_t n, int64_t *own, int64_t *order, int64_t *start, int64_t *place,
                             int64_t *found) {
    for (int64_t i = 0; i < n; i++)
        if (uint64_t(ids[i]) >> 32) return 2;
    Memory memory;
    memory.enough_for([&] {
        std::vector<uint64_t> keys(n), spare;
        for (int64_t i = 0; i < n; i++) keys[i] = uint64_t(ids[i]) << 32 | uint64_t(i);
        sort(keys, spare);
        int64_t u = 0;
        for (int64_t i = 0; i < n; i++) {
            const int64_t id = keys[i] >> 32, at = keys[i] & 0xffffffff;
            if (!u || own[u - 1] != id) own[u] = id, start[u] = i, u++;
            order[i] = at, place[at] = u - 1;
        }
        start[u] = n, *found = u;
    });
    return memory.out;
}

static inline uint64_t mix(uint64_t x) {  // `sampling.mix`
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

// Draws 0 to k - 1 of `size` entities by the step's random number, without those of `own` [u], which ascend. Returns how
// many are left in `drawn`.
extern "C" int64_t kgd_draw(int64_t base, int64_t k, int64_t size, const int64_t *own, int64_t u, int64_t *drawn) {
    int64_t kept = 0;
    for (int64_t i = 0; i < k; i++) {
        const int64_t id = (mix(uint64_t(base) + uint64_t(i) * 0x9E3779B97F4A7C15u) >> 32) * uint64_t(size) >> 32;
        drawn[kept] = id;
        kept += !std::binary_search(own, own + u, id);
    }
    return kept;
}

// `queries.spans`: of spans that begin at start [n] and have count [n] places, each place's span, and the places, or what
// `at` holds there.
extern "C" void kgd_spans(const int64_t *start, const int64_t *count, int64_t n, const int64_t *at, int64_t *row, int64_t *places) {
    for (int64_t i = 0; at && i < n; i++) __builtin_prefetch(at + start[i]);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < count[i]; k++) *row++ = i, *places++ = at ? at[start[i] + k] : start[i] + k;
}

// `queries.batch_of`: queries ids [n] of columns anchor, relation, start and count, those whose is_head is 0 first, each
// kind in its order, into the five rows of `found`, and where each one's answers begin in a row of all [n + 1]. Returns
// how many are of the first kind.
extern "C" int64_t kgd_batch(const int64_t *ids, int64_t n, const uint8_t *is_head, const int64_t *const *columns,
                             int64_t *found, int64_t *begins) {
    int64_t tails = 0, heads = 0;
    for (int64_t i = 0; i < n; i++) {  // far from one another
        __builtin_prefetch(is_head + ids[i]);
        for (int64_t c = 0; c < 4; c++) __builtin_prefetch(columns[c] + ids[i]);
    }
    for (int64_t i = 0; i < n; i++) tails += !is_head[ids[i]];
    for (int64_t i = 0, at = 0; i < n; i++) {
        const int64_t to = is_head[ids[i]] ? tails + heads++ : at++;
        found[to] = ids[i];
        for (int64_t c = 0; c < 4; c++) found[(c + 1) * n + to] = columns[c][ids[i]];
    }
    begins[0] = 0;
    for (int64_t i = 0; i < n; i++) begins[i + 1] = begins[i] + found[4 * n + i];
    return tails;
}
