#include "choice.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "remembered.h"

namespace upscore {
namespace {

// What the matrix unit says that it takes is weighed so, where rows are positions.
constexpr double kPositionsSooner = 0.9;
// Times as long as it says takes minimal filtering, against that, channels first: with rows that are channels, and
// positions.
constexpr double kFilteredLonger = 1.1, kFilteredLongerPositions = 1.2;
// Cycles of an output that it takes longer to write, where phases alternate.
constexpr double kWritten = 0.8;
constexpr double kThreeAxesLonger = 1.1;
// So many times as long as it says takes the direct way, with weights of more bytes, for a single call.
constexpr double kFarWeightsLonger = 1.4;
constexpr i64 kFarWeights = 2 << 20;

bool writes_last(const Layer& layer, const Packing& packing) {
  return packing.by_phase || (!packing.fused && writes_together(layer));
}

bool packed_for_direct(const Packings& packings, const Call& call) {
  const Packing& packing = packings.direct;
  return packing.vectors ? call.reads_last == packings.last && call.writes_last == packings.last
                         : call.writes_last || !packing.by_phase;
}

// The way that is not direct, if it takes less time for an image.
Schedules fastest(const Layer& layer, const Target& target, const Packings& packings, const Call& call,
                  const Team& team) {
  Schedules plan;
  const bool filter = packings.minimal && (call.writes_last || !call.reads_last || !packings.minimal->last);
  if (!filter && !packings.fold && !packings.bf16 && !packings.positions) return plan;
  const Call image{1, call.in, call.out, call.lo, call.reads_last, call.writes_last};
  const bool last = call.reads_last;
  double limit = std::numeric_limits<double>::infinity(), far = 0;  // vectors of inputs of a group
  double wait_directly = 0;
  if (packings.method == Method::kFastest && packed_for_direct(packings, call)) {
    far = far_vectors(layer, image, target.lanes, target.number_bytes);
    wait_directly = far * (last ? Cycles::far_last : Cycles::far);
    limit = direct_cycles(layer, image, target) + wait_directly;
    if (packings.once && layer.rows * layer.cols * layer.taps() * target.number_bytes > kFarWeights)
      limit *= kFarWeightsLonger;
  }
  // The direct way takes longer than it says to write outputs whose phases alternate, to the caches.
  const double outputs = static_cast<double>(layer.rows * call.out[0]) * static_cast<double>(call.out[1] * call.out[2]);
  const bool alternate = layer.transposed && layer.stride[2] > 1 && !call.writes_last &&
                         outputs * target.number_bytes < static_cast<double>(Limits::stream_bytes);
  const bool pairs = packings.direct.fused && layer.stride[2] == 2;  // which are written straight from registers
  const double direct = limit;
  double most = limit + (alternate ? kWritten * outputs : 0);
  auto consider = [&](const Packing& packing, std::shared_ptr<const Schedule>& schedule) {
    const double images = layer.transposed ? 1 : static_cast<double>(call.batch);
    const double cycles =
        (packing.positions ? kPositionsSooner : 1) * plan_schedule(layer, image, packing, target, {}).cycles +
        bf16_packing(layer, packings, packing) / images + wait_directly;
    if (cycles >= (packing.few && pairs ? limit : most)) return;
    most = cycles;
    limit = std::min(limit, cycles);
    plan = {};
    schedule = std::make_shared<const Schedule>(plan_schedule(layer, call, packing, target, team));
  };
  if (packings.bf16 && !call.reads_last && !call.writes_last) consider(*packings.bf16, plan.bf16);
  if (packings.positions) consider(*packings.positions, plan.positions);
  const double wait = far * (last ? Cycles::far_filtered_last : Cycles::far_filtered);
  double longer = 1;
  if (most < direct) {  // not only because of the writing, which minimal filtering does as well
    if (plan.bf16) longer = kFilteredLonger;
    if (plan.positions && !last) longer = kFilteredLongerPositions;
    if (plan.positions && layer.kernel[0] > 1) longer *= kThreeAxesLonger;
  }
  if (filter)
    if (auto minimal = plan_minimal(layer, call, *packings.minimal, target, team, (limit - wait) / longer)) {
      limit = minimal->cycles + wait;
      plan = {};
      plan.minimal = std::make_shared<const MinimalSchedule>(std::move(*minimal));
    }
  if (packings.fold && (packings.method == Method::kFolded ||
                        worth_folding(layer, call, *packings.fold, target, limit, plan.minimal != nullptr)))
    if (auto fold = plan_fold(layer, call, *packings.fold, target, team)) {
      plan = {};
      plan.fold = std::make_shared<const FoldSchedule>(std::move(*fold));
    }
  return plan;
}

// What a schedule depends on.
struct Question {
  Layer layer;
  Target target;
  Method method;
  bool last, once, vectors, lanes, bf16, positions;
  Call call;
  Team team;
  bool operator==(const Question&) const = default;
};

}  // namespace

Packings plan_packings(const Layer& layer, const Target& target, Method method, bool last, bool once) {
  Packings packings{method, last, once, plan_packing(layer, target, last ? Order::kLast : Order::kAny), {}, {},
                    {},     {},   {}};
  const bool fastest = method == Method::kFastest;
  if (!packings.direct.vectors && !last && !once) packings.lanes = plan_packing(layer, target, Order::kVectors);
  if (!last && (fastest || method == Method::kBf16)) packings.bf16 = plan_bf16_packing(layer, target, false);
  if (fastest || method == Method::kPositions || (last && method == Method::kBf16))
    packings.positions = plan_bf16_packing(layer, target, true);
  if (once && fastest) return packings;  // for a single call weights are not transformed
  if (fastest || method == Method::kFiltered) packings.minimal = plan_minimal_packing(layer, target, last);
  if (fastest || method == Method::kFolded) packings.fold = plan_fold_packing(layer, target);
  return packings;
}

Schedules plan_call(const Layer& layer, const Target& target, const Packings& packings, const Call& call,
                    const Team& team) {
  const Question question{layer,
                          target,
                          packings.method,
                          packings.last,
                          packings.once,
                          packings.direct.vectors,
                          packings.lanes.has_value(),
                          packings.bf16.has_value(),
                          packings.positions.has_value(),
                          call,
                          team};
  return remembered(question, [&] {
    Schedules plan = fastest(layer, target, packings, call, team);
    if (!plan.minimal && !plan.fold && !plan.bf16 && !plan.positions)
      plan.direct =
          std::make_shared<const Schedule>(plan_direct(layer, call, packings.direct, packings.lanes, target, team));
    return plan;
  });
}

bool lies_as_it_can(const Layer& layer, const Target& target, const Packings& packings, const Call& call,
                    const Schedules& plan) {
  const bool reads = plan.bf16 ? false : !plan.minimal || packings.minimal->last || plan.minimal->line > 0;
  auto writes = [&] {
    if (plan.fold) return writes_last(layer, *packings.fold, *plan.fold, target);
    if (plan.minimal) return writes_last(layer, *packings.minimal, target);
    if (plan.bf16) return false;
    if (plan.positions) return true;
    return plan.direct->channel_lanes || writes_last(layer, packings.direct);
  };
  return (!call.reads_last || reads) && (!call.writes_last || writes());
}

bool packed_for(const Packings& packings, const Call& call, const Schedules& plan) {
  if (plan.fold) return true;
  if (plan.bf16 || plan.positions) return true;
  if (plan.minimal) return !packings.minimal->last || call.reads_last;
  return packed_for_direct(packings, call) && (!packings.direct.vectors || plan.direct->channel_lanes);
}

double bf16_packing(const Layer& layer, const Packings& packings, const Packing& packing) {
  constexpr double kPacked = 2;
  return packings.once ? kPacked * static_cast<double>(packing.per_column * layer.cols) : 0;
}

}  // namespace upscore
