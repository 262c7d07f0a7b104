// Running a schedule. All pointers are to dense channels-first arrays.
#pragma once

#include "kernels/kernels.h"
#include "schedule.h"

namespace upscore {

template <typename T>
Target target_of(const Kernels<T>& kernels);

// y (batch, groups*rows, *out) = layer(x (batch, groups*cols, *in)) + bias (groups*rows, or null).
template <typename T>
void execute(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
             const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y);

}  // namespace upscore
