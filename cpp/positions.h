// By a matrix unit, in tiles whose rows are positions: channels last these lie as the unit reads and writes them;
// channels first they are turned, and still no tap reads, and no stride writes, across cache lines.
#pragma once

#include "kernels/kernels.h"
#include "schedule.h"

namespace upscore {

// With weights that are packed so; otherwise as execute does.
void execute_positions(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
                       const Kernels<float>& kernels, const float* packed, const float* bias, const float* x, float* y);

}  // namespace upscore
