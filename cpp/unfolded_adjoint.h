// The adjoint of layers with few output channels by the matrix unit: the terms of a product are the taps of all of its
// input's channels, each a line of inputs at a shift, once every stride has been picked out of a row.
#pragma once

#include <memory>

#include "kernels/kernels.h"
#include "way.h"

namespace upscore {

// Null for any other layer, and where that takes longer; with `last`, for calls channels last.
template <typename T>
std::unique_ptr<Way<T>> unfolded_adjoint(const Layer& layer, const Call& call, const Kernels<T>& kernels, const T* w,
                                         int threads, bool last);

}  // namespace upscore
