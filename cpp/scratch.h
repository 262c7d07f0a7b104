// Memory that a thread keeps between tasks, aligned to cache lines.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace upscore {

class Scratch {
 public:
  ~Scratch() { std::free(memory_); }
  void* get(std::size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      memory_ = nullptr;
      size_ = 0;
      const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
      memory_ = std::aligned_alloc(4096, rounded);
      if (!memory_) throw std::bad_alloc();
      size_ = rounded;
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  std::size_t size_ = 0;
};

// The calling thread's scratch; the next call on the same thread takes it back.
template <typename T>
T* scratch(std::size_t count) {
  thread_local Scratch mine;
  return static_cast<T*>(mine.get(count * sizeof(T)));
}

}  // namespace upscore
