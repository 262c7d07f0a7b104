#include "threads.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace upscore {
namespace {

int usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  const unsigned n = std::thread::hardware_concurrency();
  return n ? static_cast<int>(n) : 1;
}

std::atomic<int> wanted{0};

constexpr int kLooks = 1000;  // some tens of microseconds

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  void run(i64 count, int threads, const std::function<void(i64)>& task) {
    std::lock_guard<std::mutex> turn(turn_);
    const int helpers = threads - 1;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_.size()) < helpers) {
        const int id = static_cast<int>(workers_.size());
        workers_.emplace_back([this, id] { work(id); });
        workers_.back().detach();
      }
      task_ = &task;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      helpers_ = helpers;
      running_.store(helpers, std::memory_order_relaxed);
      error_ = nullptr;
      ++round_;
    }
    wake_.notify_all();
    take();
    // The helpers are about to finish too: looking a moment is quicker than to sleep and be woken.
    for (int i = 0; i < kLooks && running_.load(std::memory_order_acquire) != 0; ++i) relax();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_.load(std::memory_order_acquire) == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void take() {
    try {
      for (i64 i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) (*task_)(i);
    } catch (...) {
      next_.store(count_, std::memory_order_relaxed);
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  void work(int id) {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return round_ != seen; });
      seen = round_;
      if (id >= helpers_) continue;
      lock.unlock();
      take();
      lock.lock();
      if (running_.fetch_sub(1, std::memory_order_release) == 1) done_.notify_one();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  const std::function<void(i64)>* task_ = nullptr;
  i64 count_ = 0;
  std::atomic<i64> next_{0};
  std::atomic<int> running_{0};
  int helpers_ = 0;
  std::uint64_t round_ = 0;
  std::exception_ptr error_;
};

// Never destroyed: workers may still sleep on it when the process ends. A forked child gets a new one,
// because the parent's workers do not exist there and its locks may be held.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
  (void)registered;
  Pool* p = pool.load();
  if (!p) {
    Pool* fresh = new Pool;
    if (pool.compare_exchange_strong(p, fresh)) return *fresh;
    delete fresh;
  }
  return *p;
}

}  // namespace

int thread_count() {
  const int n = wanted.load(std::memory_order_relaxed);
  static const int cores = usable_cores();
  return n > 0 ? n : cores;
}

void set_thread_count(int count) { wanted.store(count, std::memory_order_relaxed); }

void parallel_for(i64 count, int threads, const std::function<void(i64)>& task) {
  if (count < threads) threads = static_cast<int>(count);
  if (threads <= 1) {
    for (i64 i = 0; i < count; ++i) task(i);
    return;
  }
  the_pool().run(count, threads, task);
}

}  // namespace upscore
