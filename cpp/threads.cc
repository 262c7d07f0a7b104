#include "threads.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace upscore {
namespace {

// That this process may use; asked once, by a thread that is not a worker.
int usable_cores() {
  static const int cores = [] {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    const unsigned n = std::thread::hardware_concurrency();
    return n ? static_cast<int>(n) : 1;
  }();
  return cores;
}

std::atomic<int> wanted{0};

constexpr int kLooks = 1000;  // some tens of microseconds

// How long a worker looks for the next call before it sleeps, and how long after a call others can count on that.
constexpr std::chrono::microseconds kAwake{200}, kRelied{150};
std::atomic<std::chrono::steady_clock::rep> ended{0};  // the last call

constexpr int kGlances = 32;  // between two looks at the clock

constexpr i64 kRuns = 4;  // of tasks in a share, if all were as long as the next one

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One call: its tasks. Each thread begins with a share of them, the same one in every call, so that it finds in its
// caches what it has left there, and none works next to another; then it helps others with theirs. Neighbours are taken
// together, fewer near the end.
class Job {
 public:
  Job(i64 count, int threads, const std::function<void(i64)>& task)
      : shares_(static_cast<std::size_t>(threads)), task_(task) {
    i64 first = 0, place = 0;
    for (Share& share : shares_) {
      share.next.store(first, std::memory_order_relaxed);
      ++place;
      share.end = first = count / threads * place + count % threads * place / threads;
    }
  }

  // What thread `index` of the call does; there may be more threads than shares.
  void take(int index) {
    const std::size_t own = static_cast<std::size_t>(index), count = shares_.size();
    try {
      for (std::size_t i = 0; i < count; ++i) take(shares_[(own + i) % count]);
    } catch (...) {
      for (Share& share : shares_) share.next.store(share.end, std::memory_order_relaxed);
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  struct alignas(64) Share {
    std::atomic<i64> next{0};
    i64 end = 0;
  };

  void take(Share& share) {
    for (i64 i = share.next.load(std::memory_order_relaxed); i < share.end;) {
      const i64 end = i + std::max<i64>(1, (share.end - i) / kRuns);
      if (!share.next.compare_exchange_weak(i, end, std::memory_order_acq_rel, std::memory_order_relaxed)) continue;
      for (; i < end; ++i) task_(i);
      i = share.next.load(std::memory_order_relaxed);
    }
  }

  std::vector<Share> shares_;
  const std::function<void(i64)>& task_;
  std::mutex mutex_;
  std::exception_ptr error_;
};

// The engine's own workers.
class Pool {
 public:
  void run(Job& job, int helpers) {
    std::lock_guard<std::mutex> turn(turn_);
    bool asleep;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_.size()) < helpers) {
        const int id = static_cast<int>(workers_.size());
        std::thread worker([this, id] { work(id); });
        workers_.push_back(worker.native_handle());
        worker.detach();
        avoided_ = -1;
      }
      leave_the_core_to_the_caller();
      job_ = &job;
      helpers_ = helpers;
      round_.fetch_add(1, std::memory_order_release);
      asleep = asleep_ > 0;
    }
    if (asleep) wake_.notify_all();
    job.take(0);
    // The helpers are about to finish too: looking a moment is quicker than to sleep and be woken.
    for (int i = 0; i < kLooks && running_.load(std::memory_order_acquire) != 0; ++i) relax();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // helpers that were not woken in time are not waited for
    done_.wait(lock, [this] { return running_.load(std::memory_order_acquire) == 0; });
  }

 private:
  // A worker that is woken for a call of less than a millisecond often starts on the core of the thread that woke it,
  // and waits there until that has done all the work: the system has not looked for an idle core by then.
  void leave_the_core_to_the_caller() {
    const int core = sched_getcpu();
    if (core < 0 || core == avoided_) return;
    avoided_ = core;
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) != 0) return;
    if (CPU_COUNT(&cores) > 1) CPU_CLR(static_cast<std::size_t>(core), &cores);
    for (const pthread_t worker : workers_) pthread_setaffinity_np(worker, sizeof cores, &cores);
  }

  // Until there is a call after the one seen last, or a while has passed.
  void look(std::uint64_t seen) const {
    const auto until = std::chrono::steady_clock::now() + kAwake;
    do {
      for (int i = 0; i < kGlances; ++i) {
        if (round_.load(std::memory_order_acquire) != seen) return;
        relax();
      }
    } while (std::chrono::steady_clock::now() < until);
  }

  void work(int id) {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      lock.unlock();
      if (id < cores_ - 1) look(seen);
      lock.lock();
      ++asleep_;
      wake_.wait(lock, [&] { return round_.load(std::memory_order_relaxed) != seen; });
      --asleep_;
      seen = round_.load(std::memory_order_relaxed);
      if (id >= helpers_ || !job_) continue;
      running_.fetch_add(1, std::memory_order_relaxed);
      Job* const job = job_;
      lock.unlock();
      job->take(id + 1);
      lock.lock();
      if (running_.fetch_sub(1, std::memory_order_release) == 1) done_.notify_one();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<pthread_t> workers_;
  int avoided_ = -1;  // the core that no worker may use
  Job* job_ = nullptr;
  std::atomic<int> running_{0};
  const int cores_ = usable_cores();
  int helpers_ = 0, asleep_ = 0;
  std::atomic<std::uint64_t> round_{0};
};

// Of an OpenMP runtime (GCC's, LLVM's and Intel's have them): fn(data) in each of a team of threads; which one this is.
struct OpenMP {
  void (*parallel)(void (*fn)(void*), void* data, unsigned threads, unsigned flags);
  int (*thread_number)();
};
std::atomic<const OpenMP*> openmp{nullptr};
std::atomic<bool> forked{false};

// Never destroyed: workers may still sleep on it when the process ends.
std::atomic<Pool*> pool{nullptr};

// A forked child starts a pool of its own, because no other thread exists there and locks may be held; an OpenMP
// runtime would wait for its lost threads for ever.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] {
  pool.store(nullptr);
  openmp.store(nullptr);
  forked.store(true);
});

Pool& the_pool() {
  Pool* p = pool.load();
  if (!p) {
    Pool* fresh = new Pool;
    if (pool.compare_exchange_strong(p, fresh)) return *fresh;
    delete fresh;
  }
  return *p;
}

// How often a library was loaded into this process.
std::uint64_t libraries_loaded() {
  std::uint64_t loads = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        *static_cast<std::uint64_t*>(data) = info->dlpi_adds;
        return 1;
      },
      &loads);
  return loads;
}

// The OpenMP runtime that torch uses, or null where torch is not loaded. Looked for again once a library was loaded.
const OpenMP* torch_threads() {
  static std::atomic<std::uint64_t> looked{0};
  if (const OpenMP* const found = openmp.load()) return found;
  if (forked.load()) return nullptr;
  const std::uint64_t loads = libraries_loaded();
  if (looked.exchange(loads) == loads) return nullptr;
  void* const torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (!torch) return nullptr;
  // Looked up from torch on, so that it is the runtime which torch uses, should there be several.
  static OpenMP found;
  found.parallel = reinterpret_cast<decltype(found.parallel)>(dlsym(torch, "GOMP_parallel"));
  found.thread_number = reinterpret_cast<decltype(found.thread_number)>(dlsym(torch, "omp_get_thread_num"));
  dlclose(torch);
  if (!found.parallel || !found.thread_number) return nullptr;
  openmp.store(&found);
  return &found;
}

}  // namespace

std::string say_threads(int count) { return std::to_string(count) + (count == 1 ? " thread" : " threads"); }

int thread_count() {
  const int n = wanted.load(std::memory_order_relaxed);
  return n > 0 ? n : usable_cores();
}

// All of torch's threads have to come to a call, and one that the system has put aside is waited for.
bool can_be_awake(int threads) { return threads > 1 && threads <= usable_cores() && !torch_threads(); }

Team team_of(int threads) {
  if (!can_be_awake(threads)) return {threads};
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  const std::chrono::steady_clock::duration last{ended.load(std::memory_order_relaxed)};
  return {threads, now - last < kRelied};
}

void end_call() { ended.store(std::chrono::steady_clock::now().time_since_epoch().count(), std::memory_order_relaxed); }

void set_thread_count(int count) { wanted.store(count, std::memory_order_relaxed); }

void parallel_for(i64 count, int threads, const std::function<void(i64)>& task) {
  if (threads <= 1 || count <= 1) {
    for (i64 i = 0; i < count; ++i) task(i);
    return;
  }
  Job job(count, static_cast<int>(std::min<i64>(threads, count)), task);
  if (const OpenMP* const openmp = torch_threads()) {
    struct Given {
      Job& job;
      const OpenMP& openmp;
    } given{job, *openmp};
    // All of the team, whatever the count: a runtime ends the threads that a smaller team leaves over.
    openmp->parallel(
        [](void* data) {
          const Given& all = *static_cast<Given*>(data);
          all.job.take(all.openmp.thread_number());
        },
        &given, static_cast<unsigned>(threads), 0);
  } else {
    the_pool().run(job, static_cast<int>(std::min<i64>(threads, count)) - 1);
  }
  job.rethrow();
}

}  // namespace upscore
