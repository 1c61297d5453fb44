// Causal attention over the paged cache, blocks read where they lie.
//
// A task is up to 16 rows (query tokens x query heads) that share one key head of one sequence. It walks over the
// context in chunks of 64 tokens, with the running maximum and sum of the softmax:
//
//   scores [rows, 64] = q k^T     16 keys at a time, turned so that a lane is a token: no sums across lanes
//   p = exp(scores - max), earlier sums rescaled where the maximum rose
//   o [rows, d] += p v
//
// The heads of a cache lie too far apart for the processor to guess what is read next, so while a chunk is computed the
// next one is fetched, behind a task's last that of the thread's next task: to L2, as two chunks fill L1. bfloat16 is
// multiplied in pairs, p rounded to it.
//
// Chunks begin at the sequence's first token, so a row's result does not depend on the batch or on how its prompt was
// cut up. All sums are float32.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "functions.h"
#include "shares.h"
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

// Rows from `row` on of a sequence's query tokens x heads; the last of them sees `num_visible` tokens.
struct Task {
  int32_t sequence, kv_head, row, rows, num_visible;
};

// Where the tokens of a chunk are, the last one again behind the end; `count` of them, 0 where nothing comes.
template <typename T>
struct Chunk {
  const T *keys[kChunk], *values[kChunk];
  int64_t count;
};

template <typename T>
struct Scratch {
  std::vector<T> q;
  std::vector<float> turned, out;
  float scores[kRows * kChunk];
  T weights[kRows * kChunk];
  float highest[kRows], total[kRows];
  Chunk<T> chunks[2], *now = &chunks[0], *next = &chunks[1];
};

// One of `num_parts` of what a chunk reads, a little at a time: a core waits for few lines at once. Inlined by force, or
// GCC takes a function that only fetches for one without effect, and drops it.
template <typename T>
[[gnu::always_inline]] inline void fetch_part(const T* const* tokens, int64_t count, int64_t part, int64_t num_parts,
                                              int64_t size) {
  for (int64_t token = count * part / num_parts; token < count * (part + 1) / num_parts; token++)
    for (int64_t i = 0; i < size; i += kLineBytes / (int64_t)sizeof(T))
      _mm_prefetch((const char*)(tokens[token] + i), _MM_HINT_T1);
}

// 16 keys to turned [num_units][16], units of 4 bytes.
template <typename T>
inline void turn(const T* const* keys, int64_t num_units, float* turned) {
  for (int64_t at = 0; at < num_units; at += kLanes) {
    __m512 rows[kLanes];
    __mmask16 mask = first(num_units - at);
    for (int i = 0; i < kLanes; i++) rows[i] = load((const float*)keys[i] + at, mask);
    transpose(rows);
    for (int i = 0; i < kLanes && at + i < num_units; i++) store(turned + (at + i) * kLanes, rows[i]);
  }
}

// scores[R][.. 16 ..] = q[R] * turned[num_units][16].
template <int R, typename T>
inline void score(const T* q, int64_t q_stride, const float* turned, int64_t num_units, float* scores) {
  __m512 acc[R];
  for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
  for (int64_t i = 0; i < num_units; i++) {
    __m512 keys = load(turned + i * kLanes);
    for (int r = 0; r < R; r++) acc[r] = multiply_add(q + r * q_stride + i * kPair<T>, keys, acc[r]);
  }
  for (int r = 0; r < R; r++) store(scores + r * kChunk, acc[r]);
}

template <typename T>
inline void score_rows(int rows, const T* q, int64_t q_stride, const float* turned, int64_t num_units,
                       float* scores) {
  int r = 0;
  for (; r + 8 <= rows; r += 8) score<8>(q + r * q_stride, q_stride, turned, num_units, scores + r * kChunk);
  for (; r + 4 <= rows; r += 4) score<4>(q + r * q_stride, q_stride, turned, num_units, scores + r * kChunk);
  for (; r < rows; r++) score<1>(q + r * q_stride, q_stride, turned, num_units, scores + r * kChunk);
}

// Elements of a head that one `values_of` takes, of one token or of a pair.
template <typename T>
constexpr int64_t kSpan = kLanes * kPair<T>;

// `left` elements of a token's values from `at` on, to kPair<T> vectors in an order of their own (see `in_order`).
inline void values_of(const float* const* tokens, int64_t at, int64_t left, __m512* values) {
  values[0] = load(tokens[0] + at, first(left));
}

inline void values_of(const bf16* const* tokens, int64_t at, int64_t left, __m512* values) {
  __mmask32 mask = left >= 32 ? 0xffffffffu : (__mmask32)((1u << left) - 1);
  __m512i even = _mm512_maskz_loadu_epi16(mask, tokens[0] + at), odd = _mm512_maskz_loadu_epi16(mask, tokens[1] + at);
  values[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(even, odd));
  values[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(even, odd));
}

// What `values_of` brought out of order: unpacked quarter by quarter.
template <typename T>
inline void in_order(__m512* out) {
  if (kPair<T> == 1) return;
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  __m512 first_half = _mm512_permutex2var_ps(out[0], low, out[1]);
  out[1] = _mm512_permutex2var_ps(out[0], high, out[1]);
  out[0] = first_half;
}

// out[R][V * 16] += weights[R][count] * values[count][V * 16], `left` elements of them from `at` on.
template <typename T, int R, int V>
inline void add_values(const T* weights, const T* const* values, int64_t count, int64_t at, int64_t left, float* out,
                       int64_t out_stride) {
  constexpr int kStep = (int)kPair<T>;
  __m512 acc[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = load(out + r * out_stride + v * kLanes);
  for (int64_t c = 0; c < count; c += kStep) {
    __m512 value[V];
    for (int v = 0; v < V; v += kStep) values_of(values + c, at + v * kLanes, left - v * kLanes, value + v);
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) acc[r][v] = multiply_add(weights + r * kChunk + c, value[v], acc[r][v]);
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(out + r * out_stride + v * kLanes, acc[r][v]);
}

template <typename T, int R>
inline void add_values_of(int64_t left, const T* weights, const T* const* values, int64_t count, int64_t at,
                          float* out, int64_t out_stride) {
  int64_t num_vectors = std::min<int64_t>(kPvVectors, (left + kSpan<T> - 1) / kSpan<T> * kPair<T>);
  if (num_vectors == 4) return add_values<T, R, 4>(weights, values, count, at, left, out, out_stride);
  if (num_vectors == 2) return add_values<T, R, 2>(weights, values, count, at, left, out, out_stride);
  if constexpr (kPair<T> == 1) {
    if (num_vectors == 3) return add_values<T, R, 3>(weights, values, count, at, left, out, out_stride);
    return add_values<T, R, 1>(weights, values, count, at, left, out, out_stride);
  }
}

// Turns a row's `visible` scores of the chunk into weights (0 beyond), and keeps its maximum, sum and output.
template <typename T>
inline void softmax_step(const float* scores, float scale, int64_t visible, float& highest, float& total, T* weights,
                         float* out, int64_t width) {
  const __m512 hidden = _mm512_set1_ps(-INFINITY);
  __m512 value[kChunk / kLanes];
  __m512 most = _mm512_set1_ps(highest);
  for (int i = 0; i < kChunk / kLanes; i++) {
    __mmask16 mask = first_if_any(visible - i * kLanes);
    value[i] = _mm512_mask_mul_ps(hidden, mask, load(scores + i * kLanes, mask), _mm512_set1_ps(scale));
    most = _mm512_max_ps(most, value[i]);
  }
  float now = _mm512_reduce_max_ps(most);
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < kChunk / kLanes; i++) {
    __m512 weight = rounded(exp(_mm512_sub_ps(value[i], _mm512_set1_ps(now))), weights);
    store(weights + i * kLanes, weight);
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

// The chunk of `task` from token `start` on; none of no task.
template <typename T>
void find(const Inputs<T>& in, const Task* task, int64_t start, Chunk<T>& chunk) {
  chunk.count = task ? std::min<int64_t>(kChunk, task->num_visible - start) : 0;
  if (chunk.count == 0) return;
  const int32_t* table = in.block_tables + task->sequence * in.table_stride;
  int64_t stride = in.num_kv_heads * in.head_dim, first_of_head = task->kv_head * in.head_dim;
  for (int64_t c = 0; c < chunk.count;) {
    int64_t at = start + c, in_block = at % in.block_size;
    int64_t offset = (table[at / in.block_size] * in.block_size + in_block) * stride + first_of_head;
    for (int64_t left = in.block_size - in_block; left > 0 && c < chunk.count; left--, c++, offset += stride) {
      chunk.keys[c] = in.k_cache + offset;
      chunk.values[c] = in.v_cache + offset;
    }
  }
  std::fill(chunk.keys + chunk.count, chunk.keys + kChunk, chunk.keys[chunk.count - 1]);
  std::fill(chunk.values + chunk.count, chunk.values + kChunk, chunk.values[chunk.count - 1]);
}

// `scratch.now` is the first chunk of `task`, afterwards that of `following`, which may be none.
template <typename T>
void attend(const Inputs<T>& in, const Task& task, const Task* following, Scratch<T>& scratch) {
  int64_t d = in.head_dim, width = (d + kSpan<T> - 1) / kSpan<T> * kSpan<T>, num_units = d / kPair<T>;
  int64_t group = in.num_heads / in.num_kv_heads;
  int64_t first_token = in.query_start[task.sequence];
  int64_t num_before = in.context_lens[task.sequence] - (in.query_start[task.sequence + 1] - first_token);
  int rows = task.rows;

  for (int r = 0; r < rows; r++) {
    int64_t token = first_token + (task.row + r) / group, head = task.kv_head * group + (task.row + r) % group;
    std::copy_n(in.q + token * in.q_stride + head * d, d, scratch.q.data() + r * d);
    scratch.highest[r] = -INFINITY;
    scratch.total[r] = 0;
  }
  std::fill_n(scratch.out.data(), rows * width, 0.0f);

  for (int64_t start = 0; start < task.num_visible; start += kChunk) {
    const Chunk<T>& now = *scratch.now;
    Chunk<T>& next = *scratch.next;
    bool is_last = start + kChunk >= task.num_visible;
    find(in, is_last ? following : &task, is_last ? 0 : start + kChunk, next);
    int64_t num_groups = divide_up(now.count, kLanes);
    for (int64_t g = 0; g < num_groups; g++) {
      int64_t c = g * kLanes;
      turn(now.keys + c, num_units, scratch.turned.data());
      fetch_part(next.keys, next.count, 2 * g, 2 * num_groups, d);
      score_rows(rows, scratch.q.data(), d, scratch.turned.data(), num_units, scratch.scores + c);
      fetch_part(next.keys, next.count, 2 * g + 1, 2 * num_groups, d);
    }
    for (int r = 0; r < rows; r++) {
      int64_t visible = num_before + (task.row + r) / group + 1 - start;
      softmax_step(scratch.scores + r * kChunk, in.scale, visible, scratch.highest[r], scratch.total[r],
                   scratch.weights + r * kChunk, scratch.out.data() + r * width, width);
      fetch_part(next.values, next.count, r, rows, d);
    }
    for (int64_t i = 0; i < d; i += kPvVectors * kLanes) {
      int r = 0;
      for (; r + kPvRows <= rows; r += kPvRows)
        add_values_of<T, kPvRows>(d - i, scratch.weights + r * kChunk, now.values, now.count, i,
                                  scratch.out.data() + r * width + i, width);
      for (; r < rows; r++)
        add_values_of<T, 1>(d - i, scratch.weights + r * kChunk, now.values, now.count, i,
                            scratch.out.data() + r * width + i, width);
    }
    std::swap(scratch.now, scratch.next);
  }
  for (int r = 0; r < rows; r++) {
    int64_t token = first_token + (task.row + r) / group, head = task.kv_head * group + (task.row + r) % group;
    T* out = in.out + (token * in.num_heads + head) * d;
    __m512 factor = _mm512_set1_ps(1.0f / scratch.total[r]);
    for (int64_t i = 0; i < d; i += kSpan<T>) {
      __m512 part[2];
      for (int v = 0; v < kPair<T>; v++)
        part[v] = _mm512_mul_ps(load(scratch.out.data() + r * width + i + v * kLanes), factor);
      in_order<T>(part);
      for (int v = 0; v < kPair<T> && i + v * kLanes < d; v++)
        store(out + i + v * kLanes, part[v], first(d - i - v * kLanes));
    }
  }
}

template <typename T>
void paged_attention(const Inputs<T>& in, int64_t num_sequences, int num_threads) {
  static thread_local std::vector<Task> tasks;
  tasks.clear();
  int64_t group = in.num_heads / in.num_kv_heads, work = 0;
  for (int32_t s = 0; s < num_sequences; s++) {
    int32_t num_queries = in.query_start[s + 1] - in.query_start[s], num_rows = num_queries * (int32_t)group;
    work += (int64_t)num_rows * in.context_lens[s] * in.num_kv_heads * in.head_dim * 2;
    for (int32_t row = 0; row < num_rows; row += kRows) {
      int32_t rows = std::min(kRows, num_rows - row);
      int32_t num_visible = in.context_lens[s] - num_queries + (row + rows - 1) / (int32_t)group + 1;
      for (int32_t head = 0; head < in.num_kv_heads; head++) tasks.push_back({s, head, row, rows, num_visible});
    }
  }
  const Task* all = tasks.data();
  int64_t num_tasks = (int64_t)tasks.size();
  num_threads = threads_for(work, (int)std::min<int64_t>(num_threads, num_tasks));
  Shares shares(num_tasks, num_threads);
#pragma omp parallel num_threads(num_threads)
  {
    static thread_local Scratch<T> scratch;
    int64_t width = (in.head_dim + kSpan<T> - 1) / kSpan<T> * kSpan<T>;
    scratch.q.resize(kRows * width);
    scratch.turned.resize(width * kLanes);
    scratch.out.resize(kRows * width);
    auto take = [&] {
      int64_t number = shares.take(omp_get_thread_num());
      return number < num_tasks ? all + number : nullptr;
    };
    const Task* task = take();
    find(in, task, 0, *scratch.now);
    while (task) {
      const Task* following = take();
      attend(in, *task, following, scratch);
      task = following;
    }
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
