// Between channels first and channels last.
#pragma once

#include "kernels/kernels.h"
#include "scratch.h"

namespace upscore {

// dst (batch, columns, rows) = src (batch, rows, columns), both dense.
template <typename T>
void turn(const Kernels<T>& kernels, int threads, i64 batch, i64 rows, i64 columns, const T* src, T* dst);

// Of so many images, `from` (rows, columns) as (columns, rows), in `to` unless that is the same.
template <typename T>
const T* turned(const Kernels<T>& kernels, int threads, i64 batch, i64 rows, i64 columns, const T* from,
                Buffer<T>& to) {
  if (rows == 1 || columns == 1) return from;
  to.allocate(static_cast<std::size_t>(batch * rows * columns));
  turn(kernels, threads, batch, rows, columns, from, to.data());
  return to.data();
}

// to[row*plane + output] = from[output*pitch + row]; nothing at or after `end` is read.
template <typename T>
void turn_outputs(const Kernels<T>& kernels, const T* from, const T* end, i64 pitch, i64 outputs, i64 rows, T* to,
                  i64 plane);

}  // namespace upscore
