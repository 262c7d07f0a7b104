// The adjoint of layers with few output channels: its input has few channels, whose rows are read as they lie. Lanes
// run along the many output channels, terms along the kernel's rows, and no input is picked out of a strided row.
#pragma once

#include <memory>

#include "kernels/kernels.h"
#include "way.h"

namespace upscore {

// Null for any other layer.
template <typename T>
std::unique_ptr<Way<T>> narrow_adjoint(const Layer& layer, const Call& call, const Kernels<T>& kernels, const T* w,
                                       int threads);

}  // namespace upscore
