// The gradient of the weights as register-tiled products: lanes over output channels, terms over positions.
#pragma once

#include <memory>

#include "weight_gradient.h"

namespace upscore {

// Null where the kernel is too large.
template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_channels(const GradientInputs<T>& inputs);

}  // namespace upscore
