// Channels last by a matrix unit: rows of tiles are positions, which lie as the unit reads and writes them.
#pragma once

#include "kernels/kernels.h"
#include "schedule.h"

namespace upscore {

// With weights that are packed for tiles of positions; otherwise as execute does.
void execute_bf16_last(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
                       const Kernels<float>& kernels, const float* packed, const float* bias, const float* x, float* y);

}  // namespace upscore
