// The layers of a Llama in one call, op after op. Each op is called as it would be by itself; what is saved is the
// caller's time between two of them, which its own data, gone from the caches behind megabytes of weights, makes long;
// and a product fetches where the one behind it begins.
// Gate, up and down have no bias.
#include <algorithm>

#include "functions.h"
#include "panels.h"

namespace nfold {
namespace {

// As decoder_layers.py fills them.
template <typename T>
struct Layer {
  const T* input_norm;
  const char* qkv;
  const T* qkv_bias;
  const char* output;
  const T* output_bias;
  const T* mlp_norm;
  const char* gate_up;
  const char* down;
};

struct Shape {
  int64_t num_layers, hidden, num_heads, num_kv_heads, head_dim, intermediate;
  float eps, scale;
};

struct Sequences {
  const int32_t *block_tables, *query_start, *context_lens;
  int64_t table_stride, count;
};

template <typename T>
struct Step {
  int64_t num_tokens, block_size;
  const T *cos, *sin;
  const int64_t* slots;
  T* const* k_caches;
  T* const* v_caches;
  Sequences sequences;
  // Of the last layer: rows that are wanted, ascending; none: all.
  const int64_t* last_rows;
  Sequences last_sequences;
  // [num_tokens] of: hidden; heads of queries, keys and values; of queries; intermediate; hidden.
  T *normed, *qkv, *attended, *gated, *added;
};

// The first `size` of each of these rows, to the front.
template <typename T>
void keep_rows(T* x, int64_t stride, int64_t size, const int64_t* rows, int64_t num_rows) {
  for (int64_t i = 0; i < num_rows; i++)
    if (rows[i] != i) std::copy_n(x + rows[i] * stride, size, x + i * stride);
}

// `residual` [num_tokens, hidden] is the embedding at first; what the last layer adds to it is left in `added`.
template <typename T>
void decoder_layers(const Layer<T>* layers, const Shape& of, const Step<T>& step, T* residual, int num_threads) {
  using Do = Functions<T>;
  int64_t q_width = of.num_heads * of.head_dim, qkv_width = q_width + 2 * of.num_kv_heads * of.head_dim;
  int64_t num_rows = step.num_tokens;
  auto panels = [](const char* packed, int64_t num_inputs, int64_t num_outputs) {
    return NextPanels{packed, num_inputs * kPanel * (int64_t)sizeof(T), divide_up(num_outputs, kPanel)};
  };
  for (int64_t i = 0; i < of.num_layers; i++) {
    const Layer<T>& layer = layers[i];
    bool is_last = i == of.num_layers - 1;
    NextPanels gate_up = panels(layer.gate_up, of.hidden, 2 * of.intermediate);
    NextPanels down = panels(layer.down, of.intermediate, of.hidden);
    NextPanels qkv = is_last ? NextPanels() : panels(layers[i + 1].qkv, of.hidden, qkv_width);
    T *k_cache = step.k_caches[i], *v_cache = step.v_caches[i];
    const Sequences* sequences = &step.sequences;
    Do::rms_norm(i ? step.added : residual, i ? residual : nullptr, layer.input_norm, of.eps, step.normed, num_rows,
                 of.hidden, num_threads);
    Do::linear(step.normed, of.hidden, num_rows, layer.qkv, of.hidden, qkv_width, layer.qkv_bias, false, step.qkv,
               qkv_width, nullptr, num_threads);
    Do::rotary_and_write_kv(step.qkv, step.cos, step.sin, k_cache, v_cache, step.slots, num_rows, of.num_heads,
                            of.num_kv_heads, of.head_dim, num_threads);
    if (step.last_rows && is_last) {
      sequences = &step.last_sequences;
      num_rows = sequences->count;
      keep_rows(step.qkv, qkv_width, q_width, step.last_rows, num_rows);
      keep_rows(residual, of.hidden, of.hidden, step.last_rows, num_rows);
    }
    Do::paged_attention(step.qkv, qkv_width, k_cache, v_cache, step.attended, sequences->block_tables,
                        sequences->table_stride, sequences->query_start, sequences->context_lens, sequences->count,
                        step.block_size, of.num_heads, of.num_kv_heads, of.head_dim, of.scale, num_threads);
    Do::linear(step.attended, q_width, num_rows, layer.output, q_width, of.hidden, layer.output_bias, false,
               step.added, of.hidden, &gate_up, num_threads);
    Do::rms_norm(step.added, residual, layer.mlp_norm, of.eps, step.normed, num_rows, of.hidden, num_threads);
    Do::linear(step.normed, of.hidden, num_rows, layer.gate_up, of.hidden, of.intermediate, nullptr, true, step.gated,
               of.intermediate, &down, num_threads);
    Do::linear(step.gated, of.intermediate, num_rows, layer.down, of.intermediate, of.hidden, nullptr, false,
               step.added, of.hidden, is_last ? nullptr : &qkv, num_threads);
  }
}

}  // namespace
}  // namespace nfold

extern "C" {

#define NFOLD_DECODER_LAYERS(suffix, T)                                                                            \
  void nfold_decoder_layers_##suffix(const nfold::Layer<T>* layers, const nfold::Shape* shape,                     \
                                     const nfold::Step<T>* step, T* residual, int num_threads) {                   \
    nfold::decoder_layers(layers, *shape, *step, residual, num_threads);                                           \
  }

NFOLD_DECODER_LAYERS(float32, float)
#ifdef __AVX512BF16__
NFOLD_DECODER_LAYERS(bfloat16, nfold::bf16)
#endif
}
