// Calls whose lanes run along output channels: on small maps, such as the first layers of generators, few positions
// leave none empty, the weights are read once, and taps that fall outside of the input are not multiplied; and with a
// stride between what neighbours read, no inputs are picked out.
#pragma once

#include <optional>
#include <string>

#include "kernels/kernels.h"
#include "schedule.h"

namespace upscore {

// Cuts a call into tasks, `tasks` of them if there are so many. Nothing where the layer's packing or the sizes do not
// allow it. `schedule` has its axes, phases and reductions.
std::optional<ChannelLanes> plan_channel_lanes(const Layer& layer, const Call& call, const Packing& packing,
                                               const Target& target, const Schedule& schedule, i64 tasks);

// In words, how a schedule that has them runs.
std::string explain_channel_lanes(const Layer& layer, const Target& target, const Schedule& schedule);

// The same bits as without it.
template <typename T>
void execute_channel_lanes(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
                           const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y);

}  // namespace upscore
