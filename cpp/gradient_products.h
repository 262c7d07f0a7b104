// The gradient of the weights as register-tiled products: lanes over output channels, terms over positions.
#pragma once

#include <memory>

#include "weight_gradient.h"

namespace upscore {

// Null where few output channels would leave lanes empty or the kernel is too large.
template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_products(const GradientInputs<T>& inputs);

}  // namespace upscore
