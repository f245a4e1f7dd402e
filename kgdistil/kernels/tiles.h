// Scores of queries against entities that lie in tiles, for one kind of comparison and one width:
//   -DKGD_KIND=0 (dot) 1 (distance) 2 (modulus) 3 (hyperplane)   -DKGD_NORM=1|2   -DKGD_WIDTH=floats of an entity
// A tile holds as many entities as a vector of the processor has floats, 16 with AVX-512, 8 with AVX, transposed to
// [width][LANES]: one vector holds a coordinate of so many entities and scores need no horizontal sums. Wider vectors
// than the processor's would lie in memory, not in registers. Without -ffast-math a score is the same bits wherever it
// is computed.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int W = KGD_WIDTH, QUERIES = 8, KIND = KGD_KIND;
constexpr int QW = KIND == 3 ? 2 * W : W;
typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));

inline int64_t tiles_of(int64_t n) { return (n + 15) / 16 * (16 / LANES); }  // room is a multiple of 16 everywhere

inline V magnitude(V x) { return (V)((I)x & 0x7fffffff); }
inline V root(V x) {  // √x; never of a negative number
#if defined(__AVX512F__)
    // estimate and one Newton step: within 2 units in the last place, and faster than the exact instruction
    const __m512 a = (__m512)(x + 1e-30f);
    const V y = (V)_mm512_rsqrt14_ps(a), s = (V)a * y;
    return s + s * (.5f - .5f * s * y);
#elif defined(__AVX__)
    return (V)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE__)
    return (V)_mm_sqrt_ps((__m128)x);
#else
    V s;
    for (int i = 0; i < LANES; i++) s[i] = std::sqrt(x[i]);
    return s;
#endif
}

// scores of N queries [N][QW] against one tile [W][LANES]
template <int N> __attribute__((noinline)) void score(const V* tile, const float* q, V* out) {
    V s[N] = {};
    if constexpr (KIND == 0) {
        for (int i = 0; i < W; i++)
            for (int j = 0; j < N; j++) s[j] += q[j * QW + i] * tile[i];
    } else if constexpr (KIND == 1) {
        for (int i = 0; i < W; i++)
            for (int j = 0; j < N; j++) {
                const V u = q[j * QW + i] - tile[i];
                s[j] -= KGD_NORM == 1 ? magnitude(u) : u * u;
            }
    } else if constexpr (KIND == 2) {
        constexpr int H = W / 2;
        for (int i = 0; i < H; i++)
            for (int j = 0; j < N; j++) {
                const V a = q[j * QW + i] - tile[i], b = q[j * QW + H + i] - tile[H + i];
                s[j] -= root(a * a + b * b);
            }
    } else {
        V along[N] = {};
        for (int i = 0; i < W; i++)
            for (int j = 0; j < N; j++) along[j] += q[j * QW + W + i] * tile[i];
        for (int i = 0; i < W; i++)
            for (int j = 0; j < N; j++) {
                const V u = q[j * QW + i] - tile[i] + along[j] * q[j * QW + W + i];
                s[j] -= KGD_NORM == 1 ? magnitude(u) : u * u;
            }
    }
    for (int j = 0; j < N; j++) out[j] = (KIND == 1 || KIND == 3) && KGD_NORM == 2 ? -root(-s[j]) : s[j];
}

// entities [n, W] as tiles [tiles_of(n)][W][LANES]; lanes past n hold `past`
inline void transpose(const float* entities, int64_t n, float past, int32_t threads, float* out) {
    const int64_t tiles = tiles_of(n);
#pragma omp parallel for num_threads(threads)
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int lane = 0; lane < LANES; lane++) {
            const int64_t e = tile * LANES + lane;
            for (int i = 0; i < W; i++) out[(tile * W + i) * LANES + lane] = e < n ? entities[e * W + i] : past;
        }
}
