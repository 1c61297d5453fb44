// Rows to FP8 (e4m3 of OCP) with a scale per row, and from there to bfloat16.
#include "fp8.h"

#include <omp.h>

#include <algorithm>
#include <cfloat>

namespace nfold {
namespace {

constexpr int64_t kWorkPerElement = 8;
constexpr int64_t kCodes = 64;  // in a register

template <typename T>
void quantize_rows(const T* x, int64_t num_rows, int64_t size, uint8_t* numbers, float* scales, int num_threads) {
#pragma omp parallel for num_threads(threads_for(num_rows * size * kWorkPerElement, num_threads))
  for (int64_t row = 0; row < num_rows; row++) {
    const T* in = x + row * size;
    __m512i highest = _mm512_setzero_si512();  // as bits, in whose order NaN comes last
    for (int64_t i = 0; i < size; i += kLanes) {
      __m512 value = _mm512_abs_ps(load(in + i, first(size - i)));
      highest = _mm512_max_epu32(highest, _mm512_castps_si512(value));
    }
    uint32_t bits = _mm512_reduce_max_epu32(highest);
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    scale /= kLargestFp8;
    if (scale < FLT_MIN) scale = FLT_MIN;
    scales[row] = scale;
    for (int64_t i = 0; i < size; i += kLanes) {
      __mmask16 mask = first(size - i);
      __m512i codes = narrow_to_fp8(_mm512_div_ps(load(in + i, mask), _mm512_set1_ps(scale)));
      _mm512_mask_cvtepi32_storeu_epi8(numbers + row * size + i, mask, codes);
    }
  }
}

#ifdef __AVX512VBMI__
// wide [num_rows, wide_size] = numbers [num_rows, size], with zeros behind up to a multiple of 4.
void widen_rows(const uint8_t* numbers, int64_t num_rows, int64_t size, const uint8_t* table, uint16_t* wide,
                int64_t wide_size, int num_threads) {
  const Fp8ToBf16 to_bf16(table);
  const __m512i in_order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  auto some = [](int64_t count) { return (__mmask64)-1 >> (kCodes - std::min(count, kCodes)); };
#pragma omp parallel for num_threads(threads_for(num_rows * size * kWorkPerElement, num_threads))
  for (int64_t row = 0; row < num_rows; row++)
    for (int64_t i = 0; i < wide_size; i += kCodes) {
      __m512i codes = _mm512_maskz_loadu_epi8(some(size - i), numbers + row * size + i);
      __m512 low, high;
      to_bf16.widen(_mm512_permutexvar_epi64(in_order, codes), low, high);
      uint16_t* out = wide + row * wide_size + i;
      __mmask64 left = some(wide_size - i);
      _mm512_mask_storeu_epi16(out, (__mmask32)left, _mm512_castps_si512(low));
      _mm512_mask_storeu_epi16(out + kCodes / 2, (__mmask32)(left >> kCodes / 2), _mm512_castps_si512(high));
    }
}
#endif

}  // namespace
}  // namespace nfold

extern "C" {

void nfold_quantize_rows_float32(const float* x, int64_t num_rows, int64_t size, uint8_t* numbers, float* scales,
                                 int num_threads) {
  nfold::quantize_rows(x, num_rows, size, numbers, scales, num_threads);
}

void nfold_quantize_rows_bfloat16(const nfold::bf16* x, int64_t num_rows, int64_t size, uint8_t* numbers,
                                  float* scales, int num_threads) {
  nfold::quantize_rows(x, num_rows, size, numbers, scales, num_threads);
}

#ifdef __AVX512VBMI__
void nfold_widen_rows(const uint8_t* numbers, int64_t num_rows, int64_t size, const uint8_t* table, uint16_t* wide,
                      int64_t wide_size, int num_threads) {
  nfold::widen_rows(numbers, num_rows, size, table, wide, wide_size, num_threads);
}
#endif
}
