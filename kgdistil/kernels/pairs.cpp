// Scores of every query with every candidate, and their gradients: what sampled softmax (`sampled_softmax.py`) needs of
// a model that is no matrix product. The settings are those of tiles.h; the readable truth is `compare` in models.py.
//
// A softmax over a list leaves most gradients next to nothing. Those below `least` are left out, a tile at a time.
// Queries and candidates gather their gradients in two passes, each sum in one order whatever the number of threads.
#include <algorithm>
#include <cstring>
#include <vector>
#include <omp.h>
#include "memory.h"
#include "tiles.h"

namespace {

constexpr int64_t GROUP_BYTES = 256 << 10;
constexpr bool LARGE = QW * sizeof(V) > 256 << 10;  // for the stack of a thread, which may have 2 MiB

inline bool any_above(V g, float least) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)magnitude(g), _mm512_set1_ps(least), _CMP_GE_OQ);
#elif defined(__AVX__)
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)magnitude(g), _mm256_set1_ps(least), _CMP_GE_OQ));
#else
    bool any = false;
    for (int i = 0; i < LANES; i++) any |= std::fabs(g[i]) >= least;
    return any;
#endif
}
inline float sum(V x) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += x[i];
    return s;
}
inline V inverse_root(V x) {  // 1/√x, 0 for 0
    const V s = root(x);
    return x > 1e-30f ? 1 / s : V{};
}
inline V with_sign(V x, V u) { return (V)((I)x ^ ((I)u & INT32_MIN)); }  // x · sign(u), for u ≠ 0

// calls `out(i, ∂/∂u_i)` for each coordinate, where the score is −‖u‖ with u_i = offset(i), times g
template <typename Offset, typename Out> inline void norm_gradient(V g, Offset offset, Out out) {
    if constexpr (KGD_NORM == 1) {
        for (int i = 0; i < W; i++) {
            const V u = offset(i);
            out(i, u == 0.f ? V{} : with_sign(-g, u));
        }
    } else {
        V square = {};
        for (int i = 0; i < W; i++) {
            const V u = offset(i);
            square += u * u;
        }
        const V c = -g * inverse_root(square);
        for (int i = 0; i < W; i++) out(i, c * offset(i));
    }
}

// adds g · ∂score/∂q of one query and a tile of candidates to `query` [QW] (to be summed over lanes) or, where ENTITY,
// g · ∂score/∂e to `entity` [W]
template <bool ENTITY> inline void gradient(const V* tile, const float* q, V g, V* to) {
    if constexpr (KIND == 0) {
        for (int i = 0; i < W; i++) to[i] += g * (ENTITY ? q[i] - V{} : tile[i]);
    } else if constexpr (KIND == 1) {
        norm_gradient(g, [&](int i) { return q[i] - tile[i]; }, [&](int i, V d) { to[i] += ENTITY ? -d : d; });
    } else if constexpr (KIND == 2) {
        constexpr int H = W / 2;
        for (int i = 0; i < H; i++) {
            const V a = q[i] - tile[i], b = q[H + i] - tile[H + i];
            const V f = (ENTITY ? g : -g) * inverse_root(a * a + b * b);
            to[i] += f * a;
            to[H + i] += f * b;
        }
    } else {  // u = p − e + (w·e) w for a query [p | w]
        V along = {}, across = {};
        for (int i = 0; i < W; i++) along += q[W + i] * tile[i];
        const auto offset = [&](int i) { return q[i] - tile[i] + along * q[W + i]; };
        norm_gradient(g, offset, [&](int i, V d) {
            across += d * q[W + i];
            if constexpr (ENTITY) to[i] -= d;
            else to[i] += d, to[W + i] += along * d;
        });
        for (int i = 0; i < W; i++)
            if constexpr (ENTITY) to[i] += across * q[W + i];
            else to[W + i] += across * tile[i];
    }
}

}  // namespace

extern "C" void kgd_pair_tiles(const float* candidates, int64_t m, int32_t threads, float* out) {
    transpose(candidates, m, 0, threads, out);
}

// out [n, 16·⌈m/16⌉]: scores without the model's offset
extern "C" void kgd_pair_scores(const float* tiles, const float* queries, int64_t n, int64_t m, int32_t threads,
                                float* out) {
    const int64_t count = tiles_of(m), group = std::max<int64_t>(1, GROUP_BYTES / (W * LANES * 4));
    const V* table = reinterpret_cast<const V*>(tiles);
#pragma omp parallel for num_threads(threads)
    for (int64_t from = 0; from < n; from += 64)
        for (int64_t first = 0; first < count; first += group)
            for (int64_t at = from; at < std::min(n, from + 64); at += QUERIES)
                for (int64_t tile = first; tile < std::min(count, first + group); tile++) {
                    V s[QUERIES];
                    const int here = int(std::min<int64_t>(QUERIES, n - at));
                    if (here == QUERIES) score<QUERIES>(table + tile * W, queries + at * QW, s);
                    else
                        for (int j = 0; j < here; j++) score<1>(table + tile * W, queries + (at + j) * QW, s + j);
                    for (int j = 0; j < here; j++)
                        std::memcpy(out + ((at + j) * count + tile) * LANES, s + j, sizeof(V));
                }
}

// upstream [n, 16·⌈m/16⌉]: ∂L/∂score, zero past m; to_queries [n, QW] and to_tiles, as `tiles`: out.
// Returns 0, or 1 where memory ran out.
extern "C" int32_t kgd_pair_gradients(const float* tiles, const float* queries, const float* upstream, int64_t n, int64_t m,
                                      float least, int32_t threads, float* to_queries, float* to_tiles) {
    const int64_t count = tiles_of(m);
    const V* table = reinterpret_cast<const V*>(tiles);
    const auto at = [&](int64_t i, int64_t tile) {
        V g;
        std::memcpy(&g, upstream + (i * count + tile) * LANES, sizeof g);
        return g;
    };
    Memory memory;
#pragma omp parallel num_threads(threads)
    {
        V small[LARGE ? 1 : QW];
        std::vector<V> large;
        const bool ready = memory.enough_for([&] { large.resize(LARGE ? QW : 0); });
        V* to = LARGE ? large.data() : small;
#pragma omp for schedule(dynamic, 8)
        for (int64_t i = 0; i < n; i++) {
            if (!ready) continue;
            std::fill_n(to, QW, V{});
            for (int64_t tile = 0; tile < count; tile++) {
                const V g = at(i, tile);
                if (any_above(g, least)) gradient<false>(table + tile * W, queries + i * QW, g, to);
            }
            for (int w = 0; w < QW; w++) to_queries[i * QW + w] = sum(to[w]);
        }
#pragma omp for schedule(dynamic, 8)
        for (int64_t tile = 0; tile < count; tile++) {
            if (!ready) continue;
            std::fill_n(to, W, V{});
            for (int64_t i = 0; i < n; i++) {
                const V g = at(i, tile);
                if (any_above(g, least)) gradient<true>(table + tile * W, queries + i * QW, g, to);
            }
            std::memcpy(to_tiles + tile * W * LANES, to, sizeof(V) * W);
        }
    }
    return memory.out;
}

extern "C" void kgd_pair_rows(const float* tiles, int64_t m, int32_t threads, float* out) {  // tiles back to rows [m, W]
#pragma omp parallel for num_threads(threads)
    for (int64_t e = 0; e < m; e++)
        for (int i = 0; i < W; i++) out[e * W + i] = tiles[(e / LANES * W + i) * LANES + e % LANES];
}
