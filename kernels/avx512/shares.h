#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "simd.h"

namespace nfold {

// Tasks that threads take: each those of its share, one after the other, so that it reads on where it was, then what
// others have left.
class Shares {
 public:
  Shares(int64_t num_tasks, int num_threads)
      : num_tasks_(num_tasks), num_threads_(num_threads), shares_(new Share[num_threads]) {
    for (int64_t i = 0; i < num_threads; i++) {
      shares_[i].next.store(num_tasks * i / num_threads, std::memory_order_relaxed);
      shares_[i].stop = num_tasks * (i + 1) / num_threads;
    }
  }

  // `num_tasks` where none is left.
  int64_t take(int thread) {
    for (int i = 0; i < num_threads_; i++) {
      Share& share = shares_[(thread + i) % num_threads_];
      int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task < share.stop) return task;
    }
    return num_tasks_;
  }

 private:
  struct alignas(kLineBytes) Share {
    std::atomic<int64_t> next;
    int64_t stop;
  };

  int64_t num_tasks_;
  int num_threads_;
  std::unique_ptr<Share[]> shares_;
};

}  // namespace nfold
