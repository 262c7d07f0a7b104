// Memory that a thread keeps between tasks.
#pragma once

#include <cstddef>

#include "buffer.h"

namespace upscore {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { drop(); }
  void* get(std::size_t bytes) {
    if (bytes > bytes_) {
      drop();
      memory_ = acquire_buffer(bytes);
      bytes_ = bytes;
    }
    return memory_;
  }

 private:
  void drop() {
    if (memory_) release_buffer(memory_, bytes_);
    memory_ = nullptr;
    bytes_ = 0;
  }
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

// The calling thread's scratch; the next call on the same thread takes it back.
template <typename T>
T* scratch(std::size_t count) {
  thread_local Scratch mine;
  return static_cast<T*>(mine.get(count * sizeof(T)));
}

// An array that lives in large pages where it is large.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_) release_buffer(data_, size_ * sizeof(T));
  }
  void allocate(std::size_t size) {
    data_ = static_cast<T*>(acquire_buffer(size * sizeof(T)));
    size_ = size;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace upscore
