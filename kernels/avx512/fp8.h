// FP8 (e4m3 of OCP) in registers.
#pragma once

#include "simd.h"

namespace nfold {

constexpr float kLargestFp8 = 448.0f;

// The nearest numbers of float32, ties to even, as torch rounds; beyond the largest, the largest. Low bytes of lanes.
inline __m512i narrow_to_fp8(__m512 x) {
  __m512i sign = _mm512_srli_epi32(_mm512_and_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN)), 24);
  __m512 size = _mm512_min_ps(_mm512_set1_ps(kLargestFp8), _mm512_abs_ps(x));  // NaN stays
  __m512i bits = _mm512_castps_si512(size);
  __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(((7 - 127) << 23) + 0x7ffff));
  __m512i code = _mm512_srli_epi32(rounded, 20);
  // Below 2^-6 numbers are multiples of 2^-9, which is the last place of 2^14.
  __m512 steps = _mm512_add_ps(size, _mm512_set1_ps(0x1p14f));
  code = _mm512_mask_sub_epi32(code, _mm512_cmp_ps_mask(size, _mm512_set1_ps(0x1p-6f), _CMP_LT_OQ),
                               _mm512_castps_si512(steps), _mm512_castps_si512(_mm512_set1_ps(0x1p14f)));
  code = _mm512_mask_mov_epi32(code, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7f));
  return _mm512_or_epi32(code, sign);
}

#ifdef __AVX512VBMI__
// The number of each code in bfloat16, which is exact; `table` has those of 0 to 127: low bytes, then high bytes.
struct Fp8ToBf16 {
  __m512i low[2], high[2];

  explicit Fp8ToBf16(const uint8_t* table) {
    for (int half = 0; half < 2; half++) {
      low[half] = _mm512_loadu_si512(table + half * 64);
      high[half] = _mm512_loadu_si512(table + 128 + half * 64);
    }
  }

  // Of each 16 codes the first 8 become 16 bytes of `first`, the others of `second`.
  void widen(__m512i codes, __m512& first, __m512& second) const {
    constexpr int kAOrBAndC = 0xf8;
    __m512i low_bytes = _mm512_permutex2var_epi8(low[0], codes, low[1]);  // which looks at 7 bits of a code
    __m512i high_bytes = _mm512_permutex2var_epi8(high[0], codes, high[1]);
    high_bytes = _mm512_ternarylogic_epi32(high_bytes, codes, _mm512_set1_epi8((char)0x80), kAOrBAndC);
    first = _mm512_castsi512_ps(_mm512_unpacklo_epi8(low_bytes, high_bytes));
    second = _mm512_castsi512_ps(_mm512_unpackhi_epi8(low_bytes, high_bytes));
  }
};
#endif

}  // namespace nfold
