#pragma once

#include "simd.h"

namespace nfold {

// What is fetched while a tile is computed. As measured on Zen 4: fetches to L2 are dropped when many are under way; for
// those to L1 the tile's own loads wait. So the one that drops none is better while there is time, and both, one after
// the other, where lines must come fast. Few are dropped of FP8 numbers, which are half as many.
struct Ahead {
  enum class To { kL1, kL2, kL2ThenL1 };
  static constexpr int64_t kLine = 1 << 16, kFarBytes = 16 << 10;

  const char* at;
  int64_t rate;  // lines with each chunk, in 1 / kLine
  To to;

  void fetch(int64_t& due) {
    for (due += rate; due >= kLine; due -= kLine, at += kLineBytes) {
      if (to == To::kL2) _mm_prefetch(at, _MM_HINT_T1);
      if (to == To::kL2ThenL1) _mm_prefetch(at + kFarBytes, _MM_HINT_T1);
      if (to != To::kL2) _mm_prefetch(at, _MM_HINT_T0);
    }
  }
};

}  // namespace nfold
