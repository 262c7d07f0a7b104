// grad_bias[c] = sum over batch and outputs i of grad_y[c][i].
#pragma once

#include "geometry.h"

namespace upscore {

// grad_y (batch, channels, plane), or with `last` (batch, plane, channels) -> grad_bias (channels). The order of
// additions does not depend on the threads.
template <typename T>
void bias_gradient(int threads, i64 batch, i64 channels, i64 plane, bool last, const T* grad_y, T* grad_bias);

}  // namespace upscore
