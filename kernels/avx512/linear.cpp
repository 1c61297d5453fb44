// y = x W^T + bias, W in panels of 64 outputs (see panels.cpp). A thread takes a panel, K in blocks that stay in its
// L2 cache, and runs tiles of up to 6 rows x 64 outputs in registers: rows of x are broadcast, which costs time beside
// the products, so a tile is wide rather than high. While several tiles use a block the one that the thread takes next
// is fetched; where there is one tile, the thread reads on and on, and the processor fetches ahead by itself. An
// output is summed in the same order whatever the number of rows, so a row's result does not depend on the batch.
//
// Where a gate and what it gates share panels (see panels.cpp), y = silu(gate) * other, as if each product had been
// stored and read again.
//
// FP8 weights are multiplied as bfloat16, which is exact: the first tile, of up to 6 rows, widens what it reads, and
// where there are more tiles it leaves the block widened for them.
#include <omp.h>

#include <algorithm>
#include <array>
#include <utility>

#include "ahead.h"
#include "fp8.h"
#include "functions.h"
#include "panels.h"
#include "shares.h"

namespace nfold {
namespace {

constexpr int kTileRows = 6;
constexpr int64_t kBlockSteps = 1024;  // of 4 bytes of each output: a block of a panel is 256 KiB
constexpr int64_t kChunkSteps = 4;
constexpr int64_t kBlockRows = 96;

// As its own rounding: a compiler may join a plain product with the sum that follows.
inline __m512 times(__m512 a, __m512 b) {
  return _mm512_mul_round_ps(a, b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// A block of a panel as it is multiplied; it gives so many steps at once.
struct Wide {
  static constexpr int64_t kStepBytes = 4 * kPanel, kSteps = 1;
  const float* block;

  Wide(const char* packed, const uint8_t*, bool) : block((const float*)packed) {}
  explicit Wide(const float* block) : block(block) {}

  template <int num_rows>
  Wide steps_for(int64_t, int64_t) const {
    return *this;
  }
  void read(int64_t step, __m512 (&w)[kSteps][kVectors]) const {
    NFOLD_UNROLLED for (int v = 0; v < kVectors; v++) w[0][v] = load(block + step * kPanel + v * kLanes);
  }
  Wide for_other_tiles() const { return *this; }
  static Ahead::To fetched_to(int64_t num_tiles) {
    constexpr int64_t kManyTiles = 6;
    return num_tiles < kManyTiles ? Ahead::To::kL2ThenL1 : Ahead::To::kL1;
  }
};

#ifdef __AVX512VBMI__
// A block of FP8 numbers, two steps in each 4 lines.
struct Bytes {
  static constexpr int64_t kStepBytes = 2 * kPanel, kSteps = 2;
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
  Wide for_other_tiles() const { return Wide(wide); }
  static Ahead::To fetched_to(int64_t) { return Ahead::To::kL2; }

  static float* thread_memory() {
    alignas(64) static thread_local float memory[kBlockSteps * kPanel];
    return memory;
  }
};
#endif

// What FP8 numbers and their sums have besides; all null for other weights.
struct Fp8Scales {
  const uint8_t* table;  // see Fp8ToBf16
  const float* of_rows;
  const float* of_outputs;
};

// Where the sums of some rows and a panel go: behind the last block to y, before it to `sums` and on from there. Tiles
// share one, as to write a copy and to read it would wait for all results that are still on their way to memory.
template <typename Bias, typename Out>
struct Results {
  float* sums;  // [rows][kPanel]
  bool is_first, is_last;
  Fp8Scales scales;
  const Bias* bias;
  Out* y;
  int64_t y_stride, num_outputs;
  bool is_gated;
};

// R rows of x, the inputs of the block, times a panel's block: the results' rows from `row` on.
template <int R, typename T, typename Panel, typename Bias, typename Out>
void tile(const T* x, int64_t x_stride, const Panel& panel, int64_t num_steps, const Results<Bias, Out>& to,
          int64_t row, Ahead ahead) {
  float* sums = to.sums + row * kPanel;
  __m512 acc[R][kVectors];
  if (to.is_first) {
    NFOLD_UNROLLED for (int r = 0; r < R; r++)
      NFOLD_UNROLLED for (int v = 0; v < kVectors; v++) acc[r][v] = _mm512_setzero_ps();
  } else {
    NFOLD_UNROLLED for (int r = 0; r < R; r++)
      NFOLD_UNROLLED for (int v = 0; v < kVectors; v++) acc[r][v] = load(sums + r * kPanel + v * kLanes);
  }
  auto add_steps = [&](int64_t step, auto count) __attribute__((always_inline)) {
    const auto weights = panel.template steps_for<R>(step, step + count);
    constexpr int64_t kSteps = decltype(weights)::kSteps;
    NFOLD_UNROLLED for (int64_t k = 0; k < count; k += kSteps) {
      __m512 w[kSteps][kVectors];
      weights.read(step + k, w);
      NFOLD_UNROLLED for (int s = 0; s < kSteps; s++)
        NFOLD_UNROLLED for (int r = 0; r < R; r++)
          NFOLD_UNROLLED for (int v = 0; v < kVectors; v++)
            acc[r][v] = multiply_add(x + r * x_stride + (step + k + s) * kPair<T>, w[s][v], acc[r][v]);
    }
  };
  int64_t step = 0, due = 0;
  for (; step + kChunkSteps <= num_steps; step += kChunkSteps) {
    ahead.fetch(due);
    add_steps(step, std::integral_constant<int64_t, kChunkSteps>());
  }
  for (; step < num_steps; step += Panel::kSteps) add_steps(step, std::integral_constant<int64_t, Panel::kSteps>());
  if (!to.is_last) {
    NFOLD_UNROLLED for (int r = 0; r < R; r++)
      NFOLD_UNROLLED for (int v = 0; v < kVectors; v++) store(sums + r * kPanel + v * kLanes, acc[r][v]);
    return;
  }
  Out* y = to.y + row * to.y_stride;
  if (to.is_gated) {
    NFOLD_UNROLLED for (int v = 0; v < kVectors / 2; v++) {
      __mmask16 mask = first_if_any(to.num_outputs - v * kLanes);
      NFOLD_UNROLLED for (int r = 0; r < R; r++) {
        __m512 gate = rounded(acc[r][v], y), gated = rounded(acc[r][v + kVectors / 2], y);
        store(y + r * to.y_stride + v * kLanes, _mm512_mul_ps(silu(gate), gated), mask);
      }
    }
    return;
  }
  NFOLD_UNROLLED for (int v = 0; v < kVectors; v++) {
    __mmask16 mask = first_if_any(to.num_outputs - v * kLanes);
    __m512 offset = to.bias ? load(to.bias + v * kLanes, mask) : _mm512_set1_ps(-0.0f);
    if (to.scales.of_outputs) {
      __m512 scale = load(to.scales.of_outputs + v * kLanes, mask);
      NFOLD_UNROLLED for (int r = 0; r < R; r++)
        acc[r][v] = times(times(acc[r][v], _mm512_set1_ps(to.scales.of_rows[row + r])), scale);
    }
    NFOLD_UNROLLED for (int r = 0; r < R; r++)
      store(y + r * to.y_stride + v * kLanes, _mm512_add_ps(acc[r][v], offset), mask);
  }
}

template <typename T, typename Panel, typename Bias, typename Out>
using Tile = void (*)(const T*, int64_t, const Panel&, int64_t, const Results<Bias, Out>&, int64_t, Ahead);

// By rows - 1.
template <typename T, typename Panel, typename Bias, typename Out, int... R>
constexpr std::array<Tile<T, Panel, Bias, Out>, sizeof...(R)> tiles(std::integer_sequence<int, R...>) {
  return {tile<R + 1, T, Panel, Bias, Out>...};
}

template <typename T, typename Panel, typename Bias, typename Out>
void tile_of(int64_t rows, const T* x, int64_t x_stride, const Panel& panel, int64_t num_steps,
             const Results<Bias, Out>& to, int64_t row, Ahead ahead) {
  static constexpr auto kTiles = tiles<T, Panel, Bias, Out>(std::make_integer_sequence<int, kTileRows>());
  kTiles[rows - 1](x, x_stride, panel, num_steps, to, row, ahead);
}

// One panel for `rows` rows of x, while the block that comes next is fetched; `next_panel` may be none.
template <typename Panel, typename T, typename Bias, typename Out>
void panel_product(const T* x, int64_t x_stride, int64_t rows, const char* panel, int64_t num_steps,
                   Results<Bias, Out> to, const char* next_panel) {
  int64_t num_tiles = divide_up(rows, kTileRows), num_blocks = divide_up(num_steps, kBlockSteps);
  int64_t block_steps = divide_up(divide_up(num_steps, num_blocks), kChunkSteps) * kChunkSteps;
  for (int64_t begin = 0; begin < num_steps; begin += block_steps) {
    int64_t steps = std::min(block_steps, num_steps - begin);
    to.is_first = begin == 0;
    to.is_last = begin + steps == num_steps;
    const Panel block(panel + begin * Panel::kStepBytes, to.scales.table, num_tiles > 1);
    const char* next = to.is_last ? next_panel : panel + (begin + steps) * Panel::kStepBytes;
    int64_t num_lines = next && num_tiles > 1 ? steps * Panel::kStepBytes / kLineBytes : 0;
    int64_t num_chunks = std::max<int64_t>(1, steps / kChunkSteps) * num_tiles;
    Ahead ahead{next, divide_up(num_lines * Ahead::kLine, num_chunks), Panel::fetched_to(num_tiles)};
    auto run = [&](int64_t number, const auto& some) {
      int64_t row = rows * number / num_tiles, stop = rows * (number + 1) / num_tiles;
      ahead.at = next + num_lines * number / num_tiles * kLineBytes;
      tile_of(stop - row, x + row * x_stride + begin * kPair<T>, x_stride, some, steps, to, row, ahead);
    };
    run(0, block);
    for (int64_t number = 1; number < num_tiles; number++) run(number, block.for_other_tiles());
  }
}

template <typename Panel, typename T, typename Bias, typename Out>
void linear(const T* x, int64_t x_stride, int64_t num_rows, const char* packed, int64_t num_inputs,
            int64_t num_outputs, Fp8Scales scales, const Bias* bias, bool is_gated, Out* y, int64_t y_stride,
            const NextPanels* next, int num_threads) {
  int64_t num_steps = num_inputs / kPair<T>, width = is_gated ? kPanel / 2 : kPanel;
  int64_t num_panels = divide_up(num_outputs, width), num_blocks = divide_up(num_rows, kBlockRows);
  int64_t num_tasks = num_blocks * num_panels;
  num_threads = threads_for(num_rows * num_inputs * num_panels * kPanel, num_threads);
  Shares shares(num_tasks, num_threads);
#pragma omp parallel num_threads(num_threads)
  {
    alignas(64) static thread_local float sums[kBlockRows * kPanel];
    int thread = omp_get_thread_num();
    auto panel_of = [&](int64_t task) {
      if (task < num_tasks) return packed + task % num_panels * num_steps * Panel::kStepBytes;
      return next ? next->first_of(thread, num_threads) : nullptr;
    };
    int64_t task = shares.take(thread);
    while (task < num_tasks) {
      int64_t following = shares.take(thread);
      int64_t block = task / num_panels, output = task % num_panels * width;
      int64_t row = num_rows * block / num_blocks, stop = num_rows * (block + 1) / num_blocks;
      Fp8Scales some = scales;
      if (scales.of_outputs) some = {scales.table, scales.of_rows + row, scales.of_outputs + output};
      Results<Bias, Out> to{sums, true, true, some, bias ? bias + output : nullptr, y + row * y_stride + output,
                            y_stride, num_outputs - output, is_gated};
      panel_product<Panel>(x + row * x_stride, x_stride, stop - row, panel_of(task), num_steps, to,
                           panel_of(following));
      task = following;
    }
  }
}

}  // namespace
}  // namespace nfold

extern "C" {

#define NFOLD_LINEAR(name, In, Out)                                                                                 \
  void name(const In* x, int64_t x_stride, int64_t num_rows, const char* packed, int64_t num_inputs,                \
            int64_t num_outputs, const In* bias, int is_gated, Out* y, int64_t y_stride,                            \
            const nfold::NextPanels* next, int num_threads) {                                                       \
    nfold::linear<nfold::Wide>(x, x_stride, num_rows, packed, num_inputs, num_outputs, {}, bias, is_gated, y,       \
                               y_stride, next, num_threads);                                                        \
  }

// y = x W^T * x_scale [num_rows] * scale [num_outputs] + bias, each rounded to float32. Of x [num_rows, num_inputs] in
// bfloat16 rows are num_inputs long, a multiple of 4.
#define NFOLD_LINEAR_FP8(name, Out)                                                                                 \
  void name(const nfold::bf16* x, const float* x_scale, int64_t num_rows, const char* packed, const uint8_t* table, \
            const float* scale, int64_t num_inputs, int64_t num_outputs, const float* bias, Out* y,                 \
            int num_threads) {                                                                                      \
    nfold::linear<nfold::Bytes>(x, num_inputs, num_rows, packed, num_inputs, num_outputs, {table, x_scale, scale},  \
                                bias, false, y, num_outputs, nullptr, num_threads);                                 \
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
