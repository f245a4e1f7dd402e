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

// x[j] = (scores[j] + shift[j]) / T; returns its log-sum-exp, and leaves e^(x - largest) in e
struct Row {
    std::vector<float> x, e;
    float largest = 0, sum = 0;
    float log_sum() const { return largest + std::log(sum); }
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
        largest = high, sum = total;
    }
};

struct Softmax {
    const Score *scores, *other;  // [n, stride]; other: of the model whose softmax is the soft label, or null
    const float *shift;           // [m], added to both
    const int64_t *start, *place; // [n + 1] and [a]: the answers of query i are place[start[i] .. start[i + 1]]
    const float *labels;          // [n], what each query counts in the soft loss
    int64_t n, m, stride;
    float temperature, hard, soft;  // of the soft label; what each loss counts in the gradient
    int32_t threads;
    Score *gradient;   // [n, stride] of hard * (mean over answers) + soft * (sum of what queries count), or null
    double *losses;    // [n, 2] of each query, what it adds to each of the two
};

extern "C" void kgd_sizes(int64_t *sizes) { sizes[0] = sizeof(Softmax); }

// Returns 0, or 1 where memory ran out.
extern "C" int32_t kgd_softmax(const Softmax *job) {
    const Softmax &J = *job;
    const float cold = 1 / J.temperature, all = 1.0f / std::max<int64_t>(1, J.start[J.n]);
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
            const float count = float(last - first);
            own.read(J.scores + i * J.stride, J.shift, J.m, 1);
            double hard = 0, soft = 0;
            const float lse = own.log_sum();
            for (int64_t a = first; a < last; a++) hard += double(lse) - own.x[J.place[a]];
            const Row &mine = tempered ? cool : own;
            if (J.other) {
                if (tempered) cool.read(J.scores + i * J.stride, J.shift, J.m, cold);
                label.read(J.other + i * J.stride, J.shift, J.m, cold);
                double met = 0;
                const float *e = label.e.data(), *x = mine.x.data();
#pragma omp simd reduction(+ : met)
                for (int64_t j = 0; j < J.m; j++) met += e[j] * x[j];
                soft = J.temperature * J.temperature * J.labels[i] * (double(mine.log_sum()) - met / label.sum);
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
