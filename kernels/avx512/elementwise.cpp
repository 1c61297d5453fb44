// Norm, rotary embedding with the cache write, gated activation, highest logit: one pass over their input each,
// computed in float32, rows shared out over the threads.
#include <omp.h>

#include <cmath>

#include "functions.h"
#include "simd.h"

namespace nfold {
namespace {

constexpr int64_t kWorkPerElement = 8;  // these ops wait for memory more than products do

// residual (if any) += x, rounded as it is stored; y = residual / rms(residual) * weight.
template <typename T>
void rms_norm(const T* x, T* residual, const T* weight, float eps, T* y, int64_t num_rows, int64_t size,
              int num_threads) {
#pragma omp parallel for num_threads(threads_for(num_rows * size * kWorkPerElement, num_threads))
  for (int64_t row = 0; row < num_rows; row++) {
    const T* in = x + row * size;
    T* out = y + row * size;
    __m512 squares = _mm512_setzero_ps();
    if (residual) {
      T* sum = residual + row * size;
      for (int64_t i = 0; i < size; i += kLanes) {
        __mmask16 mask = first(size - i);
        store(sum + i, _mm512_add_ps(load(in + i, mask), load(sum + i, mask)), mask);
        __m512 value = load(sum + i, mask);
        squares = _mm512_fmadd_ps(value, value, squares);
      }
      in = sum;
    } else {
      for (int64_t i = 0; i < size; i += kLanes) {
        __m512 value = load(in + i, first(size - i));
        squares = _mm512_fmadd_ps(value, value, squares);
      }
    }
    __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / (float)size + eps));
    for (int64_t i = 0; i < size; i += kLanes) {
      __mmask16 mask = first(size - i);
      store(out + i, _mm512_mul_ps(_mm512_mul_ps(load(in + i, mask), factor), load(weight + i, mask)), mask);
    }
  }
}

// y [num_rows, size] = silu(x[:, :size]) * x[:, size:].
template <typename T>
void silu_and_mul(const T* x, T* y, int64_t num_rows, int64_t size, int num_threads) {
#pragma omp parallel for num_threads(threads_for(num_rows * size * kWorkPerElement, num_threads))
  for (int64_t row = 0; row < num_rows; row++) {
    const T* gate = x + row * 2 * size;
    for (int64_t i = 0; i < size; i += kLanes) {
      __mmask16 mask = first(size - i);
      store(y + row * size + i, _mm512_mul_ps(silu(load(gate + i, mask)), load(gate + size + i, mask)), mask);
    }
  }
}

// A head turned by its token's angles (see ops.rotary), from `x` to `y`, which may be the same.
template <typename T>
inline void rotate(const T* x, const T* cos, const T* sin, T* y, int64_t head_dim) {
  int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    __mmask16 mask = first(half - i);
    __m512 a = load(x + i, mask), b = load(x + half + i, mask);
    __m512 low = _mm512_mul_ps(a, load(cos + i, mask));
    __m512 high = _mm512_mul_ps(b, load(cos + half + i, mask));
    store(y + i, _mm512_fmadd_ps(b, load(sin + i, mask), low), mask);
    store(y + half + i, _mm512_fmadd_ps(a, load(sin + half + i, mask), high), mask);
  }
}

// qkv [T, H + 2 K, d]: queries turned in place, keys turned into the cache, values copied into it.
template <typename T>
void rotary_and_write_kv(T* qkv, const T* cos, const T* sin, T* k_cache, T* v_cache, const int64_t* slots,
                         int64_t num_tokens, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                         int num_threads) {
  int64_t work = num_tokens * (num_heads + 2 * num_kv_heads) * head_dim * kWorkPerElement;
#pragma omp parallel for num_threads(threads_for(work, num_threads))
  for (int64_t token = 0; token < num_tokens; token++) {
    T* q = qkv + token * (num_heads + 2 * num_kv_heads) * head_dim;
    const T* k = q + num_heads * head_dim;
    const T *c = cos + token * head_dim, *s = sin + token * head_dim;
    int64_t width = num_kv_heads * head_dim;
    for (int64_t head = 0; head < num_heads; head++) rotate(q + head * head_dim, c, s, q + head * head_dim, head_dim);
    T* k_out = k_cache + slots[token] * width;
    for (int64_t at = 0; at < width; at += head_dim) rotate(k + at, c, s, k_out + at, head_dim);
    std::memcpy(v_cache + slots[token] * width, k + width, width * sizeof(T));
  }
}

// The lowest index of the highest value of each row; no value may be NaN.
void argmax(const float* x, int64_t num_rows, int64_t size, int64_t* ids, int num_threads) {
#pragma omp parallel for num_threads(threads_for(num_rows * size * kWorkPerElement, num_threads))
  for (int64_t row = 0; row < num_rows; row++) {
    const float* values = x + row * size;
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    __m512 best = lowest;
    __m512i at = _mm512_setzero_si512();
    __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t i = 0; i < size; i += kLanes) {
      __m512 value = _mm512_mask_loadu_ps(lowest, first(size - i), values + i);
      __mmask16 higher = _mm512_cmp_ps_mask(value, best, _CMP_GT_OQ);
      best = _mm512_mask_mov_ps(best, higher, value);
      at = _mm512_mask_mov_epi32(at, higher, index);
      index = _mm512_add_epi32(index, _mm512_set1_epi32(kLanes));
    }
    __mmask16 highest = _mm512_cmp_ps_mask(best, _mm512_set1_ps(_mm512_reduce_max_ps(best)), _CMP_EQ_OQ);
    ids[row] = _mm512_mask_reduce_min_epi32(highest, at);
  }
}

}  // namespace
}  // namespace nfold

using nfold::bf16;

extern "C" {

#define NFOLD_ELEMENTWISE(suffix, T)                                                                                \
  void nfold_rms_norm_##suffix(const T* x, T* residual, const T* weight, float eps, T* y, int64_t num_rows,         \
                               int64_t size, int num_threads) {                                                     \
    nfold::rms_norm(x, residual, weight, eps, y, num_rows, size, num_threads);                                      \
  }                                                                                                                 \
  void nfold_silu_and_mul_##suffix(const T* x, T* y, int64_t num_rows, int64_t size, int num_threads) {             \
    nfold::silu_and_mul(x, y, num_rows, size, num_threads);                                                         \
  }                                                                                                                 \
  void nfold_rotary_and_write_kv_##suffix(T* qkv, const T* cos, const T* sin, T* k_cache, T* v_cache,               \
                                          const int64_t* slots, int64_t num_tokens, int64_t num_heads,              \
                                          int64_t num_kv_heads, int64_t head_dim, int num_threads) {                \
    nfold::rotary_and_write_kv(qkv, cos, sin, k_cache, v_cache, slots, num_tokens, num_heads, num_kv_heads,         \
                               head_dim, num_threads);                                                              \
  }

NFOLD_ELEMENTWISE(float32, float)
NFOLD_ELEMENTWISE(bfloat16, bf16)

void nfold_argmax_float32(const float* x, int64_t num_rows, int64_t size, int64_t* ids, int num_threads) {
  nfold::argmax(x, num_rows, size, ids, num_threads);
}
}
