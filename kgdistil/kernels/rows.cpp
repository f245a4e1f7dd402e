// The rows of a table that a step uses: into bfloat16 for products of matrices, their N3 (Lacroix et al. 2018), what ComplEx
// compares with entities and with relations, and back by Adagrad (Duchi et al. 2011).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <omp.h>
#include <vector>
#include "memory.h"
#include "parts.h"

struct Step {
    Parts parts;
    const int64_t *order, *start, *ids;  // gradients order[start[i] .. start[i + 1]] are of row ids[i] of the table
    int64_t rows;
    float *table, *sums;  // [E, width], and [E, width] or [E, 1]
    float *into;          // [rows, width]: gradients are summed there instead
    float rate;
    int32_t by_row, threads;
};

// Returns 0, or 1 where memory ran out.
extern "C" int32_t kgd_step(const Step *job) {
    const Step &J = *job;
    const int64_t W = J.parts.width;
    Memory memory;
#pragma omp parallel num_threads(J.threads)
    {
        std::vector<float> sum;
        const bool ready = memory.enough_for([&] { sum.resize(W); });
#pragma omp for schedule(static)
        for (int64_t i = 0; i < J.rows; i++) {
            if (!ready) continue;
            if (!J.into && i + 4 < J.rows) {
                const int64_t soon = J.ids[i + 4];
                for (int64_t w = 0; w < W; w += 16) {
                    __builtin_prefetch(J.table + soon * W + w, 1);
                    if (!J.by_row) __builtin_prefetch(J.sums + soon * W + w, 1);
                }
                if (J.by_row) __builtin_prefetch(J.sums + soon, 1);
            }
            float *g = sum.data();
            std::fill(g, g + W, 0.0f);
            for (int64_t k = J.start[i]; k < J.start[i + 1]; k++)
                J.parts.row(J.order[k], [&](const auto *from) {
                    for (int64_t w = 0; w < W; w++) g[w] += wide(from[w]);
                });
            if (J.into) {
                std::copy(g, g + W, J.into + i * W);
                continue;
            }
            float *x = J.table + J.ids[i] * W;
            if (J.by_row) {
                float square = 0, &v = J.sums[J.ids[i]];
#pragma omp simd reduction(+ : square)
                for (int64_t w = 0; w < W; w++) square += g[w] * g[w];
                v += square / W;
                const float by = J.rate / (std::sqrt(v) + 1e-10f);
                for (int64_t w = 0; w < W; w++) x[w] -= by * g[w];
            } else {
                float *v = J.sums + J.ids[i] * W;
                for (int64_t w = 0; w < W; w++) {
                    v[w] += g[w] * g[w];
                    x[w] -= J.rate * (g[w] / (std::sqrt(v[w]) + 1e-10f));
                }
            }
        }
    }
    return memory.out;
}

// The same of n numbers that all have a gradient g.
extern "C" void kgd_adagrad(const float *g, int64_t n, float rate, int threads, float *x, float *sums) {
#pragma omp parallel for simd num_threads(threads) schedule(static) if (n > 1 << 15)
    for (int64_t i = 0; i < n; i++) {
        sums[i] += g[i] * g[i];
        x[i] -= rate * (g[i] / (std::sqrt(sums[i]) + 1e-10f));
    }
}

// Rows places[i] of a table [E, W], as they are or in bfloat16, [padded, W], those beyond n nothing. Returns whether a
// place is outside the table.
template <class Number>
static int32_t taken(const float *table, int64_t E, const int64_t *places, int64_t n, int64_t padded, int64_t W, int threads,
                     Number *to) {
    int32_t outside = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : outside)
    for (int64_t i = 0; i < padded; i++) {
        Number *out = to + i * W;
        const bool bad = i < n && uint64_t(places[i]) >= uint64_t(E);
        outside |= bad;
        if (i >= n || bad) {
            std::fill(out, out + W, Number(0));
            continue;
        }
        if (i + 6 < n)
            for (int64_t w = 0; w < W; w += 16) __builtin_prefetch(table + places[i + 6] * W + w);
        const float *row = table + places[i] * W;
        for (int64_t w = 0; w < W; w++) put(row[w], out[w]);
    }
    return outside;
}

extern "C" int32_t kgd_rows(const float *table, int64_t E, const int64_t *places, int64_t n, int64_t padded, int64_t W, int32_t half,
                            int threads, void *to) {
    return half ? taken(table, E, places, n, padded, W, threads, static_cast<Half *>(to))
                : taken(table, E, places, n, padded, W, threads, static_cast<float *>(to));
}

// Of a table [R, E] the rows [n] and of those the columns [m], into [n, stride], with nothing beyond m. Returns whether one
// is outside the table.
template <class Number>
static int32_t among(const Number *table, int64_t R, int64_t E, const int64_t *rows, int64_t n, const int64_t *columns, int64_t m,
                     int64_t stride, int threads, Number *to) {
    for (int64_t i = 0; i < n; i++)
        if (uint64_t(rows[i]) >= uint64_t(R)) return 1;
    for (int64_t j = 0; j < m; j++)
        if (uint64_t(columns[j]) >= uint64_t(E)) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const Number *row = table + rows[i] * E;
        Number *out = to + i * stride;
        for (int64_t j = 0; j < m; j++) out[j] = row[columns[j]];
        std::fill(out + m, out + stride, Number(0));
    }
    return 0;
}

extern "C" int32_t kgd_among(const void *table, int64_t R, int64_t E, const int64_t *rows, int64_t n, const int64_t *columns,
                             int64_t m, int64_t stride, int32_t half, int threads, void *to) {
    return half ? among(static_cast<const Half *>(table), R, E, rows, n, columns, m, stride, threads, static_cast<Half *>(to))
                : among(static_cast<const float *>(table), R, E, rows, n, columns, m, stride, threads, static_cast<float *>(to));
}

// What each row counts in the mean of N3 over a batch's triples, n queries with their anchors and relations and u answers
// of which the j-th stands begins[j + 1] - begins[j] times: own [n], of_relation [R], which begins at nothing, and others [u].
extern "C" void kgd_shares(const int64_t *count, const int64_t *relation, int64_t n, const int64_t *begins, int64_t u,
                           float directions, float *own, float *of_relation, float *others) {
    int64_t total = 0;
    for (int64_t i = 0; i < n; i++) total += count[i];
    for (int64_t i = 0; i < n; i++) own[i] = count[i] / float(total), of_relation[relation[i]] += own[i] / directions;
    for (int64_t j = 0; j < u; j++) others[j] = (begins[j + 1] - begins[j]) / float(total);
}

// Of complex rows x [n, W], whose halves are real and imaginary parts: sums of |.|^3, each by the weight of its `each`
// rows, and `by` times their gradients.
extern "C" void kgd_cubes(const float *x, const float *weights, int64_t n, int64_t W, int64_t each, float by, int threads,
                          float *sums, float *slopes) {
    const int64_t half = W / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const float *a = x + i * W, *b = a + half, weight = weights[i / each], slope = 3 * by * weight;
        float *to = slopes + i * W, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t w = 0; w < half; w++) {
            const float square = a[w] * a[w] + b[w] * b[w], size = std::sqrt(square);
            sum += square * size;
            to[w] = slope * size * a[w];
            to[half + w] = slope * size * b[w];
        }
        sums[i] = weight * sum;
    }
}

// Queries of ComplEx: the products of complex rows x [n, 2 d] with their relations r [n, 2 d], or [n, 4 d] of two
// directions; from row `tails` on with the conjugate, of the second direction where there are two.
struct Products {
    const float *x, *r;
    const int64_t *ids;  // [n], which of the R rows of r each takes
    int64_t n, d, tails, R;
    int32_t directed, half, add, threads;
    void *queries;       // [n, 2 d], float32 or bfloat16; in `kgd_products_back` their gradients
    float *of_x, *of_r;  // gradients, [n, 2 d], added to what stands there where `add`, and a row for each query
    const float *relation(int64_t i) const { return r + ids[i] * (directed ? 4 : 2) * d; }
};

template <class Number> static int32_t products(const Products &J, Number *queries) {
    const int64_t d = J.d;
    for (int64_t i = 0; i < J.n; i++)
        if (uint64_t(J.ids[i]) >= uint64_t(J.R)) return 1;
#pragma omp parallel for num_threads(J.threads) schedule(static)
    for (int64_t i = 0; i < J.n; i++) {
        const bool head = i >= J.tails;
        const float *a = J.x + i * 2 * d, *b = a + d, *c = J.relation(i) + (head && J.directed ? 2 * d : 0), *e = c + d;
        const float sign = head ? -1 : 1;
        Number *to = queries + i * 2 * d;
#pragma omp simd
        for (int64_t w = 0; w < d; w++) {
            const float f = sign * e[w];
            put(a[w] * c[w] - b[w] * f, to[w]);
            put(a[w] * f + b[w] * c[w], to[d + w]);
        }
    }
    return 0;
}

template <class Number> static void products_back(const Products &J, const Number *gradients) {
    const int64_t d = J.d, R = (J.directed ? 4 : 2) * d;
#pragma omp parallel for num_threads(J.threads) schedule(static)
    for (int64_t i = 0; i < J.n; i++) {
        const bool head = i >= J.tails;
        const int64_t second = head && J.directed ? 2 * d : 0;
        const float *a = J.x + i * 2 * d, *b = a + d, *c = J.relation(i) + second, *e = c + d, sign = head ? -1 : 1;
        const Number *g = gradients + i * 2 * d;
        float *of_x = J.of_x + i * 2 * d, *of_r = J.of_r + i * R + second;
        if (J.directed) std::fill(J.of_r + i * R, J.of_r + (i + 1) * R, 0.0f);
#pragma omp simd
        for (int64_t w = 0; w < d; w++) {
            const float f = sign * e[w], p = wide(g[w]), q = wide(g[d + w]);
            of_x[w] = (J.add ? of_x[w] : 0) + p * c[w] + q * f;
            of_x[d + w] = (J.add ? of_x[d + w] : 0) + q * c[w] - p * f;
            of_r[w] = p * a[w] + q * b[w];
            of_r[d + w] = sign * (q * a[w] - p * b[w]);
        }
    }
}

// Returns whether an id is no row of r.
extern "C" int32_t kgd_products(const Products *job) {
    return job->half ? products(*job, static_cast<Half *>(job->queries)) : products(*job, static_cast<float *>(job->queries));
}

extern "C" void kgd_products_back(const Products *job) {
    if (job->half) products_back(*job, static_cast<const Half *>(job->queries));
    else products_back(*job, static_cast<const float *>(job->queries));
}

// What ComplEx compares with relations: conj(h) t of the triples of n queries x [n, 2 d] and their answers y [u, 2 d].
struct Between {
    const float *x, *y;
    const int64_t *begins, *row, *answer;  // query row[j] has answer answer[j], j from begins[i] to begins[i + 1] of query i
    const int64_t *order, *start;          // triples order[start[k] .. start[k + 1]] are of answer k
    int64_t n, u, d, turned;               // from query `turned` on, the answer is the head
    int32_t half, threads;
    void *between;       // [triples, 2 d], float32 or bfloat16; in `kgd_between_back` its gradients
    float *of_x, *of_y;  // to which gradients are added
};

template <class Number> static void between(const Between &J, Number *found) {
    const int64_t d = J.d;
#pragma omp parallel for num_threads(J.threads) schedule(static)
    for (int64_t j = 0; j < J.begins[J.n]; j++) {
        const float *a = J.x + J.row[j] * 2 * d, *c = J.y + J.answer[j] * 2 * d;
        if (J.row[j] >= J.turned) std::swap(a, c);
        const float *b = a + d, *e = c + d;
        Number *to = found + j * 2 * d;
#pragma omp simd
        for (int64_t w = 0; w < d; w++) {
            put(a[w] * c[w] + b[w] * e[w], to[w]);
            put(a[w] * e[w] - b[w] * c[w], to[d + w]);
        }
    }
}

// Adds the gradient of a head, whose triple's is g and whose tail x, or of a tail, whose head x is.
template <class Number> static void add_slopes(const Number *g, const float *x, bool head, int64_t d, float *to) {
    const float sign = head ? 1 : -1;
#pragma omp simd
    for (int64_t w = 0; w < d; w++) {
        const float p = wide(g[w]), q = sign * wide(g[d + w]);
        to[w] += p * x[w] + q * x[d + w];
        to[d + w] += p * x[d + w] - q * x[w];
    }
}

template <class Number> static void between_back(const Between &J, const Number *gradients) {
    const int64_t W = 2 * J.d;
#pragma omp parallel num_threads(J.threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < J.n; i++)
            for (int64_t j = J.begins[i]; j < J.begins[i + 1]; j++)
                add_slopes(gradients + j * W, J.y + J.answer[j] * W, i < J.turned, J.d, J.of_x + i * W);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < J.u; k++)
            for (int64_t p = J.start[k]; p < J.start[k + 1]; p++) {
                const int64_t j = J.order[p], i = J.row[j];
                add_slopes(gradients + j * W, J.x + i * W, i >= J.turned, J.d, J.of_y + k * W);
            }
    }
}

extern "C" void kgd_between(const Between *job) {
    if (job->half) between(*job, static_cast<Half *>(job->between));
    else between(*job, static_cast<float *>(job->between));
}

extern "C" void kgd_between_back(const Between *job) {
    if (job->half) between_back(*job, static_cast<const Half *>(job->between));
    else between_back(*job, static_cast<const float *>(job->between));
}

// Rows [n, W] added by their ids to what stands in sums [., W], in the order of the rows.
extern "C" void kgd_by_id(const float *rows, const int64_t *ids, int64_t n, int64_t W, int threads, float *sums) {
#pragma omp parallel num_threads(threads)
    {
        const int64_t own = (W + omp_get_num_threads() - 1) / omp_get_num_threads();
        const int64_t from = std::min(W, own * omp_get_thread_num()), to = std::min(W, from + own);
        for (int64_t i = 0; i < n; i++)
            for (int64_t w = from; w < to; w++) sums[ids[i] * W + w] += rows[i * W + w];
    }
}

extern "C" void kgd_sizes(int64_t *sizes) { sizes[0] = sizeof(Step), sizes[1] = sizeof(Products), sizes[2] = sizeof(Between); }
