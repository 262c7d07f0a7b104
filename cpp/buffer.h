// Memory for outputs: large blocks are kept when an array is dropped and handed out again, so that their
// pages are already there.
#pragma once

#include <cstddef>

namespace upscore {

// At least `bytes` bytes, aligned to 64. Throws std::bad_alloc.
void* acquire_buffer(std::size_t bytes);
void release_buffer(void* memory, std::size_t bytes) noexcept;

}  // namespace upscore
