// The nearest of sixteen vectors for every group of every row: `kgdistil.compress.product.assign`. KGD_GROUP floats a group.
#include <algorithm>
#include <cstdint>
#include <vector>
#include "memory.h"
#include "parts.h"

namespace {
constexpr int64_t G = KGD_GROUP, LANES = 16, SIXTEEN = 16;

// Where number w of the groups of a row stands in the row: halves of W numbers are real and imaginary parts, if paired.
int64_t place(int64_t w, int64_t W, bool paired) { return paired ? w / 2 + (w % 2) * (W / 2) : w; }
}

// Rows places[i], or i, of a table [., M * G]; book [M, 16, G], squares [M, 16] of its vectors; writes codes [n, M].
// Sixteen rows at a time, a lane each. Returns 0, or 1 where memory ran out.
extern "C" int32_t kgd_assign(const float *table, const int64_t *places, int64_t n, int64_t M, bool paired, const float *book,
                              const float *squares, int threads, uint8_t *codes) {
  Memory memory;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> turned;
    const bool ready = memory.enough_for([&] { turned.resize(M * G * LANES); });
#pragma omp for schedule(static)
    for (int64_t first = 0; first < n; first += LANES) {
      if (!ready) continue;
      const int64_t here = std::min(LANES, n - first);
      const float *row[LANES];
      for (int64_t i = 0; i < LANES; i++) {
        const int64_t at = first + std::min(i, here - 1);
        row[i] = table + (places ? places[at] : at) * M * G;
      }
      for (int64_t w = 0; w < M * G; w++)
        for (int64_t i = 0, from = place(w, M * G, paired); i < LANES; i++) turned[w * LANES + i] = row[i][from];
      for (int64_t m = 0; m < M; m++) {
        const float *x = turned.data() + m * G * LANES, *vector = book + m * SIXTEEN * G, *square = squares + m * SIXTEEN;
        float best[LANES];
        int32_t code[LANES];
        for (int32_t k = 0; k < SIXTEEN; k++, vector += G) {
          float distance[LANES];
          for (int64_t i = 0; i < LANES; i++) {
            float dot = 0;
            for (int64_t j = 0; j < G; j++) dot += vector[j] * x[j * LANES + i];
            distance[i] = square[k] - 2 * dot;
          }
          for (int64_t i = 0; i < LANES; i++) {
            const bool nearer = k == 0 || distance[i] < best[i];
            best[i] = nearer ? distance[i] : best[i];
            code[i] = nearer ? k : code[i];
          }
        }
        for (int64_t i = 0; i < here; i++) codes[(first + i) * M + m] = static_cast<uint8_t>(code[i]);
      }
    }
  }
  return memory.out;
}

namespace {
template <class T>
void decode(const uint8_t *codes, int64_t n, int64_t padded, int64_t M, bool paired, const float *book, int threads, T *to) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < padded; i++) {
    T *out = to + i * M * G;
    if (i >= n) {
      std::fill(out, out + M * G, T(0));
      continue;
    }
    for (int64_t m = 0; m < M; m++) {
      const float *vector = book + (m * SIXTEEN + codes[i * M + m]) * G;
      for (int64_t j = 0; j < G; j++) put(vector[j], out[place(m * G + j, M * G, paired)]);
    }
  }
}
}

// Rows as codes [n, M] say, bfloat16 or float32 [padded, M * G], those beyond n nothing.
extern "C" void kgd_decode(const uint8_t *codes, int64_t n, int64_t padded, int64_t M, bool paired, const float *book,
                           int threads, bool half, void *to) {
  if (half) decode(codes, n, padded, M, paired, book, threads, static_cast<Half *>(to));
  else decode(codes, n, padded, M, paired, book, threads, static_cast<float *>(to));
}

// Gradients of rows summed by the vectors that their codes [n, M] took, into [threads, M, 16, G], which are zeros.
extern "C" void kgd_by_code(const Parts *parts, const uint8_t *codes, int64_t n, int64_t M, bool paired, int threads, float *to) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t share = 0; share < threads; share++) {
    float *sums = to + share * M * SIXTEEN * G;
    for (int64_t i = n * share / threads; i < n * (share + 1) / threads; i++)
      parts->row(i, [&](const auto *row) {
        for (int64_t m = 0; m < M; m++) {
          float *vector = sums + (m * SIXTEEN + codes[i * M + m]) * G;
          for (int64_t j = 0; j < G; j++) vector[j] += wide(row[place(m * G + j, M * G, paired)]);
        }
      });
  }
}
