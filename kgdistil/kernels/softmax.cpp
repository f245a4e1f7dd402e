// Softmax over candidates: losses of queries and their gradients, `kgdistil.losses.softmax_hard_loss` and `softmax_soft_loss`.
// KGD_HALF: scores and gradients are bfloat16, else float32.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>
#include "memory.h"
#include "parts.h"

#if KGD_HALF
typedef Half Score;
#else
typedef float Score;
#endif

// e^x for x <= 0, to 2e-7 of it: 2^n by the exponent's bits, 2^f, |f| <= 1/2, by its series (Abramowitz and Stegun 4.2.1)
static inline float power(float x) {
    const float t = (x > -87.0f ? x : -87.0f) * 1.442695041f, n = std::nearbyint(t), f = (t - n) * 0.6931471806f;
    const float p = 1 + f * (1 + f * (0.5f + f * (1.0f / 6 + f * (1.0f / 24 + f * (1.0f / 120 + f * (1.0f / 720))))));
    const int32_t bits = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}

// x[j] = (scores[j] + shift[j]) / T, e[j] = e^(x[j] - largest), `here` the sum of e, `sum` that of all candidates and
// `log_sum` its logarithm, where other processes have some of them as well
struct Row {
    std::vector<float> x, e;
    float largest = 0, here = 0, sum = 0, log_sum = 0;
    void of_all(float everywhere) {
        log_sum = everywhere, sum = std::exp(std::min(80.0f, everywhere - largest));
    }
    void read(const Score *scores, const float *shift, int64_t m, float cold) {
        float high = -INFINITY, total = 0;
        float *to = x.data(), *powers = e.data();
        for (int64_t j = 0; j < m; j++) to[j] = (wide(scores[j]) + shift[j]) * cold;
#pragma omp simd reduction(max : high)
        for (int64_t j = 0; j < m; j++) high = to[j] > high ? to[j] : high;
#pragma omp simd reduction(+ : total)
        for (int64_t j = 0; j < m; j++) {
            const float p = power(to[j] - high);
            powers[j] = p;
            total += p;
        }
        largest = high, here = sum = total, log_sum = high + std::log(total);
    }
};

struct Softmax {
    const Score *scores, *other;  // [n, stride]; other: of the model whose softmax is the soft label, or null
    const float *shift;           // [m], added to both
    const int64_t *start, *place; // [n + 1] and [a]: the answers of query i are place[start[i] .. start[i + 1]]
    const float *labels;          // [n], what each query counts in the soft loss
    const int64_t *counts;        // [n], answers of each query where other processes have some of them, or null
    const float *everywhere;      // [3, n], log-sums of all processes: of scores, of scores / T, of other / T; or null
    float *sums;                  // [3, n], those of what is here, or null: with `everywhere` given, else wanted alone
    int64_t n, m, stride, total;  // total: answers of all queries, with those
    float temperature, hard, soft;  // of the soft label; what each loss counts in the gradient
    int32_t threads;
    Score *gradient;   // [n, stride] of hard * (mean over answers) + soft * (sum of what queries count), or null; where
                       // sums alone are wanted, and there is no other, the softmax over what is here
    double *losses;    // [n, 2] of each query, what it adds to each of the two
};

extern "C" void kgd_sizes(int64_t *sizes) { sizes[0] = sizeof(Softmax); }

// The hard loss of query i and its gradient, of the softmax over what is here that `gradient` holds.
static double from_softmax(const Softmax &J, int64_t i, float all) {
    const Score *scores = J.scores + i * J.stride;
    Score *to = J.gradient + i * J.stride;
    const float lse = J.everywhere[i], weight = J.hard * J.counts[i] * all, scale = weight * std::exp(J.sums[i] - lse);
#pragma omp simd
    for (int64_t j = 0; j < J.m; j++) put(scale * wide(to[j]), to[j]);
    double hard = 0;  // answers anew, whose difference would be rounded twice; one may stand there twice
    for (int64_t k = J.start[i]; k < J.start[i + 1]; k++) put(0, to[J.place[k]]);
    for (int64_t k = J.start[i]; k < J.start[i + 1]; k++) {
        const int64_t j = J.place[k];
        const float x = wide(scores[j]) + J.shift[j] - lse, before = wide(to[j]);
        hard -= x, put((before == 0 ? weight * std::exp(x) : before) - J.hard * all, to[j]);
    }
    return hard * all;
}

// Returns 0, or 1 where memory ran out.
extern "C" int32_t kgd_softmax(const Softmax *job) {
    const Softmax &J = *job;
    const float cold = 1 / J.temperature, all = 1.0f / std::max<int64_t>(1, J.total);
    const bool tempered = J.other && J.temperature != 1;
    Memory memory;
#pragma omp parallel num_threads(J.threads)
    {
        Row own, cool, label;
        const bool ready = memory.enough_for([&] {
            for (Row *row : {&own, &cool, &label}) row->x.resize(J.m), row->e.resize(J.m);
        });
#pragma omp for schedule(static)
        for (int64_t i = 0; i < J.n; i++) {
            if (!ready) continue;
            const int64_t first = J.start[i], last = J.start[i + 1];
            if (J.everywhere && J.sums && !J.other) {
                J.losses[2 * i] = from_softmax(J, i, all), J.losses[2 * i + 1] = 0;
                continue;
            }
            const float count = float(J.counts ? J.counts[i] : last - first);
            double hard = 0, soft = 0;
            const Row &mine = tempered ? cool : own;
            own.read(J.scores + i * J.stride, J.shift, J.m, 1);
            if (tempered) cool.read(J.scores + i * J.stride, J.shift, J.m, cold);
            if (J.other) label.read(J.other + i * J.stride, J.shift, J.m, cold);
            if (!J.everywhere && J.sums) {
                J.sums[i] = own.log_sum, J.sums[J.n + i] = mine.log_sum, J.sums[2 * J.n + i] = label.log_sum;
                if (J.gradient) {
                    Score *to = J.gradient + i * J.stride;
                    const float *e = own.e.data(), part = 1 / own.here;
#pragma omp simd
                    for (int64_t j = 0; j < J.m; j++) put(part * e[j], to[j]);
                    std::fill(to + J.m, to + J.stride, Score(0));
                }
                continue;
            }
            if (J.everywhere) {
                own.of_all(J.everywhere[i]);
                if (tempered) cool.of_all(J.everywhere[J.n + i]);
                if (J.other) label.of_all(J.everywhere[2 * J.n + i]);
            }
            for (int64_t a = first; a < last; a++) hard += double(own.log_sum) - own.x[J.place[a]];
            if (J.other) {
                double met = 0;
                const float *e = label.e.data(), *x = mine.x.data();
#pragma omp simd reduction(+ : met)
                for (int64_t j = 0; j < J.m; j++) met += e[j] * x[j];
                soft = J.temperature * J.temperature * J.labels[i] * (double(mine.log_sum) * (label.here / label.sum) - met / label.sum);
            }
            J.losses[2 * i] = hard * all, J.losses[2 * i + 1] = soft;
            if (!J.gradient) continue;
            Score *to = J.gradient + i * J.stride;
            const float a = J.hard * count * all / own.sum, *e = own.e.data();
            if (J.other) {
                const float b = J.soft * J.temperature * J.labels[i], c = b / mine.sum, d = b / label.sum;
                const float *f = mine.e.data(), *g = label.e.data();
                float *x = own.x.data();
#pragma omp simd
                for (int64_t j = 0; j < J.m; j++) x[j] = a * e[j] + c * f[j] - d * g[j];
            } else {
                float *x = own.x.data();
#pragma omp simd
                for (int64_t j = 0; j < J.m; j++) x[j] = a * e[j];
            }
            for (int64_t k = first; k < last; k++) own.x[J.place[k]] -= J.hard * all;
            const float *x = own.x.data();
#pragma omp simd
            for (int64_t j = 0; j < J.m; j++) put(x[j], to[j]);
            std::fill(to + J.m, to + J.stride, Score(0));
        }
    }
    return memory.out;
}
