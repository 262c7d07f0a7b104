// Which way a call is computed: the fastest of those that the layer's weights can be packed for.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "fold.h"
#include "minimal.h"
#include "schedule.h"

namespace upscore {

// How the weights are, or could be, packed for each way.
struct Packings {
  Method method = Method::kFastest;
  bool last = false;  // for calls channels last
  bool once = false;  // for a single call
  Packing direct;
  std::optional<Packing> lanes;      // for calls whose lanes run along channels, if packed for any number of calls
  std::optional<Packing> bf16;       // for calls channels first
  std::optional<Packing> positions;  // in bfloat16 parts, too
  std::optional<MinimalPacking> minimal;
  std::optional<FoldPacking> fold;
};
Packings plan_packings(const Layer& layer, const Target& target, Method method, bool last, bool once);

// One of them.
struct Schedules {
  std::shared_ptr<const Schedule> direct, bf16, positions;
  std::shared_ptr<const MinimalSchedule> minimal;
  std::shared_ptr<const FoldSchedule> fold;

  const std::string& why() const {
    if (fold) return fold->why;
    if (minimal) return minimal->why;
    return bf16 ? bf16->why : positions ? positions->why : direct->why;
  }
};

// The fastest; as found for a call like this one before, if there was one. Which way it is depends on an image's sizes,
// not on the threads, and not on the batch either, but for gradients: so neither changes the bits.
Schedules plan_call(const Layer& layer, const Target& target, const Packings& packings, const Call& call,
                    const Team& team);

// Whether a call that is computed so can lie as it does, with weights that are packed so.
bool lies_as_it_can(const Layer& layer, const Target& target, const Packings& packings, const Call& call,
                    const Schedules& plan);
bool packed_for(const Packings& packings, const Call& call, const Schedules& plan);

// Cycles to pack a group's weights in bfloat16 parts, if that is for a single call; more than in other ways.
double bf16_packing(const Layer& layer, const Packings& packings, const Packing& packing);

}  // namespace upscore
