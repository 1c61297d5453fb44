// A weight W [N, K] packed once into panels of 64 outputs:
//
//   panel 0: k = 0: w[0..63][0] | k = 1: w[0..63][1] | ...     panel 1: ...
//
// Two weights whose outputs are wanted together, as a gate and what it gates, may share panels: 32 outputs of each.
//
// bfloat16: two k side by side, as the dot product instruction takes them. FP8: four k side by side for 16 outputs on
// a line of 64 bytes; in each 16 of these the first two k of 4 outputs come before their other two, as Fp8ToBf16 takes
// them.
#include "panels.h"

#include <omp.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace nfold {
namespace {

// See nfold_pack.
template <bool is_fp8>
void pack(const float* weight, int64_t num_units, int64_t num_outputs, float* packed, int64_t width,
          int num_threads) {
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  int64_t num_panels = divide_up(num_outputs, width);
#pragma omp parallel for num_threads(num_threads)
  for (int64_t number = 0; number < num_panels; number++) {
    for (int v = 0; v < width / kLanes; v++) {
      int64_t output = number * width + v * kLanes;
      for (int64_t k = 0; k < num_units; k += kLanes) {
        __mmask16 mask = first(num_units - k);
        __m512 block[kLanes];
        for (int i = 0; i < kLanes; i++)
          block[i] = load(weight + (output + i) * num_units + k, output + i < num_outputs ? mask : 0);
        transpose(block);
        float* to = packed + (number * num_units + k) * kPanel + v * kLanes;
        for (int i = 0; i < kLanes && k + i < num_units; i++) {
          __m512i line = _mm512_castps_si512(block[i]);
          _mm512_stream_si512((__m512i*)(to + i * kPanel), is_fp8 ? _mm512_shuffle_epi8(line, order) : line);
        }
      }
    }
    _mm_sfence();
  }
}

}  // namespace
}  // namespace nfold

extern "C" {

// weight [num_outputs, num_units] to packed [panel][unit][output of the panel], units of 4 bytes, padded with zeros;
// `width` outputs of each panel are this weight's. `packed` begins with a cache line, at the first panel's first of
// these outputs; its lines are written whole, past the cache.
void nfold_pack(const float* weight, int64_t num_units, int64_t num_outputs, float* packed, int64_t width,
                int num_threads) {
  nfold::pack<false>(weight, num_units, num_outputs, packed, width, num_threads);
}

void nfold_pack_fp8(const float* weight, int64_t num_units, int64_t num_outputs, float* packed, int64_t width,
                    int num_threads) {
  nfold::pack<true>(weight, num_units, num_outputs, packed, width, num_threads);
}

// Has the system give memory to so many spans of `bytes` from `address`, which are still empty. A large page is touched
// by one thread: where two meet in it, both would clear one.
void nfold_touch(char* const* address, const int64_t* bytes, int64_t num_spans, int num_threads) {
  constexpr uintptr_t kLarge = 2 << 20, kSmall = 4096;
  std::vector<std::pair<uintptr_t, uintptr_t>> pieces;
  for (int64_t span = 0; span < num_spans; span++) {
    uintptr_t at = (uintptr_t)address[span], end = at + bytes[span];
    for (; at < end; at = pieces.back().second) pieces.push_back({at, std::min(end, (at / kLarge + 1) * kLarge)});
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
  for (size_t piece = 0; piece < pieces.size(); piece++)
    for (uintptr_t at = pieces[piece].first; at < pieces[piece].second; at = (at / kSmall + 1) * kSmall)
      *(volatile char*)at = 0;
}

// Rows `ids` of the weight that was packed, as they were: rows [num_rows, num_units].
void nfold_unpack_rows(const int32_t* packed, int64_t num_units, const int64_t* ids, int64_t num_rows, int32_t* rows,
                       int num_threads) {
  using namespace nfold;
#pragma omp parallel for num_threads(num_threads)
  for (int64_t row = 0; row < num_rows; row++) {
    const int32_t* from = packed + ids[row] / kPanel * num_units * kPanel + ids[row] % kPanel;
    for (int64_t k = 0; k < num_units; k++) rows[row * num_units + k] = from[k * kPanel];
  }
}
}
