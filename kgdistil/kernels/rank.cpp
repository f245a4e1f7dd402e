// Filtered ranks and top-k answers without a score matrix: scores are counted where they are made (`tiles.h`).
// A block of queries shares each load; a group of entities stays in cache for many queries.
// Compiled without -ffast-math, so that equal embeddings tie exactly.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>
#include <omp.h>
#include "memory.h"
#include "tiles.h"

namespace {

struct Job {  // mirrored in kernels/rank.py, which compares the size with `kgd_sizes`
    const float* entities;   // [tiles_of(E)][W][LANES], lanes past E hold NaN and so never count
    const float* queries;    // [n, QW]
    const int64_t* target;   // [n] entity ids (ranks only)
    const int64_t *known_start, *known_end;  // [n] spans of `known`
    const int32_t* known;    // ids to leave out, ascending within a span
    int64_t n, num_entities;
    int32_t threads, k;
    int32_t *greater, *equal;  // out (ranks)
    float* best_score;         // out (top-k) [n, k], descending; −inf past the last candidate
    int32_t* best;             // out (top-k) [n, k]; −1 past the last candidate
};

constexpr int TASK = 64;  // queries that share a pass over the entities
constexpr int64_t GROUP_BYTES = 256 << 10;

void rank_task(const Job& job, int64_t from, int64_t to) {
    const int64_t tiles = tiles_of(job.num_entities);
    const int64_t group = std::max<int64_t>(1, GROUP_BYTES / (W * LANES * 4));
    const int blocks = int((to - from + QUERIES - 1) / QUERIES);
    std::vector<float> q(size_t(blocks) * QUERIES * QW), target(blocks * QUERIES);
    std::vector<int64_t> next(blocks * QUERIES), last(blocks * QUERIES);
    std::vector<int32_t> greater(blocks * QUERIES), equal(blocks * QUERIES);
    const V* table = reinterpret_cast<const V*>(job.entities);
    V s[QUERIES];
    for (int b = 0; b < blocks * QUERIES; b++) {  // a short last block repeats its last query
        const int64_t n = std::min(from + b, to - 1);
        std::memcpy(q.data() + size_t(b) * QW, job.queries + n * QW, sizeof(float) * QW);
        next[b] = job.known_start[n], last[b] = job.known_end[n];
    }
    for (int b = 0; b < blocks; b++)
        for (int j = 0; j < QUERIES; j++) {
            const int64_t e = job.target[std::min(from + b * QUERIES + j, to - 1)];
            score<QUERIES>(table + e / LANES * W, q.data() + size_t(b) * QUERIES * QW, s);
            target[b * QUERIES + j] = s[j][e % LANES];
            // the true entity does not tie with itself: it is known, or taken off here
            const bool is_known = std::binary_search(job.known + next[b * QUERIES + j], job.known + last[b * QUERIES + j], e);
            equal[b * QUERIES + j] = is_known ? 0 : -1;
        }
    for (int64_t first = 0; first < tiles; first += group)
        for (int b = 0; b < blocks; b++) {
            I above[QUERIES] = {}, tied[QUERIES] = {};
            const int at = b * QUERIES;
            for (int64_t tile = first; tile < std::min(tiles, first + group); tile++) {
                score<QUERIES>(table + tile * W, q.data() + size_t(at) * QW, s);
                for (int j = 0; j < QUERIES; j++) {
                    const V goal = target[at + j] - V{};
                    above[j] -= s[j] > goal;
                    tied[j] -= s[j] == goal;
                    for (int64_t& x = next[at + j]; x < last[at + j] && job.known[x] < (tile + 1) * LANES; x++) {
                        const float known = s[j][job.known[x] % LANES];
                        greater[at + j] -= known > target[at + j];
                        equal[at + j] -= known == target[at + j];
                    }
                }
            }
            for (int j = 0; j < QUERIES; j++)
                for (int lane = 0; lane < LANES; lane++) greater[at + j] += above[j][lane], equal[at + j] += tied[j][lane];
        }
    std::copy_n(greater.data(), to - from, job.greater + from);
    std::copy_n(equal.data(), to - from, job.equal + from);
}

void top_task(const Job& job, int64_t from, int64_t to) {  // ties: the lower id first
    const int64_t tiles = tiles_of(job.num_entities);
    const int count = int(to - from);
    const V* table = reinterpret_cast<const V*>(job.entities);
    using Answer = std::pair<float, int32_t>;  // (−score, id): the worst kept answer is the largest
    std::vector<Answer> heap[QUERIES];
    std::vector<float> q(size_t(QUERIES) * QW);
    int64_t next[QUERIES];
    for (int j = 0; j < QUERIES; j++) {
        const int64_t n = std::min(from + j, to - 1);
        std::memcpy(q.data() + size_t(j) * QW, job.queries + n * QW, sizeof(float) * QW);
        next[j] = job.known_start[n];
    }
    V s[QUERIES];
    for (int64_t tile = 0; tile < tiles; tile++) {
        count == 1 ? score<1>(table + tile * W, q.data(), s) : score<QUERIES>(table + tile * W, q.data(), s);
        for (int j = 0; j < count; j++) {
            auto& h = heap[j];
            const bool full = int(h.size()) == job.k;
            const float bar = full ? -h.front().first : -std::numeric_limits<float>::infinity();
            const I better = s[j] > (bar - V{});
            int any = 0;
            for (int lane = 0; lane < LANES; lane++) any |= better[lane];
            const int64_t stop = job.known_end[from + j];
            if (!any && full) {
                while (next[j] < stop && job.known[next[j]] < (tile + 1) * LANES) next[j]++;
                continue;
            }
            for (int lane = 0; lane < LANES; lane++) {
                const int32_t e = int32_t(tile * LANES + lane);
                if (next[j] < stop && job.known[next[j]] == e) { next[j]++; continue; }
                if (e >= job.num_entities || std::isnan(s[j][lane])) continue;
                const Answer answer = {-s[j][lane], e};
                if (int(h.size()) < job.k) {
                    h.push_back(answer), std::push_heap(h.begin(), h.end());
                } else if (answer < h.front()) {
                    std::pop_heap(h.begin(), h.end()), h.back() = answer, std::push_heap(h.begin(), h.end());
                }
            }
        }
    }
    for (int j = 0; j < count; j++) {
        std::sort_heap(heap[j].begin(), heap[j].end());
        for (int i = 0; i < job.k; i++) {
            const bool there = i < int(heap[j].size());
            job.best_score[(from + j) * job.k + i] = there ? -heap[j][i].first : -std::numeric_limits<float>::infinity();
            job.best[(from + j) * job.k + i] = there ? heap[j][i].second : -1;
        }
    }
}

}  // namespace

extern "C" void kgd_sizes(int64_t* out) { out[0] = sizeof(Job); }

extern "C" void kgd_tiles(const float* entities, int64_t num_entities, int32_t threads, float* out) {
    transpose(entities, num_entities, std::numeric_limits<float>::quiet_NaN(), threads, out);
}

// both: 0, or 1 where memory ran out
extern "C" int32_t kgd_rank(const Job* job) {
    Memory memory;
#pragma omp parallel for num_threads(job->threads) schedule(dynamic)
    for (int64_t from = 0; from < job->n; from += TASK)
        memory.enough_for([&] { rank_task(*job, from, std::min(job->n, from + TASK)); });
    return memory.out;
}

extern "C" int32_t kgd_top(const Job* job) {
    Memory memory;
#pragma omp parallel for num_threads(job->threads) schedule(dynamic)
    for (int64_t from = 0; from < job->n; from += QUERIES)
        memory.enough_for([&] { top_task(*job, from, std::min(job->n, from + QUERIES)); });
    return memory.out;
}
