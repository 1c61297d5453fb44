// The layout of packed weights (see panels.cpp).
#pragma once

#include "simd.h"

namespace nfold {

constexpr int kPanel = 64;
constexpr int kVectors = kPanel / kLanes;

}  // namespace nfold
