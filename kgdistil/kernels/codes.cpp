// The nearest of sixteen vectors for every group of every row: `kgdistil.compress.product.assign`. KGD_GROUP floats a group.
#include <algorithm>
#include <cstdint>
#include <vector>
#include "memory.h"

namespace {
constexpr int64_t G = KGD_GROUP, LANES = 16, SIXTEEN = 16;
}

// rows [n, M, G], book [M, 16, G], squares [M, 16] of its vectors; writes codes [n, M]. Sixteen rows at a time, a lane each.
// Returns 0, or 1 where memory ran out.
extern "C" int32_t kgd_assign(const float *rows, int64_t n, int64_t M, const float *book, const float *squares, int threads,
                              uint8_t *codes) {
  Memory memory;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> turned;
    const bool ready = memory.enough_for([&] { turned.resize(M * G * LANES); });
#pragma omp for schedule(static)
    for (int64_t first = 0; first < n; first += LANES) {
      if (!ready) continue;
      const int64_t here = std::min(LANES, n - first);
      for (int64_t i = 0; i < LANES; i++) {
        const float *row = rows + (first + std::min(i, here - 1)) * M * G;
        for (int64_t w = 0; w < M * G; w++) turned[w * LANES + i] = row[w];
      }
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
