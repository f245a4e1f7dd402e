// Gradients of rows in up to three tensors, one after the other, each float32 or bfloat16; and bfloat16 itself.
#pragma once
#include <cstdint>
#include <cstring>

typedef uint16_t Half;
static inline float wide(Half s) {
    const uint32_t bits = uint32_t(s) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
static inline float wide(float s) { return s; }
static inline Half narrow(float x) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return Half((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline void put(float x, Half &to) { to = narrow(x); }
static inline void put(float x, float &to) { to = x; }

struct Parts {
    const void *data[3];  // [first[p + 1] - first[p], width]
    int64_t first[4], width;
    int32_t half[3];
    template <class Take> void row(int64_t i, Take take) const {  // take(pointer) of row i of all
        const int p = i < first[1] ? 0 : i < first[2] ? 1 : 2;
        const int64_t at = (i - first[p]) * width;
        if (half[p]) take(static_cast<const Half *>(data[p]) + at);
        else take(static_cast<const float *>(data[p]) + at);
    }
};
