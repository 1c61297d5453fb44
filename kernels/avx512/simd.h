// What the AVX-512 kernels share: 16-lane loads, stores and the exponential, for float and bfloat16 alike.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace nfold {

constexpr int kLanes = 16;
constexpr int64_t kLineBytes = 64;  // of a cache

// Before a loop over an array of sums: unless it is unrolled early, a compiler holds the array in memory.
#define NFOLD_UNROLLED _Pragma("GCC unroll 32")

// How many threads are worth waking for so many multiply-adds.
inline int threads_for(int64_t work, int num_threads) {
  constexpr int64_t kWorkPerThread = 1 << 17;
  int64_t wanted = work / kWorkPerThread + 1;
  return (int)(wanted < num_threads ? wanted : num_threads);
}

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct bf16 {
  uint16_t bits;
};

inline __mmask16 first(int64_t count) { return count >= kLanes ? 0xffff : (__mmask16)((1u << count) - 1); }
inline __mmask16 first_if_any(int64_t count) { return count > 0 ? first(count) : 0; }

inline __m512 load(const float* x) { return _mm512_loadu_ps(x); }
inline __m512 load(const float* x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }
inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
inline __m512 load(const bf16* x) { return widen(_mm256_loadu_si256((const __m256i*)x)); }
inline __m512 load(const bf16* x, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, x)); }

// To nearest, ties to even, as torch rounds.
inline __m256i narrow(__m512 x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  __m512i bits = _mm512_castps_si512(x);
  __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
#endif
}

inline void store(float* x, __m512 value) { _mm512_storeu_ps(x, value); }
inline void store(float* x, __m512 value, __mmask16 mask) { _mm512_mask_storeu_ps(x, mask, value); }
inline void store(bf16* x, __m512 value) { _mm256_storeu_si256((__m256i*)x, narrow(value)); }
inline void store(bf16* x, __m512 value, __mmask16 mask) { _mm256_mask_storeu_epi16(x, mask, narrow(value)); }

// As a number of this type has it.
inline __m512 rounded(__m512 x, const float*) { return x; }
inline __m512 rounded(__m512 x, const bf16*) { return widen(narrow(x)); }

// Elements that one multiply-add takes for each sum: 1 float or 2 bfloat16, always 4 bytes.
template <typename T>
constexpr int64_t kPair = 4 / sizeof(T);

// sum + x[0] * w, x the same for all lanes; for bfloat16 sum + x[0] * w[even] + x[1] * w[odd].
inline __m512 multiply_add(const float* x, __m512 w, __m512 sum) {
  return _mm512_fmadd_ps(_mm512_set1_ps(*x), w, sum);
}

inline __m512 multiply_add(const bf16* x, __m512 w, __m512 sum) {
  int32_t pair;
  std::memcpy(&pair, x, 4);
#ifdef __AVX512BF16__
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_castps_si512(w));
#else
  __m512i both = _mm512_castps_si512(w), high = _mm512_set1_epi32((int32_t)0xffff0000);
  __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  __m512 odd = _mm512_castsi512_ps(_mm512_and_epi32(both, high));
  sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(pair << 16)), even, sum);
  return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(pair & (int32_t)0xffff0000)), odd, sum);
#endif
}

// Rows become columns.
inline void transpose(__m512 (&a)[kLanes]) {
  __m512 b[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) {
    a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b[i]), _mm512_castps_pd(b[i + 2])));
    a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b[i]), _mm512_castps_pd(b[i + 2])));
    a[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b[i + 1]), _mm512_castps_pd(b[i + 3])));
    a[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b[i + 1]), _mm512_castps_pd(b[i + 3])));
  }
  for (int i = 0; i < 4; i++) {
    b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    a[i] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88);
    a[i + 8] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd);
  }
}

// e^x within 2 units in the last place; 0 below -87.3, so that -inf gives 0.
inline __m512 exp(__m512 x) {
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.9875691500e-4f);
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
  y = _mm512_add_ps(_mm512_fmadd_ps(y, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
  __mmask16 in_range = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.3f), _CMP_GE_OQ);
  return _mm512_maskz_scalef_ps(in_range, y, n);
}

// x / (1 + e^-x). Below -87 e^-x would be cut off: there it is 0 to within 1e-36.
inline __m512 silu(__m512 x) {
  __m512 bounded = _mm512_min_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), _mm512_set1_ps(87.0f));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), exp(bounded)));
}

}  // namespace nfold
