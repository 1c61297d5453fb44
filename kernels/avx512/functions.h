// The functions of one type that other files call, too.
#pragma once

#include "simd.h"

namespace nfold {

// The weights of the product that comes next.
struct NextPanels {
  const char* packed;
  int64_t panel_bytes, num_panels;

  // Where a thread will begin.
  const char* first_of(int64_t thread, int64_t num_threads) const {
    return packed + num_panels * thread / num_threads * panel_bytes;
  }
};

template <typename T>
struct Functions;

#define NFOLD_FUNCTIONS(suffix, T)                                                                                  \
  extern "C" {                                                                                                      \
  void nfold_rms_norm_##suffix(const T* x, T* residual, const T* weight, float eps, T* y, int64_t num_rows,         \
                               int64_t size, int num_threads);                                                      \
  void nfold_rotary_and_write_kv_##suffix(T* qkv, const T* cos, const T* sin, T* k_cache, T* v_cache,               \
                                          const int64_t* slots, int64_t num_tokens, int64_t num_heads,              \
                                          int64_t num_kv_heads, int64_t head_dim, int num_threads);                 \
  void nfold_paged_attention_##suffix(const T* q, int64_t q_stride, const T* k_cache, const T* v_cache, T* out,     \
                                      const int32_t* block_tables, int64_t table_stride,                            \
                                      const int32_t* query_start, const int32_t* context_lens,                      \
                                      int64_t num_sequences, int64_t block_size, int64_t num_heads,                 \
                                      int64_t num_kv_heads, int64_t head_dim, float scale, int num_threads);        \
  void nfold_linear_##suffix(const T* x, int64_t x_stride, int64_t num_rows, const char* packed,                    \
                             int64_t num_inputs, int64_t num_outputs, const T* bias, int is_gated, T* y,            \
                             int64_t y_stride, const NextPanels* next, int num_threads);                            \
  }                                                                                                                 \
  template <>                                                                                                       \
  struct Functions<T> {                                                                                             \
    static constexpr auto rms_norm = nfold_rms_norm_##suffix;                                                       \
    static constexpr auto rotary_and_write_kv = nfold_rotary_and_write_kv_##suffix;                                 \
    static constexpr auto paged_attention = nfold_paged_attention_##suffix;                                         \
    static constexpr auto linear = nfold_linear_##suffix;                                                           \
  };

NFOLD_FUNCTIONS(float32, float)
NFOLD_FUNCTIONS(bfloat16, bf16)

}  // namespace nfold
