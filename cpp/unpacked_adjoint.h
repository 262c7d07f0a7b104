// The adjoint on few positions, with weights that are read once, as they lie: lanes run along positions, whose inputs
// are unfolded for every term (im2col), and a row of weights, all terms of an output channel, is broadcast.
#pragma once

#include <memory>

#include "kernels/kernels.h"
#include "way.h"

namespace upscore {

// For calls with as many positions as this one; null for any other layer. The weights are read when it is executed.
template <typename T>
std::unique_ptr<Way<T>> unpacked_adjoint(const Layer& layer, const Call& call, const Kernels<T>& kernels, const T* w);

}  // namespace upscore
