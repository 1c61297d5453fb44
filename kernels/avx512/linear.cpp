// y = x W^T + bias, W packed once into panels of 64 outputs:
//
//   W [N, K]  ->  panel 0: k = 0: w[0..63][0] | k = 1: w[0..63][1] | ...     panel 1: ...
//
// (bfloat16: two k side by side, as the dot product instruction takes them). A thread takes a panel, K in blocks
// that stay in its L2 cache, and runs tiles in registers: up to 6 rows x 64 outputs, or up to 10 x 32, which bring half
// as much from L2 for a product. While a block is used the one that the thread takes next is prefetched. An output is
// summed in the same order whatever the number of rows, so a row's result does not depend on the batch.
#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>
#include <vector>

#include "simd.h"

namespace nfold {
namespace {

constexpr int kPanel = 64;
constexpr int kVectors = kPanel / kLanes;
constexpr int kWideRows = 6;  // up to which a tile is as wide as a panel
constexpr int kTileRows = 10;
constexpr int64_t kBlockBytes = 4096;  // of one output's inputs: a block of a panel is 64 times this
constexpr int64_t kBlockRows = 100;
constexpr int64_t kLineBytes = 64;

// sums[R][V * 16] (+)= x[R][inputs of the block] * V vectors of a panel's block.
template <typename T, int R, int V>
void tile(const T* x, int64_t x_stride, const float* panel, int64_t num_steps, float* sums, bool is_first,
          const char* next, int num_lines) {
  __m512 acc[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = is_first ? _mm512_setzero_ps() : load(sums + r * kPanel + v * kLanes);
  for (int64_t step = 0; step < num_steps; step += 4) {
    for (int line = 0; line < num_lines; line++) _mm_prefetch(next + line * kLineBytes, _MM_HINT_T1);
    next += num_lines * kLineBytes;
    int64_t stop = std::min<int64_t>(step + 4, num_steps);
    for (int64_t k = step; k < stop; k++) {
      __m512 w[V];
      for (int v = 0; v < V; v++) w[v] = load(panel + k * kPanel + v * kLanes);
      for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) acc[r][v] = multiply_add(x + r * x_stride + k * kPair<T>, w[v], acc[r][v]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(sums + r * kPanel + v * kLanes, acc[r][v]);
}

template <typename T>
using Tile = void (*)(const T*, int64_t, const float*, int64_t, float*, bool, const char*, int);

// By rows - 1.
template <typename T, int... R>
constexpr std::array<Tile<T>, sizeof...(R)> tiles(std::integer_sequence<int, R...>) {
  return {tile<T, R + 1, (R < kWideRows ? kVectors : kVectors / 2)>...};
}

// One panel for `rows` rows of x, while the block that comes next is fetched; `next_panel` may be none.
template <typename T, typename Out>
void panel_product(const T* x, int64_t x_stride, int64_t rows, const float* panel, int64_t num_steps, const T* bias,
                   Out* y, int64_t y_stride, int64_t num_outputs, float* sums, const float* next_panel) {
  static constexpr auto kTiles = tiles<T>(std::make_integer_sequence<int, kTileRows>());
  constexpr int64_t kBlockSteps = kBlockBytes / 4;
  int64_t num_tiles = (rows + kTileRows - 1) / kTileRows, num_calls = rows <= kWideRows ? 1 : 2 * num_tiles;
  for (int64_t begin = 0; begin < num_steps; begin += kBlockSteps) {
    int64_t steps = std::min(kBlockSteps, num_steps - begin);
    const char* next = (const char*)(begin + steps < num_steps ? panel + (begin + steps) * kPanel : next_panel);
    int num_lines = next ? (int)((16 + num_calls - 1) / num_calls) : 0;
    int64_t row = 0;
    for (int64_t number = 0; number < num_tiles; number++) {
      int64_t stop = rows * (number + 1) / num_tiles;
      for (int64_t at = 0; at < kPanel; at += stop - row <= kWideRows ? kPanel : kPanel / 2) {
        kTiles[stop - row - 1](x + row * x_stride + begin * kPair<T>, x_stride, panel + begin * kPanel + at, steps,
                               sums + row * kPanel + at, begin == 0, next, num_lines);
        next += (steps + 3) / 4 * num_lines * kLineBytes;
      }
      row = stop;
    }
  }
  for (int v = 0; v < kVectors; v++) {
    int64_t left = num_outputs - v * kLanes;
    if (left <= 0) break;
    __mmask16 mask = first(left);
    __m512 offset = bias ? load(bias + v * kLanes, mask) : _mm512_setzero_ps();
    for (int64_t row = 0; row < rows; row++)
      store(y + row * y_stride + v * kLanes, _mm512_add_ps(load(sums + row * kPanel + v * kLanes), offset), mask);
  }
}

template <typename T, typename Out>
void linear(const T* x, int64_t x_stride, int64_t num_rows, const float* packed, int64_t num_inputs,
            int64_t num_outputs, const T* bias, Out* y, int64_t y_stride, int num_threads) {
  int64_t num_steps = num_inputs / kPair<T>;
  int64_t num_panels = (num_outputs + kPanel - 1) / kPanel;
  int64_t num_blocks = (num_rows + kBlockRows - 1) / kBlockRows;
  int64_t num_tasks = num_blocks * num_panels;
  std::atomic<int64_t> num_taken{0};
  num_threads = threads_for(num_rows * num_inputs * num_outputs, num_threads);
#pragma omp parallel num_threads(num_threads)
  {
    alignas(64) static thread_local float sums[kBlockRows * kPanel];
    auto take = [&] { return num_taken.fetch_add(1, std::memory_order_relaxed); };
    auto panel_of = [&](int64_t task) {
      return task < num_tasks ? packed + task % num_panels * num_steps * kPanel : nullptr;
    };
    int64_t task = take();
    while (task < num_tasks) {
      int64_t following = take();
      int64_t block = task / num_panels, output = task % num_panels * kPanel;
      int64_t row = num_rows * block / num_blocks, stop = num_rows * (block + 1) / num_blocks;
      panel_product<T, Out>(x + row * x_stride, x_stride, stop - row, panel_of(task), num_steps,
                            bias ? bias + output : nullptr, y + row * y_stride + output, y_stride,
                            num_outputs - output, sums, panel_of(following));
      task = following;
    }
  }
}

}  // namespace
}  // namespace nfold

extern "C" {

// weight [num_outputs, num_units] to packed [panel][unit][output of the panel], units of 4 bytes that are moved only,
// padded with zeros.
// `packed` begins with a cache line; its lines are written whole, past the cache.
void nfold_pack(const float* weight, int64_t num_units, int64_t num_outputs, float* packed, int num_threads) {
  using namespace nfold;
  int64_t num_panels = (num_outputs + kPanel - 1) / kPanel;
#pragma omp parallel for num_threads(num_threads)
  for (int64_t number = 0; number < num_panels; number++) {
    for (int v = 0; v < kVectors; v++) {
      int64_t output = number * kPanel + v * kLanes;
      for (int64_t k = 0; k < num_units; k += kLanes) {
        __mmask16 mask = first(num_units - k);
        __m512 block[kLanes];
        for (int i = 0; i < kLanes; i++)
          block[i] = load(weight + (output + i) * num_units + k, output + i < num_outputs ? mask : 0);
        transpose(block);
        float* to = packed + (number * num_units + k) * kPanel + v * kLanes;
        for (int i = 0; i < kLanes && k + i < num_units; i++) _mm512_stream_ps(to + i * kPanel, block[i]);
      }
    }
    _mm_sfence();
  }
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

#define NFOLD_LINEAR(name, In, Out)                                                                                 \
  void name(const In* x, int64_t x_stride, int64_t num_rows, const float* packed, int64_t num_inputs,               \
            int64_t num_outputs, const In* bias, Out* y, int64_t y_stride, int num_threads) {                       \
    nfold::linear(x, x_stride, num_rows, packed, num_inputs, num_outputs, bias, y, y_stride, num_threads);          \
  }

NFOLD_LINEAR(nfold_linear_float32, float, float)
#ifdef __AVX512BF16__
NFOLD_LINEAR(nfold_linear_bfloat16, nfold::bf16, nfold::bf16)
NFOLD_LINEAR(nfold_linear_bfloat16_float32, nfold::bf16, float)
#endif
}
