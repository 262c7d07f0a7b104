#include "buffer.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <iterator>
#include <list>
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

struct Block {
  std::size_t size;
  void* memory;
};
// What was released last is kept; for it, what has not been wanted for longest is given back.
struct Kept {
  std::mutex mutex;
  std::list<Block> blocks;  // released last, first
  std::multimap<std::size_t, std::list<Block>::iterator> by_size;
  std::size_t bytes = 0;

  // Of this size, what was released last: the caches may still hold it.
  void* take(std::size_t size) {
    const auto [first, end] = by_size.equal_range(size);
    if (first == end) return nullptr;
    const auto found = std::prev(end);
    void* const memory = found->second->memory;
    blocks.erase(found->second);
    by_size.erase(found);
    bytes -= size;
    return memory;
  }

  // What is given back is moved to `old`.
  void put(Block block, std::list<Block>& old) {
    std::list<Block> one{block};
    by_size.emplace(block.size, one.begin());
    blocks.splice(blocks.begin(), one);
    bytes += block.size;
    while (bytes > kKept) {
      const auto last = std::prev(blocks.end());
      auto [at, end] = by_size.equal_range(last->size);
      while (at != end && at->second != last) ++at;
      by_size.erase(at);
      bytes -= last->size;
      old.splice(old.end(), blocks, last);
    }
  }
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
    if (void* memory = kept().take(size)) return memory;
  }
  void* memory = std::aligned_alloc(size >= kHuge ? kHuge : 64, size);
  if (!memory) throw std::bad_alloc();
  if (size >= kHuge) madvise(memory, size, MADV_HUGEPAGE);
  return memory;
}

void release_buffer(void* memory, std::size_t bytes) noexcept {
  const std::size_t size = rounded(bytes ? bytes : 1);
  std::list<Block> old;
  bool keep = size >= kKeepFrom && size <= kKept;
  if (keep) {
    try {
      std::lock_guard<std::mutex> lock(kept().mutex);
      kept().put({size, memory}, old);
    } catch (...) {  // no memory for the book-keeping: give the block back instead
      keep = false;
    }
  }
  if (!keep) std::free(memory);
  for (const Block& block : old) std::free(block.memory);
}

}  // namespace upscore
