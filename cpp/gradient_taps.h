// The gradient of the weights as register-tiled products: lanes over the taps of the output channels, terms over
// positions. For few output channels, and for kernels of any size.
#pragma once

#include <memory>

#include "weight_gradient.h"

namespace upscore {

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_taps(const GradientInputs<T>& inputs);

}  // namespace upscore
