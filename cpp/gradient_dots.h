// The gradient of the weights as dot products along positions: for few output channels, where lanes over
// channels would stay empty, and for kernels too large to keep all their taps at hand.
#pragma once

#include <memory>

#include "weight_gradient.h"

namespace upscore {

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_dots(const GradientInputs<T>& inputs);

}  // namespace upscore
