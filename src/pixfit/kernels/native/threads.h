// Threads that share one piece of work and meet at its end, and how they count.

#ifndef PIXFIT_THREADS_H
#define PIXFIT_THREADS_H

#include <stdint.h>

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace {

// While it lives, this thread and those that it starts take numbers below the smallest normal one for 0. Gaussians and
// old moments make many of them, and a processor takes a hundred times as long over each.
class Flush {
 public:
#if defined(__SSE2__)
  Flush() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~Flush() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  Flush() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    __asm__ volatile("msr fpcr, %0" ::"r"(before_ | (1 << 24)));
  }
  ~Flush() { __asm__ volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  uint64_t before_;
#else
  Flush() {}
#endif
  Flush(const Flush &) = delete;
  Flush &operator=(const Flush &) = delete;
};

// Runs work(thread, threads) on as many threads as the system gives, up to `most`, this one among them.
template <typename Work>
inline void side_by_side(int64_t most, Work work) {
  std::atomic<int64_t> size{0};
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(most));
  auto begin = [&](int64_t thread) {
    int64_t threads;
    while (!(threads = size.load(std::memory_order_acquire))) std::this_thread::yield();
    work(thread, threads);
  };
  try {
    for (int64_t thread = 1; thread < most; thread++) others.emplace_back(begin, thread);
  } catch (const std::system_error &) {  // then fewer do it: numbers do not depend on how many
  }
  size.store(static_cast<int64_t>(others.size()) + 1, std::memory_order_release);
  work(0, static_cast<int64_t>(others.size()) + 1);
  for (auto &other : others) other.join();
}

}  // namespace
#endif
