// The adjoint of layers whose channels do not mix: lanes run along the kernel's rows where these fill vectors, so that
// inputs are read as they lie, whatever the stride; elsewhere along positions, or channels last along the channels.
#pragma once

#include <memory>

#include "kernels/kernels.h"
#include "way.h"

namespace upscore {

// Null for any other layer. For calls channels last alone, if `last` and channels and taps are such.
template <typename T>
std::unique_ptr<Way<T>> channelwise_adjoint(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last);

}  // namespace upscore
