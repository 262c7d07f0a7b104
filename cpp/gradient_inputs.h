// The gradient of the weights as register-tiled products: lanes over input channels, terms over positions; the
// output's gradient is broadcast from where it lies, whatever the stride. For input channels that fill vectors.
#pragma once

#include <memory>

#include "weight_gradient.h"

namespace upscore {

// Nothing where they do not, or where the gradient around a few positions is out of proportion.
template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_inputs(const GradientInputs<T>& inputs);

}  // namespace upscore
