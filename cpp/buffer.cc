#include "buffer.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

namespace upscore {
namespace {

constexpr std::size_t kKeepFrom = std::size_t{1} << 15;  // smaller ones malloc reuses by itself
constexpr std::size_t kHuge = std::size_t{2} << 20;
constexpr std::size_t kKept = std::size_t{256} << 20;  // at most this much is kept

std::size_t rounded(std::size_t bytes) {
  const std::size_t unit = bytes < kKeepFrom ? 64 : bytes < kHuge ? 4096 : kHuge;
  return (bytes + unit - 1) / unit * unit;
}

struct Kept {
  std::mutex mutex;
  std::multimap<std::size_t, void*> blocks;
  std::size_t bytes = 0;
};
// Never destroyed: arrays may outlive static destruction. Forks wait for its lock, so that children find it free.
Kept& kept() {
  static Kept* all = [] {
    pthread_atfork([] { kept().mutex.lock(); }, [] { kept().mutex.unlock(); }, [] { kept().mutex.unlock(); });
    return new Kept;
  }();
  return *all;
}

}  // namespace

void* acquire_buffer(std::size_t bytes) {
  const std::size_t size = rounded(bytes ? bytes : 1);
  if (size < bytes) throw std::bad_alloc();
  if (size >= kKeepFrom) {
    std::lock_guard<std::mutex> lock(kept().mutex);
    auto found = kept().blocks.find(size);
    if (found != kept().blocks.end()) {
      void* memory = found->second;
      kept().blocks.erase(found);
      kept().bytes -= size;
      return memory;
    }
  }
  void* memory = std::aligned_alloc(size >= kHuge ? kHuge : 64, size);
  if (!memory) throw std::bad_alloc();
  if (size >= kHuge) madvise(memory, size, MADV_HUGEPAGE);
  return memory;
}

void release_buffer(void* memory, std::size_t bytes) noexcept {
  const std::size_t size = rounded(bytes ? bytes : 1);
  if (size >= kKeepFrom) {
    try {
      std::lock_guard<std::mutex> lock(kept().mutex);
      if (kept().bytes + size <= kKept) {
        kept().blocks.emplace(size, memory);
        kept().bytes += size;
        return;
      }
    } catch (...) {  // no memory for the book-keeping: give the block back instead
    }
  }
  std::free(memory);
}

}  // namespace upscore
