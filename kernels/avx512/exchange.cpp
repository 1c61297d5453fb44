// Collectives of the ranks of one host, through a file in memory that all of them map:
//
//   | mark | line of rank 0 | line of rank 1 | ... | turn 0: place of rank 0, place of rank 1, ... | turn 1: ... |
//
// Turns are numbered and use the two halves alternately. A rank writes to its place, arrives (its line then holds the
// turn's number), waits until the others have arrived, and reads their places. Nobody who has arrived at a turn still
// reads the one before, so a place may be written again once all have arrived at the turn between.
//
// A rank that waits spins, then yields, then sleeps (futex). Each rank holds a lock on its byte of the file, which the
// kernel drops when the process ends: so one that sleeps learns that the other is gone.
#include <fcntl.h>
#include <linux/futex.h>
#include <omp.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "simd.h"

namespace nfold {
namespace {

constexpr int kMaxRanks = 32;
constexpr int64_t kHeaderBytes = 4096;
constexpr int64_t kPlaceBytes = 512 << 10;
constexpr int kSpins = 2000;
constexpr int64_t kYieldNs = 100'000;
constexpr int64_t kSleepNs = 100'000'000;

struct alignas(64) Line {
  std::atomic<uint32_t> arrived;
  std::atomic<uint32_t> num_sleepers;
};

struct Lost {
  int status;
};

int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

struct flock lock_of(int rank, short type) {
  struct flock lock = {};
  lock.l_type = type, lock.l_whence = SEEK_SET, lock.l_start = rank, lock.l_len = 1;
  return lock;
}

struct Room {
  char* memory;
  int file, rank, size;
  int64_t timeout_ns;

  Line& line(int of) { return ((Line*)memory)[1 + of]; }
  char* place(uint32_t turn, int of) { return memory + kHeaderBytes + ((turn & 1) * size + of) * kPlaceBytes; }
  uint32_t next_turn() { return line(rank).arrived.load(std::memory_order_relaxed) + 1; }
  bool is_there(int other, uint32_t turn) { return (int32_t)(line(other).arrived.load() - turn) >= 0; }

  void arrive(uint32_t turn) {
    Line& own = line(rank);
    own.arrived.store(turn);
    if (own.num_sleepers.load()) syscall(SYS_futex, &own.arrived, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
  }

  void wait_for_all(uint32_t turn) {
    for (int other = 0; other < size; other++)
      if (other != rank) wait_for(other, turn);
  }

  void wait_for(int other, uint32_t turn) {
    for (int i = 0; i < kSpins; i++) {
      if (is_there(other, turn)) return;
      _mm_pause();
    }
    int64_t start = now_ns();
    while (now_ns() - start < kYieldNs) {
      if (is_there(other, turn)) return;
      sched_yield();
    }
    line(other).num_sleepers++;
    int status = sleep(other, turn, start + timeout_ns);
    line(other).num_sleepers--;
    if (status) throw Lost{status};
  }

  // 0, or what the library's functions return.
  int sleep(int other, uint32_t turn, int64_t deadline_ns) {
    const timespec longest = {0, kSleepNs};
    while (!is_there(other, turn)) {
      uint32_t seen = line(other).arrived.load();
      if ((int32_t)(seen - turn) >= 0) break;
      syscall(SYS_futex, &line(other).arrived, FUTEX_WAIT, seen, &longest, nullptr, 0);
      bool is_gone = !holds_lock(other);
      if (is_there(other, turn)) break;
      if (is_gone) return 1 + other;
      if (now_ns() > deadline_ns) return -1 - other;
    }
    return 0;
  }

  bool holds_lock(int other) {
    struct flock lock = lock_of(other, F_WRLCK);
    return fcntl(file, F_OFD_GETLK, &lock) || lock.l_type != F_UNLCK;
  }
};

// work(begin, end) for parts of `count` bytes, which are whole cache lines.
template <typename Work>
void share_out(int64_t count, int num_threads, Work work) {
  num_threads = threads_for(count, num_threads);
  int64_t part = ((count + num_threads - 1) / num_threads + 63) / 64 * 64;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1)
  for (int64_t begin = 0; begin < count; begin += part) work(begin, std::min(begin + part, count));
}

template <typename T, typename... Mask>
void add_lanes(const T* const* parts, int size, int64_t i, T* x, Mask... mask) {
  __m512 total = load(parts[0] + i, mask...);
  for (int of = 1; of < size; of++) total = _mm512_add_ps(total, load(parts[of] + i, mask...));
  store(x + i, total, mask...);
}

// x = the sum over ranks, added in the order of ranks in float32 and rounded once: the same bits on every rank.
template <typename T>
void sum(Room& room, T* x, int64_t num_elements, int num_threads) {
  constexpr int64_t kElements = kPlaceBytes / sizeof(T);
  for (; num_elements > 0; x += kElements, num_elements -= kElements) {
    uint32_t turn = room.next_turn();
    int64_t num_bytes = std::min(num_elements, kElements) * sizeof(T);
    room.wait_for_all(turn - 1);
    char* own = room.place(turn, room.rank);
    share_out(num_bytes, num_threads,
              [&](int64_t begin, int64_t end) { std::memcpy(own + begin, (char*)x + begin, end - begin); });
    room.arrive(turn);
    room.wait_for_all(turn);
    const T* parts[kMaxRanks];
    for (int of = 0; of < room.size; of++) parts[of] = of == room.rank ? x : (const T*)room.place(turn, of);
    share_out(num_bytes, num_threads, [&](int64_t begin, int64_t end) {
      int64_t i = begin / sizeof(T), stop = end / sizeof(T);
      for (; i + kLanes <= stop; i += kLanes) add_lanes(parts, room.size, i, x);
      if (i < stop) add_lanes(parts, room.size, i, x, first(stop - i));
    });
  }
}

// out = the ranks' rows of `row_bytes` side by side; `from` is a rank's rows from byte `begin` to `end`.
void put_rows(const char* from, int64_t begin, int64_t end, int64_t row_bytes, char* out, int rank, int size) {
  while (begin < end) {
    int64_t row = begin / row_bytes, column = begin % row_bytes;
    int64_t count = std::min(row_bytes - column, end - begin);
    std::memcpy(out + (row * size + rank) * row_bytes + column, from, count);
    from += count, begin += count;
  }
}

void gather(Room& room, const char* x, int64_t num_rows, int64_t row_bytes, char* out, int num_threads) {
  int64_t total = num_rows * row_bytes;
  for (int64_t done = 0; done < total; done += kPlaceBytes) {
    uint32_t turn = room.next_turn();
    int64_t num_bytes = std::min(total - done, kPlaceBytes);
    room.wait_for_all(turn - 1);
    char* own = room.place(turn, room.rank);
    share_out(num_bytes, num_threads,
              [&](int64_t begin, int64_t end) { std::memcpy(own + begin, x + done + begin, end - begin); });
    room.arrive(turn);
    room.wait_for_all(turn);
    for (int of = 0; of < room.size; of++) {
      const char* from = of == room.rank ? x + done : room.place(turn, of);
      share_out(num_bytes, num_threads, [&](int64_t begin, int64_t end) {
        put_rows(from + begin, done + begin, done + end, row_bytes, out, of, room.size);
      });
    }
  }
}

// Rank 0 may be one turn ahead of the others.
void broadcast(Room& room, char* x, int64_t num_bytes) {
  for (; num_bytes > 0; x += kPlaceBytes, num_bytes -= kPlaceBytes) {
    uint32_t turn = room.next_turn();
    int64_t count = std::min(num_bytes, kPlaceBytes);
    if (room.rank == 0) {
      room.wait_for_all(turn - 1);
      std::memcpy(room.place(turn, 0), x, count);
      room.arrive(turn);
    } else {
      room.arrive(turn);
      room.wait_for(0, turn);
      std::memcpy(x, room.place(turn, 0), count);
    }
  }
}

template <typename Work>
int status_of(Work work) {
  try {
    work();
  } catch (Lost lost) {
    return lost.status;
  }
  return 0;
}

}  // namespace
}  // namespace nfold

// The collectives return 0; 1 + the rank that is gone; or -1 - the rank that was silent for longer than the timeout.
extern "C" {

int64_t nfold_exchange_file_bytes(int size) {
  return size > nfold::kMaxRanks ? 0 : nfold::kHeaderBytes + 2 * size * nfold::kPlaceBytes;
}

// Take (or give back) the lock that says that the rank is there: 0, or -1.
int nfold_exchange_lock(int file, int rank, int is_there) {
  struct flock lock = nfold::lock_of(rank, is_there ? F_WRLCK : F_UNLCK);
  return fcntl(file, F_OFD_SETLK, &lock);
}

int nfold_exchange_sum_float32(char* memory, int file, int rank, int size, int64_t timeout_ns, float* x,
                               int64_t num_elements, int num_threads) {
  nfold::Room room{memory, file, rank, size, timeout_ns};
  return nfold::status_of([&] { nfold::sum(room, x, num_elements, num_threads); });
}

int nfold_exchange_sum_bfloat16(char* memory, int file, int rank, int size, int64_t timeout_ns, nfold::bf16* x,
                                int64_t num_elements, int num_threads) {
  nfold::Room room{memory, file, rank, size, timeout_ns};
  return nfold::status_of([&] { nfold::sum(room, x, num_elements, num_threads); });
}

int nfold_exchange_gather(char* memory, int file, int rank, int size, int64_t timeout_ns, const char* x,
                          int64_t num_rows, int64_t row_bytes, char* out, int num_threads) {
  nfold::Room room{memory, file, rank, size, timeout_ns};
  return nfold::status_of([&] { nfold::gather(room, x, num_rows, row_bytes, out, num_threads); });
}

int nfold_exchange_broadcast(char* memory, int file, int rank, int size, int64_t timeout_ns, char* x,
                             int64_t num_bytes) {
  nfold::Room room{memory, file, rank, size, timeout_ns};
  return nfold::status_of([&] { nfold::broadcast(room, x, num_bytes); });
}
}
