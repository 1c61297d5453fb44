// y = x W^T + bias, W in panels of 64 outputs (see panels.cpp). A thread takes a panel, K in blocks that stay in its
// L2 cache, and runs tiles in registers: up to 6 rows x 64 outputs, or up to 10 x 32, which bring less from L2 for
// each product. While a block is used the one that the thread takes next is prefetched. An output is summed in the
// same order whatever the number of rows, so a row's result does not depend on the batch.
//
// FP8 weights are multiplied as bfloat16, which is exact: the first tile, of up to 6 rows, widens what it reads, and
// where there are more tiles it leaves the block widened for them.
#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

#include "fp8.h"
#include "panels.h"

namespace nfold {
namespace {

constexpr int kWideRows = 6;  // up to which a tile is as wide as a panel
constexpr int kTileRows = 10;
constexpr int64_t kBlockSteps = 1024;  // of 4 bytes of each output: a block of a panel is 256 KiB
constexpr int64_t kChunkSteps = 4;
constexpr int64_t kBlockRows = 100;

// As its own rounding: a compiler may join a plain product with the sum that follows.
inline __m512 times(__m512 a, __m512 b) {
  return _mm512_mul_round_ps(a, b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// A block of a panel as it is multiplied; it gives so many steps at once.
struct Wide {
  static constexpr int64_t kStepBytes = 4 * kPanel, kSteps = 1;
  static constexpr int kMostRows = kTileRows;
  const float* block;

  Wide(const char* packed, const uint8_t*, bool) : block((const float*)packed) {}
  explicit Wide(const float* block) : block(block) {}

  template <int num_rows>
  Wide steps_for(int64_t, int64_t) const {
    return *this;
  }
  template <int V>
  void read(int64_t step, __m512 (&w)[kSteps][V]) const {
    for (int v = 0; v < V; v++) w[0][v] = load(block + step * kPanel + v * kLanes);
  }
  Wide from(int64_t output) const { return Wide(block + output); }
  Wide for_other_tiles() const { return *this; }
};

#ifdef __AVX512VBMI__
// A block of FP8 numbers, two steps in each 4 lines.
struct Bytes {
  static constexpr int64_t kStepBytes = 2 * kPanel, kSteps = 2;
  static constexpr int kMostRows = kWideRows;
  const char* block;
  const uint8_t* table;
  float* wide;
  bool has_other_tiles;

  Bytes(const char* packed, const uint8_t* table, bool has_other_tiles)
      : block(packed), table(table), wide(thread_memory()), has_other_tiles(has_other_tiles) {}

  // Steps from `step` up to `stop`. Beside the sums of more than two rows what is widened finds no place in registers.
  template <int num_rows>
  auto steps_for(int64_t step, int64_t stop) const {
    if constexpr (num_rows <= 2) {
      return *this;
    } else {
      const Fp8ToBf16 to_bf16(table);
      float* to = has_other_tiles ? wide : wide - step * kPanel;  // a place for each chunk, or one for all
      for (int64_t k = step; k < stop; k += kSteps)
        for (int v = 0; v < kVectors; v++) {
          __m512 first, second;
          widen(to_bf16, k, v, first, second);
          store(to + k * kPanel + v * kLanes, first);
          store(to + (k + 1) * kPanel + v * kLanes, second);
        }
      return Wide(to);
    }
  }
  void read(int64_t step, __m512 (&w)[kSteps][kVectors]) const {
    const Fp8ToBf16 to_bf16(table);
    for (int v = 0; v < kVectors; v++) widen(to_bf16, step, v, w[0][v], w[1][v]);
  }
  void widen(const Fp8ToBf16& to_bf16, int64_t step, int v, __m512& first, __m512& second) const {
    to_bf16.widen(_mm512_loadu_si512(block + step * kStepBytes + v * kLineBytes), first, second);
  }
  Bytes from(int64_t) const { return *this; }
  Wide for_other_tiles() const { return Wide(wide); }

  static float* thread_memory() {
    alignas(64) static thread_local float memory[kBlockSteps * kPanel];
    return memory;
  }
};
#endif

// sums[R][V * 16] (+)= x[R][inputs of the block] * V vectors of a panel's block.
template <int R, int V, typename T, typename Panel>
void tile(const T* x, int64_t x_stride, const Panel& panel, int64_t num_steps, float* sums, bool is_first,
          const char* next, int num_lines) {
  __m512 acc[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = is_first ? _mm512_setzero_ps() : load(sums + r * kPanel + v * kLanes);
  for (int64_t step = 0; step < num_steps; step += kChunkSteps) {
    for (int line = 0; line < num_lines; line++) _mm_prefetch(next + line * kLineBytes, _MM_HINT_T1);
    next += num_lines * kLineBytes;
    int64_t stop = std::min(step + kChunkSteps, num_steps);
    const auto weights = panel.template steps_for<R>(step, stop);
    constexpr int64_t kSteps = decltype(weights)::kSteps;
    for (int64_t k = step; k < stop; k += kSteps) {
      __m512 w[kSteps][V];
      weights.read(k, w);
      for (int s = 0; s < kSteps; s++)
        for (int r = 0; r < R; r++)
          for (int v = 0; v < V; v++)
            acc[r][v] = multiply_add(x + r * x_stride + (k + s) * kPair<T>, w[s][v], acc[r][v]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(sums + r * kPanel + v * kLanes, acc[r][v]);
}

template <typename T, typename Panel>
using Tile = void (*)(const T*, int64_t, const Panel&, int64_t, float*, bool, const char*, int);

// By rows - 1.
template <typename T, typename Panel, int... R>
constexpr std::array<Tile<T, Panel>, sizeof...(R)> tiles(std::integer_sequence<int, R...>) {
  return {tile<R + 1, (R < kWideRows ? kVectors : kVectors / 2), T, Panel>...};
}

// All outputs of a panel for some rows.
template <typename T, typename Panel>
void tiles_of(int64_t rows, const T* x, int64_t x_stride, const Panel& panel, int64_t num_steps, float* sums,
              bool is_first, const char*& next, int num_lines) {
  static constexpr auto kTiles = tiles<T, Panel>(std::make_integer_sequence<int, Panel::kMostRows>());
  for (int64_t output = 0; output < kPanel; output += rows <= kWideRows ? kPanel : kPanel / 2) {
    kTiles[rows - 1](x, x_stride, panel.from(output), num_steps, sums + output, is_first, next, num_lines);
    next += (num_steps + kChunkSteps - 1) / kChunkSteps * num_lines * kLineBytes;
  }
}

// What FP8 numbers and their sums have besides; all null for other weights.
struct Fp8Scales {
  const uint8_t* table;  // see Fp8ToBf16
  const float* of_rows;
  const float* of_outputs;
};

// One panel for `rows` rows of x, while the block that comes next is fetched; `next_panel` may be none.
template <typename Panel, typename T, typename Bias, typename Out>
void panel_product(const T* x, int64_t x_stride, int64_t rows, const char* panel, int64_t num_steps,
                   const Fp8Scales& scales, const Bias* bias, Out* y, int64_t y_stride, int64_t num_outputs,
                   float* sums, const char* next_panel) {
  constexpr int64_t kLines = kChunkSteps * Panel::kStepBytes / kLineBytes;
  int64_t first_rows = rows <= kWideRows ? rows : Panel::kMostRows < kTileRows ? Panel::kMostRows : 0;
  int64_t num_tiles = (rows - first_rows + kTileRows - 1) / kTileRows, num_calls = (first_rows > 0) + 2 * num_tiles;
  for (int64_t begin = 0; begin < num_steps; begin += kBlockSteps) {
    int64_t steps = std::min(kBlockSteps, num_steps - begin);
    const Panel block(panel + begin * Panel::kStepBytes, scales.table, num_tiles > 0);
    const char* next = begin + steps < num_steps ? panel + (begin + steps) * Panel::kStepBytes : next_panel;
    int num_lines = next ? (int)((kLines + num_calls - 1) / num_calls) : 0;
    auto run = [&](int64_t row, int64_t stop, const auto& some) {
      if (row < stop)
        tiles_of(stop - row, x + row * x_stride + begin * kPair<T>, x_stride, some, steps, sums + row * kPanel,
                 begin == 0, next, num_lines);
    };
    run(0, first_rows, block);
    for (int64_t number = 0; number < num_tiles; number++)
      run(first_rows + (rows - first_rows) * number / num_tiles,
          first_rows + (rows - first_rows) * (number + 1) / num_tiles, block.for_other_tiles());
  }
  for (int v = 0; v < kVectors; v++) {
    int64_t left = num_outputs - v * kLanes;
    if (left <= 0) break;
    __mmask16 mask = first(left);
    __m512 offset = bias ? load(bias + v * kLanes, mask) : _mm512_set1_ps(-0.0f);
    __m512 scale = scales.of_outputs ? load(scales.of_outputs + v * kLanes, mask) : _mm512_setzero_ps();
    for (int64_t row = 0; row < rows; row++) {
      __m512 sum = load(sums + row * kPanel + v * kLanes);
      if (scales.of_outputs) sum = times(times(sum, _mm512_set1_ps(scales.of_rows[row])), scale);
      store(y + row * y_stride + v * kLanes, _mm512_add_ps(sum, offset), mask);
    }
  }
}

template <typename Panel, typename T, typename Bias, typename Out>
void linear(const T* x, int64_t x_stride, int64_t num_rows, const char* packed, int64_t num_inputs,
            int64_t num_outputs, Fp8Scales scales, const Bias* bias, Out* y, int64_t y_stride, int num_threads) {
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
      return task < num_tasks ? packed + task % num_panels * num_steps * Panel::kStepBytes : nullptr;
    };
    int64_t task = take();
    while (task < num_tasks) {
      int64_t following = take();
      int64_t block = task / num_panels, output = task % num_panels * kPanel;
      int64_t row = num_rows * block / num_blocks, stop = num_rows * (block + 1) / num_blocks;
      Fp8Scales some = scales;
      if (scales.of_outputs) some = {scales.table, scales.of_rows + row, scales.of_outputs + output};
      panel_product<Panel>(x + row * x_stride, x_stride, stop - row, panel_of(task), num_steps, some,
                           bias ? bias + output : nullptr, y + row * y_stride + output, y_stride,
                           num_outputs - output, sums, panel_of(following));
      task = following;
    }
  }
}

}  // namespace
}  // namespace nfold

extern "C" {

#define NFOLD_LINEAR(name, In, Out)                                                                                 \
  void name(const In* x, int64_t x_stride, int64_t num_rows, const char* packed, int64_t num_inputs,                \
            int64_t num_outputs, const In* bias, Out* y, int64_t y_stride, int num_threads) {                       \
    nfold::linear<nfold::Wide>(x, x_stride, num_rows, packed, num_inputs, num_outputs, {}, bias, y, y_stride,       \
                               num_threads);                                                                        \
  }

// y = x W^T * x_scale [num_rows] * scale [num_outputs] + bias, each rounded to float32. Of x [num_rows, num_inputs] in
// bfloat16 rows are num_inputs long, a multiple of 4.
#define NFOLD_LINEAR_FP8(name, Out)                                                                                 \
  void name(const nfold::bf16* x, const float* x_scale, int64_t num_rows, const char* packed, const uint8_t* table, \
            const float* scale, int64_t num_inputs, int64_t num_outputs, const float* bias, Out* y,                 \
            int num_threads) {                                                                                      \
    nfold::linear<nfold::Bytes>(x, num_inputs, num_rows, packed, num_inputs, num_outputs, {table, x_scale, scale},  \
                                bias, y, num_outputs, num_threads);                                                 \
  }

NFOLD_LINEAR(nfold_linear_float32, float, float)
#ifdef __AVX512BF16__
NFOLD_LINEAR(nfold_linear_bfloat16, nfold::bf16, nfold::bf16)
NFOLD_LINEAR(nfold_linear_bfloat16_float32, nfold::bf16, float)
#ifdef __AVX512VBMI__
NFOLD_LINEAR_FP8(nfold_linear_fp8_bfloat16, nfold::bf16)
NFOLD_LINEAR_FP8(nfold_linear_fp8_float32, float)
#endif
#endif
}
