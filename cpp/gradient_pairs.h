// The gradient of the weights by a matrix unit whose terms are pairs of positions in different rows: the output's
// gradient, channels last, is multiplied as it lies, and nothing of a stride has to be picked apart; channels first it
// is turned before, row by row.
#pragma once

#include <memory>

#include "weight_gradient.h"

namespace upscore {

// Null without a matrix unit, for few channels, for large kernels and strides, and where there is one row of
// positions, but taps reach others.
template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_pairs(const GradientInputs<T>& inputs);

}  // namespace upscore
