// Score functions of kgdistil/models.py for one model and dimension, fixed when this file is compiled:
//   -DKGD_MODEL=RotatE -DKGD_DIM=8 -DKGD_NORM=1
// A model folds (h, r) or (r, t) into a query q (fold) and compares q with an entity (Compare). Gradients are of
// the score; larger means more plausible. Complex vectors are [real half | imaginary half].
#pragma once
#include <cmath>
#include <cstdint>

constexpr int D = KGD_DIM;
#define VECTOR _Pragma("omp simd")
#define VECTOR_SUM(x) _Pragma(KGD_STRING(omp simd reduction(+ : x)))
#define KGD_STRING(x) #x

// ---- comparing a query with an entity --------------------------------------------------------------------------
// score(q, e); add c · ∂score/∂q to gq; add c · ∂score/∂e to ge
struct Dot {
    template <int W> struct Of {
        static constexpr int QUERY = W;
        static float score(const float* q, const float* e) {
            float s = 0;
            VECTOR_SUM(s) for (int i = 0; i < W; i++) s += q[i] * e[i];
            return s;
        }
        static void grad_query(const float*, const float* e, float c, float* gq) {
            VECTOR for (int i = 0; i < W; i++) gq[i] += c * e[i];
        }
        static void grad_entity(const float* q, const float*, float c, float* ge) {
            VECTOR for (int i = 0; i < W; i++) ge[i] += c * q[i];
        }
    };
};

inline float sign(float x) { return x > 0 ? 1.f : (x < 0 ? -1.f : 0.f); }

// −‖u‖ₚ and its derivative by u, for u = q − e
template <int NORM> inline float minus_norm(const float* u, int n) {
    float s = 0;
    if constexpr (NORM == 1) { VECTOR_SUM(s) for (int i = 0; i < n; i++) s += std::fabs(u[i]); return -s; }
    VECTOR_SUM(s) for (int i = 0; i < n; i++) s += u[i] * u[i];
    return -std::sqrt(s);
}
template <int NORM> inline void minus_norm_grad(const float* u, int n, float* s) {
    if constexpr (NORM == 1) { VECTOR for (int i = 0; i < n; i++) s[i] = -sign(u[i]); return; }
    const float length = -minus_norm<2>(u, n), c = length > 0 ? -1 / length : 0;
    VECTOR for (int i = 0; i < n; i++) s[i] = c * u[i];
}

template <int NORM> struct Distance {
    template <int W> struct Of {
        static constexpr int QUERY = W;
        static float score(const float* q, const float* e) {
            float u[W];
            VECTOR for (int i = 0; i < W; i++) u[i] = q[i] - e[i];
            return minus_norm<NORM>(u, W);
        }
        static void add(const float* q, const float* e, float c, float* g) {
            float u[W], s[W];
            VECTOR for (int i = 0; i < W; i++) u[i] = q[i] - e[i];
            minus_norm_grad<NORM>(u, W, s);
            VECTOR for (int i = 0; i < W; i++) g[i] += c * s[i];
        }
        static void grad_query(const float* q, const float* e, float c, float* gq) { add(q, e, c, gq); }
        static void grad_entity(const float* q, const float* e, float c, float* ge) { add(q, e, -c, ge); }
    };
};

struct Modulus {  // −Σᵢ |qᵢ − eᵢ|, complex
    template <int W> struct Of {
        static constexpr int QUERY = W, H = W / 2;
        static float score(const float* q, const float* e) {
            float s = 0;
            VECTOR_SUM(s) for (int i = 0; i < H; i++) {
                const float a = q[i] - e[i], b = q[H + i] - e[H + i];
                s += std::sqrt(a * a + b * b + 1e-30f);
            }
            return -s;
        }
        static void add(const float* q, const float* e, float c, float* g) {
            VECTOR for (int i = 0; i < H; i++) {
                const float a = q[i] - e[i], b = q[H + i] - e[H + i];
                const float f = -c / std::sqrt(a * a + b * b + 1e-30f);
                g[i] += f * a;
                g[H + i] += f * b;
            }
        }
        static void grad_query(const float* q, const float* e, float c, float* gq) { add(q, e, c, gq); }
        static void grad_entity(const float* q, const float* e, float c, float* ge) { add(q, e, -c, ge); }
    };
};

template <int NORM> struct Hyperplane {  // −‖p − (e − (w·e)w)‖ for a query [p | w]
    template <int W> struct Of {
        static constexpr int QUERY = 2 * W;
        static float offset(const float* q, const float* e, float* u) {
            float a = 0;
            VECTOR_SUM(a) for (int i = 0; i < W; i++) a += q[W + i] * e[i];
            VECTOR for (int i = 0; i < W; i++) u[i] = q[i] - e[i] + a * q[W + i];
            return a;
        }
        static float score(const float* q, const float* e) {
            float u[W];
            offset(q, e, u);
            return minus_norm<NORM>(u, W);
        }
        static void grad_query(const float* q, const float* e, float c, float* gq) {
            float u[W], s[W], along = 0;
            const float a = offset(q, e, u), *w = q + W;
            minus_norm_grad<NORM>(u, W, s);
            VECTOR_SUM(along) for (int i = 0; i < W; i++) along += s[i] * w[i];
            VECTOR for (int i = 0; i < W; i++) gq[i] += c * s[i];
            VECTOR for (int i = 0; i < W; i++) gq[W + i] += c * (a * s[i] + along * e[i]);
        }
        static void grad_entity(const float* q, const float* e, float c, float* ge) {
            float u[W], s[W], along = 0;
            const float* w = q + W;
            offset(q, e, u);
            minus_norm_grad<NORM>(u, W, s);
            VECTOR_SUM(along) for (int i = 0; i < W; i++) along += s[i] * w[i];
            VECTOR for (int i = 0; i < W; i++) ge[i] += c * (along * w[i] - s[i]);
        }
    };
};

// ---- models ----------------------------------------------------------------------------------------------------
// ENTITY, RELATION: floats stored; PREPARED: floats of a relation once prepared (angles turned into unit complex
// numbers, normals scaled to length one), which happens once per relation and step.
template <int N> inline void copy(const float* from, float* to) { VECTOR for (int i = 0; i < N; i++) to[i] = from[i]; }
template <int N> inline void add(const float* from, float* to) { VECTOR for (int i = 0; i < N; i++) to[i] += from[i]; }

template <int N> struct Plain {  // relations used as they are stored
    static constexpr int RELATION = N, PREPARED = N;
    static void prepare(const float* r, float, float* out) { copy<N>(r, out); }
    static void prepare_grad(const float*, const float*, float, const float* g, float* gr) { copy<N>(g, gr); }
};

template <int N, bool COMPLEX> inline float cubes(const float* x, float c, float* g) {  // c Σ|x|³ and its gradient
    float s = 0;
    if constexpr (COMPLEX) {
        VECTOR_SUM(s) for (int i = 0; i < N / 2; i++) {
            const float square = x[i] * x[i] + x[N / 2 + i] * x[N / 2 + i], m = std::sqrt(square);
            s += square * m;
            g[i] += 3 * c * m * x[i];
            g[N / 2 + i] += 3 * c * m * x[N / 2 + i];
        }
    } else {
        VECTOR_SUM(s) for (int i = 0; i < N; i++) {
            const float m = std::fabs(x[i]);
            s += m * m * m;
            g[i] += 3 * c * m * x[i];
        }
    }
    return c * s;
}
template <int E, int R, bool COMPLEX> struct N3 {
    static float penalty(const float* h, const float* r, const float* t, float c, float* gh, float* gr, float* gt) {
        return cubes<E, COMPLEX>(h, c, gh) + cubes<R, COMPLEX>(r, c, gr) + cubes<E, COMPLEX>(t, c, gt);
    }
};
struct NoPenalty {
    static float penalty(const float*, const float*, const float*, float, float*, float*, float*) { return 0; }
};

struct TransE : Plain<D>, NoPenalty {
    static constexpr int ENTITY = D;
    using Compare = Distance<KGD_NORM>::Of<ENTITY>;
    static void fold(const float* a, const float* r, bool tail, float* q) {
        const float s = tail ? 1 : -1;
        VECTOR for (int i = 0; i < D; i++) q[i] = a[i] + s * r[i];
    }
    static void fold_grad(const float*, const float*, bool tail, const float* gq, float* ga, float* gr) {
        const float s = tail ? 1 : -1;
        VECTOR for (int i = 0; i < D; i++) { ga[i] += gq[i]; gr[i] += s * gq[i]; }
    }
};

struct TransH {  // prepared: [d_r | w/‖w‖]
    static constexpr int ENTITY = D, RELATION = 2 * D, PREPARED = 2 * D;
    using Compare = Hyperplane<KGD_NORM>::Of<ENTITY>;
    static void prepare(const float* r, float, float* out) {
        float s = 0;
        VECTOR_SUM(s) for (int i = 0; i < D; i++) s += r[D + i] * r[D + i];
        const float c = 1 / std::fmax(std::sqrt(s), 1e-12f);
        VECTOR for (int i = 0; i < D; i++) { out[i] = r[i]; out[D + i] = c * r[D + i]; }
    }
    static void prepare_grad(const float* r, const float* w, float, const float* g, float* gr) {
        float s = 0, along = 0;
        VECTOR_SUM(s) for (int i = 0; i < D; i++) s += r[D + i] * r[D + i];
        VECTOR_SUM(along) for (int i = 0; i < D; i++) along += w[D + i] * g[D + i];
        const float c = 1 / std::fmax(std::sqrt(s), 1e-12f);
        VECTOR for (int i = 0; i < D; i++) { gr[i] = g[i]; gr[D + i] = c * (g[D + i] - along * w[D + i]); }
    }
    static void fold(const float* a, const float* r, bool tail, float* q) {
        const float s = tail ? 1 : -1;
        float along = 0;
        VECTOR_SUM(along) for (int i = 0; i < D; i++) along += a[i] * r[D + i];
        VECTOR for (int i = 0; i < D; i++) { q[i] = a[i] - along * r[D + i] + s * r[i]; q[D + i] = r[D + i]; }
    }
    static void fold_grad(const float* a, const float* r, bool tail, const float* gq, float* ga, float* gr) {
        const float s = tail ? 1 : -1, *w = r + D;
        float along = 0, across = 0;
        VECTOR_SUM(along) for (int i = 0; i < D; i++) along += a[i] * w[i];
        VECTOR_SUM(across) for (int i = 0; i < D; i++) across += gq[i] * w[i];
        VECTOR for (int i = 0; i < D; i++) {
            ga[i] += gq[i] - across * w[i];
            gr[i] += s * gq[i];
            gr[D + i] += gq[D + i] - along * gq[i] - across * a[i];
        }
    }
    static float long_part(const float* e, float c, float* g) {  // c [‖e‖² − 1]₊
        float s = -1;
        VECTOR_SUM(s) for (int i = 0; i < D; i++) s += e[i] * e[i];
        if (s <= 0) return 0;
        VECTOR for (int i = 0; i < D; i++) g[i] += 2 * c * e[i];
        return c * s;
    }
    static float penalty(const float* h, const float* r, const float* t, float c, float* gh, float* gr, float* gt) {
        float total = long_part(h, c, gh) + long_part(t, c, gt), wd = 0, dd = 0;
        VECTOR_SUM(wd) for (int i = 0; i < D; i++) wd += r[i] * r[D + i];
        VECTOR_SUM(dd) for (int i = 0; i < D; i++) dd += r[i] * r[i];
        const bool clamped = dd < 1e-12f;
        dd = std::fmax(dd, 1e-12f);
        const float excess = wd * wd / dd - 1e-6f;
        if (excess <= 0) return total;
        const float a = 2 * c * wd / dd, b = clamped ? 0 : 2 * c * wd * wd / (dd * dd);
        VECTOR for (int i = 0; i < D; i++) { gr[i] += a * r[D + i] - b * r[i]; gr[D + i] += a * r[i]; }
        return total + c * excess;
    }
};

// q = a ∘ r for tails and a ∘ r̄ for heads, of complex vectors
inline void turn(const float* a, const float* r, bool tail, float* q) {
    const float s = tail ? 1 : -1;
    VECTOR for (int i = 0; i < D; i++) {
        q[i] = a[i] * r[i] - s * a[D + i] * r[D + i];
        q[D + i] = s * a[i] * r[D + i] + a[D + i] * r[i];
    }
}
inline void turn_grad(const float* a, const float* r, bool tail, const float* gq, float* ga, float* gr) {
    const float s = tail ? 1 : -1;
    VECTOR for (int i = 0; i < D; i++) {
        ga[i] += gq[i] * r[i] + s * gq[D + i] * r[D + i];
        ga[D + i] += gq[D + i] * r[i] - s * gq[i] * r[D + i];
        gr[i] += gq[i] * a[i] + gq[D + i] * a[D + i];
        gr[D + i] += s * (gq[D + i] * a[i] - gq[i] * a[D + i]);
    }
}

struct ComplEx : Plain<2 * D>, N3<2 * D, 2 * D, true> {
    static constexpr int ENTITY = 2 * D;
    using Compare = Dot::Of<ENTITY>;
    static constexpr auto fold = turn;
    static constexpr auto fold_grad = turn_grad;
};

struct RotatE : NoPenalty {  // prepared: [cos | sin] of the angles; scale: angle per stored value
    static constexpr int ENTITY = 2 * D, RELATION = D, PREPARED = 2 * D;
    using Compare = Modulus::Of<ENTITY>;
    static constexpr auto fold = turn;
    static constexpr auto fold_grad = turn_grad;
    static void prepare(const float* r, float scale, float* out) {
        VECTOR for (int i = 0; i < D; i++) { out[i] = std::cos(scale * r[i]); out[D + i] = std::sin(scale * r[i]); }
    }
    static void prepare_grad(const float*, const float* u, float scale, const float* g, float* gr) {
        VECTOR for (int i = 0; i < D; i++) gr[i] = scale * (g[D + i] * u[i] - g[i] * u[D + i]);
    }
};

struct DistMult : Plain<D>, N3<D, D, false> {
    static constexpr int ENTITY = D;
    using Compare = Dot::Of<ENTITY>;
    static void fold(const float* a, const float* r, bool, float* q) {
        VECTOR for (int i = 0; i < D; i++) q[i] = a[i] * r[i];
    }
    static void fold_grad(const float* a, const float* r, bool, const float* gq, float* ga, float* gr) {
        VECTOR for (int i = 0; i < D; i++) { ga[i] += gq[i] * r[i]; gr[i] += gq[i] * a[i]; }
    }
};

struct SimplE : Plain<2 * D>, N3<2 * D, 2 * D, false> {
    static constexpr int ENTITY = 2 * D;
    using Compare = Dot::Of<ENTITY>;
    static void fold(const float* a, const float* r, bool tail, float* q) {
        const float *first = tail ? r + D : r, *second = tail ? r : r + D;
        VECTOR for (int i = 0; i < D; i++) {
            q[i] = .5f * a[D + i] * first[i];
            q[D + i] = .5f * a[i] * second[i];
        }
    }
    static void fold_grad(const float* a, const float* r, bool tail, const float* gq, float* ga, float* gr) {
        const int f = tail ? D : 0, s = tail ? 0 : D;
        VECTOR for (int i = 0; i < D; i++) {
            ga[D + i] += .5f * gq[i] * r[f + i];
            ga[i] += .5f * gq[D + i] * r[s + i];
            gr[f + i] += .5f * gq[i] * a[D + i];
            gr[s + i] += .5f * gq[D + i] * a[i];
        }
    }
};

using Model = KGD_MODEL;
