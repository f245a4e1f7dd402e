// One epoch of training, teacher and student together: sampling, scores, losses, gradients and Adam, with nothing
// leaving this call. The readable truth is models.py, losses.py, sampling.py and training.reference.ReferenceEngine; the tests
// hold this file to them.
//
// Threads share triples when they sample and score, and own entities when they gather gradients and update, with a
// barrier in between. Every sum is taken in one fixed order, so the result does not depend on the number of threads.
//
//   block of steps   sample      negatives of Eq. 2; each occurrence of an entity goes to its owner's list
//                    bucket      occurrences sorted by entity, and for each the step that needs the entity next
//   each step        loss        scores, Eq. 1–11, gradients of queries, heads, tails and relations
//                    update      per entity: its gradients added up and Adam, in one pass over its row
//
// A negative's gradient is never stored: it is recomputed in the update from its query and one coefficient.
// Adam is the dense one, of which a step must touch only the rows it uses: a row without a gradient still moves by its
// momentum, and that movement is known in advance. So an update runs on to the step before the row's next use, as far
// as the block has been sampled; what is left is made up for when the row is used (`refresh`).
#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>
#include <omp.h>
#if defined(__SSE__)
#include <immintrin.h>
#endif
#include "memory.h"
#include "scores.h"

namespace {

// ---- what Python hands over (training/native.py mirrors these structures) ---------------------------------------
struct Ops;
struct Learner {
    const Ops* ops;
    float *entity, *entity_m, *entity_v, *relation, *relation_m, *relation_v;
    int64_t num_entities, num_relations;
    const double* rates;  // learning rate of each step of this epoch
    float offset, scale, penalty;
    int32_t trained;
    float weight;  // α for the student, β for the teacher: what its soft label counts
};
struct Epoch {
    const int32_t* triples;  // [n, 3]
    int64_t n, first_step;
    const int64_t* keys;  // sorted keys of T
    int64_t num_keys;
    const uint64_t* bitmap;
    int32_t bitmap_bits, batch, k, margin_loss, weighting, threads;  // weighting: 0 sum, 1 mean, 2 self-adversarial
    uint64_t seed, epoch;
    float margin, temperature;
    Learner *student, *teacher;  // teacher may be null
    double losses[5];  // out, means over the epoch: L_soft^S, L_hard^S, L_soft^T, L_hard^T, penalties
    double phases[4];  // out, seconds of the first thread: sample (with the order), bucket, loss, update (with flush)
};

// ---- random numbers: SplitMix64 of a counter, as in sampling.py ---------------------------------------------------
constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull, ORDER_STREAM = 1, NEGATIVE_STREAM = 2;
constexpr int ATTEMPTS = 8, INDEX_BITS = 28;
inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}
inline uint64_t stream(uint64_t seed, uint64_t kind, uint64_t index) { return mix(mix(seed + kind * GOLDEN) + index); }

std::vector<uint32_t> epoch_order(uint64_t seed, uint64_t epoch, int64_t n) {  // radix sort, three digits of 12 bits
    struct Item { uint64_t key; uint32_t index; };
    std::vector<Item> a(n), b(n);
    const uint64_t base = stream(seed, ORDER_STREAM, epoch);
    for (int64_t i = 0; i < n; i++) a[i] = {mix(base + i * GOLDEN) >> INDEX_BITS, uint32_t(i)};
    for (int shift = 0; shift < 36; shift += 12) {
        int64_t start[4097] = {0};
        for (auto& x : a) start[((x.key >> shift) & 4095) + 1]++;
        for (int i = 0; i < 4096; i++) start[i + 1] += start[i];
        for (auto& x : a) b[start[(x.key >> shift) & 4095]++] = x;
        a.swap(b);
    }
    std::vector<uint32_t> order(n);
    for (int64_t i = 0; i < n; i++) order[i] = a[i].index;
    return order;
}

inline uint64_t bitmap_place(int64_t key, int bits) { return (uint64_t(key) * GOLDEN) >> (64 - bits); }
inline bool is_known(const Epoch& e, int64_t num_relations, int64_t num_entities, int64_t h, int64_t r, int64_t t) {
    const int64_t key = (h * num_relations + r) * num_entities + t;
    const uint64_t place = bitmap_place(key, e.bitmap_bits);
    return (e.bitmap[place >> 6] >> (place & 63) & 1) && std::binary_search(e.keys, e.keys + e.num_keys, key);
}

// ---- Adam ---------------------------------------------------------------------------------------------------------
constexpr float NEW1 = .1f, NEW2 = .001f, EPS = 1e-8f;  // 1 − β₁ and 1 − β₂, rounded once: β₁ = .9, β₂ = .999
constexpr int REMEMBERED = 160;  // β₁^160 < 5e-8: the momentum of older gradients is below float32's resolution
struct Adam {  // of one learner for one epoch; steps count from 1 within the epoch
    std::vector<float> size, root, beta1, beta2, beta2_root;
    Adam(const double* rates, int64_t first_step, int64_t steps)
        : size(steps + 1), root(steps + 1), beta1(steps + 2), beta2(steps + 2), beta2_root(steps + 2) {
        for (int64_t s = 1; s <= steps; s++) {
            size[s] = float(rates[s - 1] / (1 - std::pow(double(0.9), double(first_step + s))));
            root[s] = float(1 / std::sqrt(1 - std::pow(double(0.999), double(first_step + s))));
        }
        for (int64_t n = 0; n < steps + 2; n++) {
            beta1[n] = float(std::pow(0.9, double(n)));
            beta2[n] = float(std::pow(0.999, double(n)));
            beta2_root[n] = float(std::pow(0.999, n / 2.0));
        }
    }
};
// The movement of p in steps (from, until] without a gradient; m and v are as of step `last`.
template <int W> void drift(const Adam& a, float* p, const float* m, const float* v, int last, int from, int until) {
    until = std::min(until, last + REMEMBERED);
    if (until <= from) return;
    float root[W];
    VECTOR for (int i = 0; i < W; i++) root[i] = std::sqrt(v[i]);
    for (int n = from - last + 1; n <= until - last; n++) {
        const float c = a.size[last + n] * a.beta1[n], d = a.root[last + n] * a.beta2_root[n];
        VECTOR for (int i = 0; i < W; i++) p[i] -= c * m[i] / (root[i] * d + EPS);
    }
}
template <int W> void adam(const Adam& a, float* p, float* m, float* v, const float* g, int last, int now) {
    const float b1 = a.beta1[now - last], b2 = a.beta2[now - last], c = a.size[now], d = a.root[now];
    VECTOR for (int i = 0; i < W; i++) {
        m[i] = b1 * m[i] + NEW1 * g[i];
        v[i] = b2 * v[i] + NEW2 * g[i] * g[i];
        p[i] -= c * m[i] / (std::sqrt(v[i]) * d + EPS);
    }
}
struct Row { int32_t last, drifted; };  // the steps up to which a row's moments, and its weights, are up to date
template <int W> void flush(const Adam& a, float* p, float* m, float* v, Row row, int now) {
    if (row.last == now) return;
    float largest = 0;
    for (int i = 0; i < W; i++) largest = std::fmax(largest, std::fabs(m[i]));
    if (largest > 0) drift<W>(a, p, m, v, row.last, row.drifted, now);
    const float b1 = a.beta1[now - row.last], b2 = a.beta2[now - row.last];
    VECTOR for (int i = 0; i < W; i++) { m[i] *= b1; v[i] *= b2; }
}

// ---- one learner's working memory and the work compiled for its model ---------------------------------------------
struct Work {
    Work(Learner* l, Adam a) : learner(l), adam(std::move(a)) {}
    Learner* learner;
    Adam adam;
    std::vector<float> query, direct, relation_grad, prepared, coefficient;
    std::vector<Row> entity_row, relation_row;
};
struct Batch {  // of one step
    const int32_t* triples;  // [size, 3]
    const int32_t* entity;   // [size, k] replacements
    const uint8_t* tail;     // [size, k] 1: replaces the tail
    const uint8_t* kept;     // [size, k]
    int size, k;
};
struct Bucket {  // one owner's part of one step: its touched entities, ascending, and where they occur
    std::vector<int32_t> entity, start, next, id;  // occurrences of entity[j]: id[start[j]] … id[start[j + 1] − 1];
    int size = 0;                                  // an id is i·(k + 2) + slot; next: the step that needs it again
};
struct Ops {
    int32_t entity, relation, prepared, query;
    void (*prepare)(Work&, int32_t relation);
    void (*refresh)(Work&, const Bucket&, int step);
    void (*refresh_relation)(Work&, int32_t relation, int step);
    void (*score)(Work&, const Batch&, int i, float* out);
    float (*backward)(Work&, const Batch&, int i, float c_positive, const float* c_negative, float penalty);
    void (*update)(Work&, const Batch&, const Bucket&, int step);
    void (*update_relation)(Work&, const uint64_t* group, int n, int32_t relation, int step);
    void (*flush_rows)(Work&, int64_t from, int64_t to, int step, bool relations);
};

using Compare = Model::Compare;
constexpr int W = Model::ENTITY, RW = Model::RELATION, PW = Model::PREPARED, QW = Compare::QUERY;

constexpr int AHEAD = 8, AHEAD_SCORED = 12;  // rows asked for before their turn
inline void prefetch(const float* row) {  // into the second cache: the first one's few slots would be the limit
    for (int i = 0; i < W; i += 16) __builtin_prefetch(row + i, 0, 2);
}

void op_prepare(Work& w, int32_t r) {
    Model::prepare(w.learner->relation + int64_t(r) * RW, w.learner->scale, w.prepared.data() + int64_t(r) * PW);
}
void op_refresh(Work& w, const Bucket& b, int step) {
    Learner& l = *w.learner;
    for (int j = 0; j < b.size; j++) {
        const int64_t e = b.entity[j], at = e * W;
        if (j + AHEAD < b.size && w.entity_row[b.entity[j + AHEAD]].drifted < step - 1) {
            const int64_t ahead = int64_t(b.entity[j + AHEAD]) * W;
            prefetch(l.entity + ahead), prefetch(l.entity_m + ahead), prefetch(l.entity_v + ahead);
        }
        Row& row = w.entity_row[e];
        if (row.drifted >= step - 1) continue;
        drift<W>(w.adam, l.entity + at, l.entity_m + at, l.entity_v + at, row.last, row.drifted, step - 1);
        row.drifted = step - 1;
    }
}
void op_refresh_relation(Work& w, int32_t r, int step) {
    Learner& l = *w.learner;
    const int64_t at = int64_t(r) * RW;
    Row& row = w.relation_row[r];
    drift<RW>(w.adam, l.relation + at, l.relation_m + at, l.relation_v + at, row.last, row.drifted, step - 1);
    row.drifted = std::max(row.drifted, step - 1);
    op_prepare(w, r);
}
void op_score(Work& w, const Batch& b, int i, float* out) {
    const Learner& l = *w.learner;
    const int32_t* x = b.triples + 3 * i;
    const float *h = l.entity + int64_t(x[0]) * W, *t = l.entity + int64_t(x[2]) * W;
    const float* r = w.prepared.data() + int64_t(x[1]) * PW;
    float *q_head = w.query.data() + int64_t(2 * i) * QW, *q_tail = q_head + QW;
    const int32_t* entity = b.entity + int64_t(i) * b.k;
    const uint8_t* tail = b.tail + int64_t(i) * b.k;
    Model::fold(t, r, false, q_head);
    Model::fold(h, r, true, q_tail);
    out[0] = l.offset + Compare::score(q_tail, t);
    for (int j = 0; j < b.k; j++) {
        // the batch's own rows follow each other in memory order of use, so the next triple's can be asked for too
        const int64_t ahead = int64_t(i) * b.k + j + AHEAD_SCORED;
        if (ahead < int64_t(b.size) * b.k) prefetch(l.entity + int64_t(b.entity[ahead]) * W);
        out[1 + j] = l.offset + Compare::score(tail[j] ? q_tail : q_head, l.entity + int64_t(entity[j]) * W);
    }
}
float op_backward(Work& w, const Batch& b, int i, float c_positive, const float* c_negative, float penalty) {
    const Learner& l = *w.learner;
    const int32_t* x = b.triples + 3 * i;
    const float *h = l.entity + int64_t(x[0]) * W, *t = l.entity + int64_t(x[2]) * W;
    const float* r = w.prepared.data() + int64_t(x[1]) * PW;
    const float *q_head = w.query.data() + int64_t(2 * i) * QW, *q_tail = q_head + QW;
    float *gh = w.direct.data() + int64_t(2 * i) * W, *gt = gh + W, *gr = w.relation_grad.data() + int64_t(i) * PW;
    const int32_t* entity = b.entity + int64_t(i) * b.k;
    const uint8_t* tail = b.tail + int64_t(i) * b.k;
    float g[2][QW] = {};
    std::memset(gh, 0, sizeof(float) * 2 * W);
    std::memset(gr, 0, sizeof(float) * PW);
    if (c_positive != 0) {
        Compare::grad_query(q_tail, t, c_positive, g[1]);
        Compare::grad_entity(q_tail, t, c_positive, gt);
    }
    for (int j = 0; j < b.k; j++)
        if (c_negative[j] != 0)
            Compare::grad_query(tail[j] ? q_tail : q_head, l.entity + int64_t(entity[j]) * W, c_negative[j],
                                g[tail[j]]);
    Model::fold_grad(t, r, false, g[0], gt, gr);
    Model::fold_grad(h, r, true, g[1], gh, gr);
    return penalty != 0 ? Model::penalty(h, r, t, penalty, gh, gr, gt) : 0;
}
void op_update(Work& w, const Batch& b, const Bucket& bucket, int step) {
    Learner& l = *w.learner;
    const int slots = b.k + 2;
    for (int j = 0; j < bucket.size; j++) {
        const int64_t e = bucket.entity[j], at = e * W;
        if (j + AHEAD < bucket.size) {
            const int64_t ahead = int64_t(bucket.entity[j + AHEAD]) * W;
            prefetch(l.entity + ahead), prefetch(l.entity_m + ahead), prefetch(l.entity_v + ahead);
        }
        float g[W] = {}, *p = l.entity + at, *m = l.entity_m + at, *v = l.entity_v + at;
        for (int s = bucket.start[j]; s < bucket.start[j + 1]; s++) {
            const int id = bucket.id[s], i = id / slots, slot = id - i * slots;
            if (slot < 2) {
                add<W>(w.direct.data() + int64_t(2 * i + slot) * W, g);
                continue;
            }
            const int64_t negative = int64_t(i) * b.k + slot - 2;
            const float c = w.coefficient[negative];
            if (c != 0) Compare::grad_entity(w.query.data() + int64_t(2 * i + b.tail[negative]) * QW, p, c, g);
        }
        adam<W>(w.adam, p, m, v, g, w.entity_row[e].last, step);
        drift<W>(w.adam, p, m, v, step, step, bucket.next[j] - 1);
        w.entity_row[e] = {step, bucket.next[j] - 1};
    }
}
void op_update_relation(Work& w, const uint64_t* group, int n, int32_t r, int step) {
    Learner& l = *w.learner;
    float g[PW] = {}, gr[RW];
    for (int j = 0; j < n; j++) add<PW>(w.relation_grad.data() + int64_t(uint32_t(group[j])) * PW, g);
    const int64_t at = int64_t(r) * RW;
    Model::prepare_grad(l.relation + at, w.prepared.data() + int64_t(r) * PW, l.scale, g, gr);
    adam<RW>(w.adam, l.relation + at, l.relation_m + at, l.relation_v + at, gr, w.relation_row[r].last, step);
    w.relation_row[r] = {step, step};
}
void op_flush_rows(Work& w, int64_t from, int64_t to, int step, bool relations) {
    Learner& l = *w.learner;
    for (int64_t x = from; x < to; x++) {
        if (relations)
            flush<RW>(w.adam, l.relation + x * RW, l.relation_m + x * RW, l.relation_v + x * RW, w.relation_row[x], step);
        else
            flush<W>(w.adam, l.entity + x * W, l.entity_m + x * W, l.entity_v + x * W, w.entity_row[x], step);
    }
}
const Ops OPS = {W, RW, PW, QW, op_prepare, op_refresh, op_refresh_relation, op_score, op_backward, op_update,
                 op_update_relation, op_flush_rows};

// ---- losses.py: derivatives by the scores, times `scale`, and the values ------------------------------------------
struct Values { double soft = 0, hard = 0, penalty = 0; };
// own, other: scores [1 + k], the positive first (other is null without a teacher); a: weight of the soft label;
// c: out, ∂L/∂own [1 + k]
void loss(const Epoch& e, const uint8_t* kept, const float* own, const float* other, float a, float scale, float* c,
          float* weight, Values& out) {
    const int k = e.k;
    if (e.weighting == 2) {
        float top = -1e30f, sum = 0;
        for (int j = 0; j < k; j++) if (kept[j]) top = std::fmax(top, e.temperature * own[1 + j]);
        VECTOR_SUM(sum) for (int j = 0; j < k; j++) {
            weight[j] = kept[j] ? std::exp(e.temperature * own[1 + j] - top) : 0.f;
            sum += weight[j];
        }
        const float inverse = sum > 0 ? 1 / sum : 0;
        VECTOR for (int j = 0; j < k; j++) weight[j] *= inverse;
    } else {
        const float one = e.weighting == 1 ? 1.f / k : 1.f;
        VECTOR for (int j = 0; j < k; j++) weight[j] = kept[j] ? one : 0.f;
    }
    float soft = 0, hard = 0, c_positive = 0;
    const float a_hard = (1 - a) * scale, a_soft = a * scale;
    if (e.margin_loss) {  // Eq. 1, 3, 4, 9
        for (int j = 0; j < k; j++) {
            const float excess = e.margin - own[0] + own[1 + j];
            const float active = excess > 0 ? weight[j] : 0.f;
            hard += active * excess;
            c_positive -= a_hard * active;
            c[1 + j] = a_hard * active;
        }
        if (other) {
            soft = std::fabs(own[0] - other[0]);
            c_positive += a_soft * sign(own[0] - other[0]);
            for (int j = 0; j < k; j++) {
                soft += weight[j] * std::fabs(own[1 + j] - other[1 + j]);
                c[1 + j] += a_soft * weight[j] * sign(own[1 + j] - other[1 + j]);
            }
        }
    } else {  // Eq. 6, 7, 8, 10, with softplus(x) = max(x, 0) + log(1 + e^−|x|)
        const auto softplus = [](float x, float tail) { return std::fmax(x, 0.f) + std::log(1 + tail); };
        const auto sigmoid = [](float x, float tail) { return (x > 0 ? 1.f : tail) / (1 + tail); };
        VECTOR_SUM(hard) for (int j = 0; j < k; j++) {
            const float x = own[1 + j], tail = std::exp(-std::fabs(x));
            hard += weight[j] * softplus(x, tail);
            c[1 + j] = scale * weight[j] * sigmoid(x, tail);
        }
        const float x = own[0], tail = std::exp(-std::fabs(x)), plus = softplus(x, tail);
        c_positive = scale * (sigmoid(x, tail) - (1 - a));
        if (other) {
            soft = hard;
            VECTOR_SUM(soft) for (int j = 0; j < k; j++) {
                const float y = other[1 + j], label = sigmoid(y, std::exp(-std::fabs(y)));
                soft -= weight[j] * label * own[1 + j];
                c[1 + j] -= a_soft * weight[j] * label;
            }
            const float label = sigmoid(other[0], std::exp(-std::fabs(other[0])));
            soft += plus - label * x;
            c_positive -= a_soft * label;
        }
        hard += plus - x;
    }
    c[0] = c_positive;
    out.soft += soft;
    out.hard += hard;
}

struct FlushDenormals {  // numbers below 1e-38 are zero while the kernels run: decaying moments would crawl
#if defined(__SSE__)
    unsigned saved = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(saved | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved); }
#endif
};

std::unique_ptr<Work> make_work(Learner* l, const Epoch& e, int64_t steps) {
    if (!l) return nullptr;
    auto w = std::unique_ptr<Work>(new Work(l, Adam(l->rates, e.first_step, l->trained ? steps : 0)));
    const Ops& o = *l->ops;
    w->query.resize(int64_t(e.batch) * 2 * o.query);
    w->prepared.resize(l->num_relations * o.prepared);
    if (l->trained) {
        w->direct.resize(int64_t(e.batch) * 2 * o.entity);
        w->relation_grad.resize(int64_t(e.batch) * o.prepared);
        w->coefficient.resize(int64_t(e.batch) * e.k);
        w->entity_row.assign(l->num_entities, {0, 0});
        w->relation_row.assign(l->num_relations, {0, 0});
    }
    for (int64_t r = 0; r < l->num_relations; r++) o.prepare(*w, r);
    return w;
}

// ---- sampling and bucketing one step ------------------------------------------------------------------------------
struct Occurrence { int32_t entity, id; };
struct Step {
    std::vector<int32_t> triples, entity;
    std::vector<uint8_t> tail, kept;
    std::vector<std::vector<Occurrence>> lists;  // [thread that sampled][thread that owns]
    std::vector<int64_t> list_size;
    std::vector<Bucket> buckets;         // by owner
    std::vector<uint64_t> by_relation;  // relation << 32 | positive, ascending
    Batch batch;
};

// `worker`'s share of the step's positives: their negatives, and every occurrence listed for its owner
void sample(const Epoch& e, const uint32_t* order, uint64_t base, int worker, int T, Step& s) {
    const int64_t E = e.student->num_entities, R = e.student->num_relations, share = (E + T - 1) / T;
    const int k = e.k, slots = k + 2, size = s.batch.size;
    int64_t* sizes = s.list_size.data() + int64_t(worker) * T;
    std::fill(sizes, sizes + T, 0);
    const auto put = [&](int32_t x, int id) {
        const int owner = T == 1 ? 0 : (T == 2 ? x >= share : int(uint32_t(x) / uint32_t(share)));
        s.lists[worker * T + owner][sizes[owner]++] = {x, id};
    };
    for (int i = int(int64_t(size) * worker / T); i < int64_t(size) * (worker + 1) / T; i++) {
        const int32_t* x = e.triples + 3 * int64_t(order[i]);
        std::copy(x, x + 3, s.triples.data() + 3 * i);
        put(x[0], i * slots);
        put(x[2], i * slots + 1);
        for (int j = 0; j < k; j++) {
            const int64_t at = int64_t(i) * k + j;
            int64_t draw = 0;
            bool is_tail = false, known = true;
            for (int attempt = 0; attempt < ATTEMPTS && known; attempt++) {
                const uint64_t bits = mix(base + (uint64_t(at) * 32 + attempt) * GOLDEN);
                draw = int64_t(((bits >> 32) * uint64_t(E)) >> 32);
                is_tail = bits & 1;
                known = is_known(e, R, E, is_tail ? x[0] : draw, x[1], is_tail ? draw : x[2]);
            }
            s.entity[at] = int32_t(draw), s.tail[at] = is_tail, s.kept[at] = !known;
            put(int32_t(draw), i * slots + 2 + j);
        }
    }
}

// `owner`'s occurrences of the step sorted by entity; count: [E], scratch of which the owner's range is used
void bucket(int owner, int T, int64_t from, int64_t to, std::vector<int32_t>& count, Step& s) {
    Bucket& b = s.buckets[owner];
    std::fill(count.begin() + from, count.begin() + to, 0);
    int64_t total = 0;
    for (int w = 0; w < T; w++) {
        total += s.list_size[w * T + owner];
        for (int64_t n = 0; n < s.list_size[w * T + owner]; n++) count[s.lists[w * T + owner][n].entity]++;
    }
    if (int64_t(b.entity.size()) <= std::min(total, to - from)) {
        b.entity.resize(std::min(total, to - from) + 64);
        b.start.resize(b.entity.size() + 1);
        b.next.resize(b.entity.size());
    }
    if (int64_t(b.id.size()) < total) b.id.resize(total + 64);
    int32_t sum = 0, num = 0;
    for (int64_t x = from; x < to; x++) {  // written without a branch: whether an entity occurs is a coin toss
        const int32_t n = count[x];
        b.entity[num] = int32_t(x), b.start[num] = sum;
        num += n > 0;
        count[x] = sum;
        sum += n;
    }
    b.size = num;
    b.start[num] = sum;
    for (int w = 0; w < T; w++)
        for (int64_t n = 0; n < s.list_size[w * T + owner]; n++) {
            const Occurrence o = s.lists[w * T + owner][n];
            b.id[count[o.entity]++] = o.id;
        }
}

constexpr int64_t BLOCK_BYTES = 6 << 20;  // sampled ahead: enough steps to look ahead, few enough to stay in cache

}  // namespace

extern "C" const void* kgd_ops() { return &OPS; }
extern "C" void kgd_sizes(int64_t* out) { out[0] = sizeof(Learner), out[1] = sizeof(Epoch); }

namespace {

void run_epoch(Epoch& e, Memory& memory) {
    const int64_t E = e.student->num_entities, R = e.student->num_relations, steps = (e.n + e.batch - 1) / e.batch;
    const int T = std::max(1, e.threads), k = e.k, slots = k + 2;
    std::fill(e.phases, e.phases + 4, 0);
    double clock = omp_get_wtime();
    const auto order = epoch_order(e.seed, e.epoch, e.n);
    const auto student = make_work(e.student, e, steps), teacher = make_work(e.teacher, e, steps);
    std::vector<Work*> trained;
    for (Work* w : {student.get(), teacher.get()}) if (w && w->learner->trained) trained.push_back(w);

    const int64_t block = std::clamp<int64_t>(BLOCK_BYTES / (int64_t(e.batch) * slots * 24), 1, steps);
    const int64_t share = (E + T - 1) / T;
    std::vector<Step> window(block);
    for (Step& s : window) {
        s.triples.resize(int64_t(e.batch) * 3), s.entity.resize(int64_t(e.batch) * k);
        s.tail.resize(int64_t(e.batch) * k), s.kept.resize(int64_t(e.batch) * k);
        s.lists.resize(T * T), s.list_size.resize(T * T), s.buckets.resize(T);
        for (auto& list : s.lists) list.resize(int64_t(e.batch / T + 1) * slots);
    }
    std::vector<int32_t> count(E), next_use(E);
    std::vector<Values> sums(2 * T);
    std::vector<std::vector<float>> scratch(4 * T, std::vector<float>(1 + k));  // four for each thread

#pragma omp parallel num_threads(T)
    {
        FlushDenormals guard;
        // OpenMP may give fewer threads than asked for; the loops over `worker` and `owner` then take several shares
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
        std::vector<float>&own = scratch[4 * me], &other = scratch[4 * me + 1];
        std::vector<float>&c = scratch[4 * me + 2], &weight = scratch[4 * me + 3];

        const auto each_relation = [&](const Step& s, int owner, auto work) {  // groups of positives that share one
            for (size_t from = 0, to; from < s.by_relation.size(); from = to) {
                const int32_t r = int32_t(s.by_relation[from] >> 32);
                for (to = from; to < s.by_relation.size() && int32_t(s.by_relation[to] >> 32) == r; to++) {}
                if (r % T == owner) work(r, s.by_relation.data() + from, int(to - from));
            }
        };
        const auto lap = [&](int phase) {  // after a barrier: what the first thread did and waited for since the last
            if (me != 0) return;
            const double now = omp_get_wtime();
            e.phases[phase] += now - clock;
            clock = now;
        };
        const auto refresh = [&](const Step& s, int owner, int step) {
            for (Work* w : trained) {
                w->learner->ops->refresh(*w, s.buckets[owner], step);
                each_relation(s, owner, [&](int32_t r, const uint64_t*, int) {
                    w->learner->ops->refresh_relation(*w, r, step);
                });
            }
        };
        for (int64_t first = 1; first <= steps; first += block) {
            const int64_t last = std::min(steps, first + block - 1);
            for (int64_t step = first; step <= last; step++) {  // sample
                Step& s = window[step - first];
                const int64_t at = (step - 1) * e.batch;
                const int size = int(std::min<int64_t>(e.batch, e.n - at));
                if (me == 0)
                    s.batch = {s.triples.data(), s.entity.data(), s.tail.data(), s.kept.data(), size, k};
            }
#pragma omp barrier
            for (int64_t step = first; step <= last; step++) {
                const uint64_t base = stream(e.seed, NEGATIVE_STREAM, uint64_t(e.first_step + step - 1));
                for (int worker = me; worker < T; worker += all)
                    sample(e, order.data() + (step - 1) * e.batch, base, worker, T, window[step - first]);
            }
#pragma omp barrier
            lap(0);
            for (int owner = me; owner < T; owner += all) {  // bucket
                const int64_t from = std::min(E, share * owner), to = std::min(E, share * (owner + 1));
                std::fill(next_use.begin() + from, next_use.begin() + to, int32_t(last + 1));
                const auto work = [&] {
                    for (int64_t step = last; step >= first; step--) {
                        Step& s = window[step - first];
                        bucket(owner, T, from, to, count, s);
                        Bucket& b = s.buckets[owner];
                        for (int j = 0; j < b.size; j++) {
                            b.next[j] = next_use[b.entity[j]];
                            next_use[b.entity[j]] = int32_t(step);
                        }
                        if ((step - first) % T == owner) {
                            s.by_relation.resize(s.batch.size);
                            for (int i = 0; i < s.batch.size; i++)
                                s.by_relation[i] = uint64_t(s.triples[3 * i + 1]) << 32 | uint32_t(i);
                            std::sort(s.by_relation.begin(), s.by_relation.end());
                        }
                    }
                };
                memory.enough_for(work);
            }
#pragma omp barrier
            if (memory.out) break;  // for all threads alike: nothing else in the loop asks for memory
            for (int owner = me; owner < T; owner += all) refresh(window[0], owner, int(first));
#pragma omp barrier
            lap(1);
            for (int64_t step = first; step <= last; step++) {
                const Step& s = window[step - first];
                const Batch& batch = s.batch;
                for (int worker = me; worker < T; worker += all)  // loss
                    for (int i = int(int64_t(batch.size) * worker / T); i < int64_t(batch.size) * (worker + 1) / T; i++) {
                        const auto backward = [&](Work& w, const float* scores, const float* labels, Values& sum) {
                            const float a = labels ? w.learner->weight : 0;
                            loss(e, batch.kept + int64_t(i) * k, scores, labels, a, 1.f / batch.size, c.data(),
                                 weight.data(), sum);
                            std::copy(c.begin() + 1, c.end(), w.coefficient.begin() + int64_t(i) * k);
                            sum.penalty += double(w.learner->ops->backward(w, batch, i, c[0], c.data() + 1,
                                                                           w.learner->penalty / batch.size)) * batch.size;
                        };
                        student->learner->ops->score(*student, batch, i, own.data());
                        if (teacher) teacher->learner->ops->score(*teacher, batch, i, other.data());
                        backward(*student, own.data(), teacher ? other.data() : nullptr, sums[worker]);
                        if (teacher && teacher->learner->trained)
                            backward(*teacher, other.data(), own.data(), sums[T + worker]);
                    }
#pragma omp barrier
                lap(2);
                for (int owner = me; owner < T; owner += all) {  // update
                    for (Work* w : trained) {
                        w->learner->ops->update(*w, batch, s.buckets[owner], int(step));
                        each_relation(s, owner, [&](int32_t r, const uint64_t* group, int n) {
                            w->learner->ops->update_relation(*w, group, n, r, int(step));
                        });
                    }
                    if (step < last) refresh(window[step + 1 - first], owner, int(step + 1));
                }
#pragma omp barrier
                lap(3);
            }
        }
        for (Work* w : trained) {
            w->learner->ops->flush_rows(*w, E * me / all, E * (me + 1) / all, int(steps), false);
            w->learner->ops->flush_rows(*w, R * me / all, R * (me + 1) / all, int(steps), true);
        }
    }
    e.phases[3] += omp_get_wtime() - clock;
    std::fill(e.losses, e.losses + 5, 0);
    for (int worker = 0; worker < T; worker++) {
        e.losses[0] += sums[worker].soft / e.n, e.losses[1] += sums[worker].hard / e.n;
        e.losses[2] += sums[T + worker].soft / e.n, e.losses[3] += sums[T + worker].hard / e.n;
        e.losses[4] += (sums[worker].penalty + sums[T + worker].penalty) / e.n;
    }
}

}  // namespace

extern "C" int32_t kgd_epoch(Epoch* given) {  // 0, or 1 where memory ran out, after which the weights are of no use
    Memory memory;
    memory.enough_for([&] { run_epoch(*given, memory); });
    return memory.out;
}
