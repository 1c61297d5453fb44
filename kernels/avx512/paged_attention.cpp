// Causal attention over the paged cache, blocks read where they lie.
//
// A task is up to 16 rows (query tokens x query heads) that share one key head of one sequence. It walks over the
// context in chunks of 64 tokens, with the running maximum and sum of the softmax:
//
//   scores [rows, 64] = q k^T     16 keys at a time, turned so that a lane is a token: no sums across lanes
//   p = exp(scores - max), earlier sums rescaled where the maximum rose
//   o [rows, d] += p v
//
// Chunks begin at the sequence's first token, so a row's result does not depend on the batch or on how its prompt was
// cut up. All sums are float32.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

namespace nfold {
namespace {

constexpr int kRows = 16;
constexpr int kChunk = 64;
constexpr int kPvRows = 4;
constexpr int kPvVectors = 4;

template <typename T>
struct Inputs {
  const T *q, *k_cache, *v_cache;
  T* out;
  const int32_t *block_tables, *query_start, *context_lens;
  int64_t q_stride, table_stride, block_size, num_heads, num_kv_heads, head_dim;
  float scale;
};

struct Task {
  int32_t sequence, kv_head, row;
};

struct Scratch {
  std::vector<float> q, keys, scores, out;
  float highest[kRows], total[kRows];
};

template <typename T>
inline void fetch(const T* x, int64_t size) {
  for (int64_t i = 0; i < size; i += 64 / (int64_t)sizeof(T)) _mm_prefetch((const char*)(x + i), _MM_HINT_T0);
}

// 16 keys of `width` <= 16 elements to turned [width][16].
template <typename T>
inline void turn(const T* const* keys, int64_t at, int64_t width, float* turned) {
  __m512 rows[kLanes];
  __mmask16 mask = first(width);
  for (int i = 0; i < kLanes; i++) rows[i] = load(keys[i] + at, mask);
  transpose(rows);
  for (int i = 0; i < width; i++) store(turned + i * kLanes, rows[i]);
}

// scores[R][.. 16 ..] = q[R][d] * turned[d][16].
template <int R>
inline void score(const float* q, const float* turned, int64_t head_dim, float* scores) {
  __m512 acc[R];
  for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
  for (int64_t i = 0; i < head_dim; i++) {
    __m512 keys = load(turned + i * kLanes);
    for (int r = 0; r < R; r++) acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(q[r * head_dim + i]), keys, acc[r]);
  }
  for (int r = 0; r < R; r++) store(scores + r * kChunk, acc[r]);
}

// out[R][V * 16] += p[R][count] * values[count][V * 16], the last vector cut to `mask`.
template <typename T, int R, int V>
inline void add_values(const float* p, const T* const* values, int64_t count, int64_t at, float* out,
                       int64_t out_stride, __mmask16 mask) {
  __m512 acc[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = load(out + r * out_stride + v * kLanes);
  for (int64_t c = 0; c < count; c++) {
    __m512 value[V];
    for (int v = 0; v < V; v++)
      value[v] = v + 1 < V ? load(values[c] + at + v * kLanes) : load(values[c] + at + v * kLanes, mask);
    for (int r = 0; r < R; r++) {
      __m512 weight = _mm512_set1_ps(p[r * kChunk + c]);
      for (int v = 0; v < V; v++) acc[r][v] = _mm512_fmadd_ps(weight, value[v], acc[r][v]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(out + r * out_stride + v * kLanes, acc[r][v]);
}

template <typename T, int R>
inline void add_values_of(int num_vectors, const float* p, const T* const* values, int64_t count, int64_t at,
                          float* out, int64_t out_stride, __mmask16 mask) {
  switch (num_vectors) {
    case 1: return add_values<T, R, 1>(p, values, count, at, out, out_stride, mask);
    case 2: return add_values<T, R, 2>(p, values, count, at, out, out_stride, mask);
    case 3: return add_values<T, R, 3>(p, values, count, at, out, out_stride, mask);
    default: return add_values<T, R, 4>(p, values, count, at, out, out_stride, mask);
  }
}

inline void score_rows(int rows, const float* q, const float* turned, int64_t head_dim, float* scores) {
  int r = 0;
  for (; r + 8 <= rows; r += 8) score<8>(q + r * head_dim, turned, head_dim, scores + r * kChunk);
  for (; r + 4 <= rows; r += 4) score<4>(q + r * head_dim, turned, head_dim, scores + r * kChunk);
  for (; r < rows; r++) score<1>(q + r * head_dim, turned, head_dim, scores + r * kChunk);
}

// Turns a row's `visible` scores of the chunk into weights (0 beyond), and keeps its maximum, sum and output.
inline void softmax_step(float* scores, int64_t visible, float& highest, float& total, float* out, int64_t width) {
  const __m512 hidden = _mm512_set1_ps(-INFINITY);
  __m512 value[kChunk / kLanes];
  __m512 most = _mm512_set1_ps(highest);
  for (int i = 0; i < kChunk / kLanes; i++) {
    __mmask16 mask = visible <= i * kLanes ? 0 : first(visible - i * kLanes);
    value[i] = _mm512_mask_loadu_ps(hidden, mask, scores + i * kLanes);
    most = _mm512_max_ps(most, value[i]);
  }
  float now = _mm512_reduce_max_ps(most);
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < kChunk / kLanes; i++) {
    __m512 weight = exp(_mm512_sub_ps(value[i], _mm512_set1_ps(now)));
    store(scores + i * kLanes, weight);
    sum = _mm512_add_ps(sum, weight);
  }
  if (now > highest && highest != -INFINITY) {
    __m512 factor = exp(_mm512_set1_ps(highest - now));
    total *= _mm512_cvtss_f32(factor);
    for (int64_t i = 0; i < width; i += kLanes) store(out + i, _mm512_mul_ps(load(out + i), factor));
  }
  highest = now;
  total += _mm512_reduce_add_ps(sum);
}

template <typename T>
void attend(const Inputs<T>& in, const Task& task, Scratch& scratch) {
  int64_t d = in.head_dim, width = (d + kLanes - 1) / kLanes * kLanes;
  int64_t group = in.num_heads / in.num_kv_heads;
  int64_t first_token = in.query_start[task.sequence];
  int64_t num_queries = in.query_start[task.sequence + 1] - first_token;
  int64_t num_before = in.context_lens[task.sequence] - num_queries;
  int rows = (int)std::min<int64_t>(kRows, num_queries * group - task.row);
  const int32_t* table = in.block_tables + task.sequence * in.table_stride;

  for (int r = 0; r < rows; r++) {
    int64_t token = first_token + (task.row + r) / group, head = task.kv_head * group + (task.row + r) % group;
    const T* q = in.q + token * in.q_stride + head * d;
    for (int64_t i = 0; i < d; i += kLanes) {
      __mmask16 mask = first(d - i);
      store(scratch.q.data() + r * d + i, _mm512_mul_ps(load(q + i, mask), _mm512_set1_ps(in.scale)), mask);
    }
    scratch.highest[r] = -INFINITY;
    scratch.total[r] = 0;
  }
  std::fill_n(scratch.out.data(), rows * width, 0.0f);

  int64_t num_visible = num_before + (task.row + rows - 1) / group + 1;  // of the last row
  const T *keys[kChunk], *values[kChunk];
  auto offset_of = [&](int64_t at) {
    int64_t slot = table[at / in.block_size] * in.block_size + at % in.block_size;
    return (slot * in.num_kv_heads + task.kv_head) * d;
  };
  for (int64_t start = 0; start < num_visible; start += kChunk) {
    int64_t count = std::min<int64_t>(kChunk, num_visible - start);
    for (int64_t c = 0; c < kChunk; c++) {
      int64_t offset = offset_of(start + std::min(c, count - 1));
      keys[c] = in.k_cache + offset;
      values[c] = in.v_cache + offset;
    }
    // What comes next, while this is computed: heads lie too far apart for the processor to guess it.
    if (start == 0)
      for (int64_t c = 0; c < count; c++) fetch(keys[c], d);
    for (int64_t c = 0; c < count; c++) fetch(values[c], d);
    for (int64_t at = start + kChunk; at < std::min(start + 2 * kChunk, num_visible); at++)
      fetch(in.k_cache + offset_of(at), d);
    for (int64_t c = 0; c < count; c += kLanes) {
      for (int64_t i = 0; i < d; i += kLanes)
        turn(keys + c, i, std::min<int64_t>(kLanes, d - i), scratch.keys.data() + i * kLanes);
      score_rows(rows, scratch.q.data(), scratch.keys.data(), d, scratch.scores.data() + c);
    }
    for (int r = 0; r < rows; r++) {
      int64_t visible = num_before + (task.row + r) / group + 1 - start;
      softmax_step(scratch.scores.data() + r * kChunk, visible, scratch.highest[r], scratch.total[r],
                   scratch.out.data() + r * width, width);
    }
    for (int64_t i = 0; i < d; i += kPvVectors * kLanes) {
      int vectors = (int)std::min<int64_t>(kPvVectors, (d - i + kLanes - 1) / kLanes);
      __mmask16 mask = first(d - i - (vectors - 1) * kLanes);
      int r = 0;
      for (; r + kPvRows <= rows; r += kPvRows)
        add_values_of<T, kPvRows>(vectors, scratch.scores.data() + r * kChunk, values, count, i,
                                  scratch.out.data() + r * width + i, width, mask);
      for (; r < rows; r++)
        add_values_of<T, 1>(vectors, scratch.scores.data() + r * kChunk, values, count, i,
                            scratch.out.data() + r * width + i, width, mask);
    }
  }
  for (int r = 0; r < rows; r++) {
    int64_t token = first_token + (task.row + r) / group, head = task.kv_head * group + (task.row + r) % group;
    T* out = in.out + (token * in.num_heads + head) * d;
    __m512 factor = _mm512_set1_ps(1.0f / scratch.total[r]);
    for (int64_t i = 0; i < d; i += kLanes)
      store(out + i, _mm512_mul_ps(load(scratch.out.data() + r * width + i), factor), first(d - i));
  }
}

template <typename T>
void paged_attention(const Inputs<T>& in, int64_t num_sequences, int num_threads) {
  static thread_local std::vector<Task> tasks;
  tasks.clear();
  int64_t group = in.num_heads / in.num_kv_heads, work = 0;
  for (int32_t s = 0; s < num_sequences; s++) {
    int64_t num_queries = in.query_start[s + 1] - in.query_start[s];
    work += num_queries * in.context_lens[s] * in.num_heads * in.head_dim * 2;
    for (int32_t row = 0; row < num_queries * group; row += kRows)
      for (int32_t head = 0; head < in.num_kv_heads; head++) tasks.push_back({s, head, row});
  }
  const Task* all = tasks.data();
  int64_t num_tasks = (int64_t)tasks.size();
  if (num_tasks == 0) return;
#pragma omp parallel num_threads(threads_for(work, (int)std::min<int64_t>(num_threads, num_tasks)))
  {
    static thread_local Scratch scratch;
    int64_t width = (in.head_dim + kLanes - 1) / kLanes * kLanes;
    scratch.q.resize(kRows * width);
    scratch.keys.resize(width * kLanes);
    scratch.scores.resize(kRows * kChunk);
    scratch.out.resize(kRows * width);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < num_tasks; i++) attend(in, all[i], scratch);
  }
}

}  // namespace
}  // namespace nfold

extern "C" {

#define NFOLD_PAGED_ATTENTION(suffix, T)                                                                            \
  void nfold_paged_attention_##suffix(const T* q, int64_t q_stride, const T* k_cache, const T* v_cache, T* out,     \
                                      const int32_t* block_tables, int64_t table_stride,                            \
                                      const int32_t* query_start, const int32_t* context_lens,                      \
                                      int64_t num_sequences, int64_t block_size, int64_t num_heads,                 \
                                      int64_t num_kv_heads, int64_t head_dim, float scale, int num_threads) {       \
    nfold::Inputs<T> in{q,        k_cache,      v_cache,    out,       block_tables, query_start,  context_lens,    \
                        q_stride, table_stride, block_size, num_heads, num_kv_heads, head_dim, scale};              \
    nfold::paged_attention(in, num_sequences, num_threads);                                                         \
  }

NFOLD_PAGED_ATTENTION(float32, float)
NFOLD_PAGED_ATTENTION(bfloat16, nfold::bf16)
}
