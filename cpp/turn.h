// Between channels first and channels last.
#pragma once

#include "kernels/kernels.h"

namespace upscore {

// dst (batch, columns, rows) = src (batch, rows, columns), both dense.
template <typename T>
void turn(const Kernels<T>& kernels, int threads, i64 batch, i64 rows, i64 columns, const T* src, T* dst);

}  // namespace upscore
