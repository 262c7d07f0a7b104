#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <sstream>

#include "channel_lanes.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kMostOutputs = 4096;    // positions of an image
constexpr i64 kMostPairs = 1 << 17;   // of an output and a tap
constexpr i64 kFarWeights = 4 << 20;  // bytes that come from memory
constexpr i64 kTasksOfThread = 4;     // that are asked for
constexpr i64 kMostApart = 8;         // positions of one vector: more addresses do not fit registers

// Where the taps of one output position of one axis read, if inside.
struct Reads {
  i64 phase, taps;  // taps: all of the phase's
  std::vector<i64> tap, input;
};

std::vector<Reads> reads_of(const AxisPlan& axis) {
  std::vector<Reads> all;
  for (i64 y = 0; y < axis.out; ++y) {
    Reads reads{y % axis.out_step, 0, {}, {}};
    const AxisPhase& phase = axis.phases[static_cast<std::size_t>(reads.phase)];
    reads.taps = static_cast<i64>(phase.offset.size());
    for (i64 t = 0; t < reads.taps; ++t) {
      const i64 input = y / axis.out_step * axis.in_step + phase.offset[static_cast<std::size_t>(t)];
      if (input < 0 || input >= axis.in) continue;
      reads.tap.push_back(t);
      reads.input.push_back(input);
    }
    all.push_back(std::move(reads));
  }
  return all;
}

// Per phase, the outputs that use the same taps.
std::vector<std::vector<ChannelLanes::Group>> group_outputs(const AxisPlan* axis, std::size_t phases) {
  std::vector<std::map<std::vector<i64>, ChannelLanes::Group>> by_taps(phases);
  i64 output = 0;
  const std::vector<Reads> deep = reads_of(axis[0]), down = reads_of(axis[1]), across = reads_of(axis[2]);
  for (const Reads& z : deep)
    for (const Reads& y : down)
      for (const Reads& x : across) {
        std::vector<i64> taps, inputs;
        for (std::size_t iz = 0; iz < z.tap.size(); ++iz)
          for (std::size_t iy = 0; iy < y.tap.size(); ++iy)
            for (std::size_t ix = 0; ix < x.tap.size(); ++ix) {
              taps.push_back((z.tap[iz] * y.taps + y.tap[iy]) * x.taps + x.tap[ix]);
              inputs.push_back((z.input[iz] * axis[1].in + y.input[iy]) * axis[2].in + x.input[ix]);
            }
        const i64 phase = (z.phase * axis[1].out_step + y.phase) * axis[2].out_step + x.phase;
        ChannelLanes::Group& group = by_taps[static_cast<std::size_t>(phase)][taps];
        group.taps = std::move(taps);
        group.outputs.push_back(output++);
        group.inputs.insert(group.inputs.end(), inputs.begin(), inputs.end());
      }
  std::vector<std::vector<ChannelLanes::Group>> groups(phases);
  for (std::size_t i = 0; i < phases; ++i)
    for (auto& [taps, group] : by_taps[i]) groups[i].push_back(std::move(group));
  return groups;
}

// One group of all: the taps that some of them use; where others read outside, they read the input `zero`.
ChannelLanes::Group merge(const std::vector<ChannelLanes::Group>& groups, i64 zero) {
  std::set<i64> used;
  for (const ChannelLanes::Group& group : groups) used.insert(group.taps.begin(), group.taps.end());
  ChannelLanes::Group all;
  all.taps.assign(used.begin(), used.end());
  for (const ChannelLanes::Group& group : groups)
    for (std::size_t o = 0; o < group.outputs.size(); ++o) {
      all.outputs.push_back(group.outputs[o]);
      auto input = group.inputs.begin() + static_cast<std::ptrdiff_t>(o * group.taps.size());
      for (i64 tap : all.taps)
        all.inputs.push_back(std::binary_search(group.taps.begin(), group.taps.end(), tap) ? *input++ : zero);
    }
  return all;
}

// All outputs read the same inputs, at shifts: what the first one reads and the shifts are enough.
void make_regular(ChannelLanes::Group& group) {
  const std::size_t taps = group.taps.size();
  for (std::size_t o = 0; o < group.outputs.size(); ++o)
    group.shift.push_back(taps ? group.inputs[o * taps] - group.inputs[0] : 0);
  group.inputs.resize(taps);
}

// Vectors of channels that are computed together, of so many rows.
i64 row_vectors(i64 rows, i64 lanes) { return piece(rows / lanes, kMaxRowVectors); }

// Cycles for so many outputs with so many taps, of all the columns and a vector of channels. Register tiles of
// `vectors` by `positions` take two loads or two products a cycle, wait for additions if they have few, and for weights
// from the second-level cache.
double cycles(const Packing& packing, i64 columns, i64 outputs, i64 taps, i64 positions, i64 vectors) {
  constexpr double kLatency = 4, kWait = 1.5, kCall = 40;
  const i64 most = piece(outputs, positions);
  const double p = static_cast<double>(most), v = static_cast<double>(vectors);
  const double tap = std::max({0.5 * p * v, 0.5 * (p + v), kLatency}) + kWait;
  const double calls = static_cast<double>(ceil_div(columns, packing.columns)) * kCall;
  return static_cast<double>(ceil_div(outputs, most)) * (static_cast<double>(columns * taps) * tap + calls) / v;
}

i64 threads_of(i64 tasks) { return std::max<i64>(tasks / kTasksOfThread, 1); }

// How much longer than its work a call takes whose tasks do not fill all threads to the end; `tasks` would.
double idle(i64 all, i64 tasks) {
  const i64 threads = threads_of(tasks);
  return turns(all, threads) * static_cast<double>(threads) / static_cast<double>(all);
}

// The same where they are cut finely; `longest` is what the longest takes of the work, if they differ.
double idle_at_end(i64 all, i64 tasks, double longest) {
  const i64 threads = threads_of(tasks);
  const double last = longest > 0 ? 1 + longest * static_cast<double>(threads - 1)
                                  : static_cast<double>(round_up(all, threads)) / static_cast<double>(all);
  return std::max(last, static_cast<double>(tasks) / static_cast<double>(all));
}

constexpr double kTurn = 0.4;    // to turn a number
constexpr double kStaged = 0.3;  // to write a number where it belongs
constexpr double kFetch = 0.1;   // for a byte that does not come from a core's own caches

std::optional<ChannelLanes> plan_images(const Layer& layer, const Call& call, const Packing& packing,
                                        const Target& target, const Schedule& schedule, i64 tasks) {
  const i64 lanes = target.lanes, bytes = target.number_bytes;
  if (call.reads_last && packing.rows > layer.rows) return std::nullopt;  // runs alone have sums to write these from
  ChannelLanes map;
  i64 in = 1;
  map.outputs = 1;
  for (std::size_t a = 0; a < kAxes; ++a)
    if ((map.outputs *= call.out[a]) > kMostOutputs || (in *= call.in[a]) > kMostPairs) return std::nullopt;
  if (in * layer.taps() > kMostPairs) return std::nullopt;

  // So many images at once that they leave room for the sums of some vectors of channels, and share a pass over the
  // weights; fewer, where that leaves more channels to a task.
  const i64 rows = std::min(packing.rows, kMaxRowVectors * lanes);
  const i64 panel = (Limits::panel_bytes / ((in + 1) * bytes) - lanes) / packing.columns;
  const i64 sums = Limits::sum_bytes / (map.outputs * (rows + lanes) * bytes);
  if (panel < 1) return std::nullopt;
  const i64 most = std::clamp<i64>(std::min(panel < lanes ? panel : panel / lanes * lanes, sums), 1, call.batch);
  std::vector<std::vector<ChannelLanes::Group>> groups = group_outputs(schedule.axis, schedule.phases.size());
  std::vector<ChannelLanes::Group> together;  // per phase, with zeros where some of its outputs read outside
  for (const auto& phase : groups) together.push_back(phase.size() > 1 ? merge(phase, in) : ChannelLanes::Group());
  auto cost = [&](const ChannelLanes::Group& group) {
    return cycles(packing, layer.cols, static_cast<i64>(group.outputs.size()) * map.images,
                  static_cast<i64>(group.taps.size()), map.positions, map.vectors);
  };
  auto apart = [&](std::size_t phase) {
    double all = 0;
    for (const ChannelLanes::Group& group : groups[phase]) all += cost(group);
    return all;
  };
  auto with_zeros = [&](std::size_t phase) {
    return groups[phase].size() > 1 ? cost(together[phase]) : std::numeric_limits<double>::infinity();
  };
  const i64 weights = layer.taps() * packing.rows * layer.cols * bytes;
  std::optional<ChannelLanes> best;
  double soonest = 0;
  for (i64 images = most; images > 0; images /= 2) {
    map.images = piece(call.batch, images);
    map.image_pitch = map.images <= lanes ? map.images : round_up(map.images, lanes);
    const i64 outputs = map.outputs * map.images;
    map.parts = ceil_div(call.batch, map.images);
    const i64 fit =
        std::clamp<i64>((Limits::sum_bytes / (outputs * bytes) - lanes) / lanes * lanes, lanes, packing.rows);
    for (i64 chunk = fit; chunk > 0; chunk = chunk > lanes ? std::max(lanes, chunk / 2 / lanes * lanes) : 0) {
      map.chunk = round_up(piece(packing.rows, chunk), lanes);
      map.vectors = row_vectors(map.chunk, lanes);
      map.positions =
          std::min(map.vectors == 1 ? kMostApart : kMaxPositions, fitting_positions(map.vectors, target.registers));
      map.sums = outputs * (map.chunk + lanes);
      const i64 chunks = ceil_div(packing.rows, map.chunk);
      map.cycles = 0;
      for (std::size_t phase = 0; phase < groups.size(); ++phase)
        map.cycles += std::min(with_zeros(phase), apart(phase));
      map.cycles *= static_cast<double>(map.parts * (packing.rows / lanes));
      if (weights > kFarWeights) map.cycles += kFetch * static_cast<double>(weights * (map.parts - 1));
      if (!call.reads_last) map.cycles += kTurn * static_cast<double>(call.batch * in * layer.cols * chunks);
      const double time = map.cycles * idle(map.parts * layer.groups * chunks, tasks);
      if (best && time >= soonest) continue;
      soonest = time;
      best = map;
    }
  }
  map = std::move(*best);
  map.cycles = soonest;
  // With few positions it is better to multiply some zeros than to take the weights several times.
  for (std::size_t phase = 0; phase < groups.size(); ++phase) {
    if (with_zeros(phase) < apart(phase)) {
      groups[phase] = {std::move(together[phase])};
      map.zeros = true;
      continue;
    }
    for (ChannelLanes::Group& group : groups[phase]) make_regular(group);
  }
  map.groups = std::move(groups);
  if (call.reads_last) {
    map.last = true;
    map.panel = packing.columns;
    map.sums = 0;
    return map;
  }
  map.columns = packing.columns;
  map.inputs = in + map.zeros;
  map.panel = map.inputs * (packing.columns * map.image_pitch + lanes);
  return map;
}

// One rectangle's outputs and what they read.
ChannelLanes::Group outputs_of(const ChannelLanes::Rectangle& rectangle, const Layer& layer, const AxisPlan* axis) {
  const Size& inputs = rectangle.inputs;
  ChannelLanes::Group group;
  auto from_first = [&](std::size_t a, std::size_t tap) { return axis[a].phases[0].offset[tap] - rectangle.first[a]; };
  for (std::size_t z = 0; z < axis[0].phases[0].offset.size(); ++z)
    for (std::size_t y = 0; y < axis[1].phases[0].offset.size(); ++y)
      for (std::size_t x = 0; x < axis[2].phases[0].offset.size(); ++x) {
        group.taps.push_back(static_cast<i64>(group.taps.size()));
        group.inputs.push_back((from_first(0, z) / layer.dilation[0] * inputs[1] + from_first(1, y)) * inputs[2] +
                               from_first(2, x));
      }
  for (i64 y = 0; y < rectangle.down; ++y)
    for (i64 x = 0; x < rectangle.across; ++x) {
      group.outputs.push_back(y * rectangle.across + x);
      group.shift.push_back(y * axis[1].in_step * inputs[2] + x * axis[2].in_step);
    }
  return group;
}

std::optional<ChannelLanes> plan_rectangles(const Layer& layer, const Call& call, const Packing& packing,
                                            const Target& target, const Schedule& schedule, i64 tasks) {
  const i64 lanes = target.lanes, bytes = target.number_bytes;
  if (schedule.phases.size() > 1) return std::nullopt;
  const AxisPlan* axis = schedule.axis;
  ChannelLanes map;
  // Whole vectors of channels are turned: those of several reductions, if one has fewer.
  map.columns = std::min(ceil_div(lanes, packing.columns) * packing.columns, layer.cols);
  const i64 pitch = round_up(map.columns, lanes) + lanes;
  const i64 room = Limits::panel_bytes / (pitch * bytes);
  Size extent, first;
  for (std::size_t a = 0; a < kAxes; ++a) {
    const std::vector<i64>& offset = axis[a].phases[0].offset;
    first[a] = *std::min_element(offset.begin(), offset.end());
    extent[a] = (layer.kernel[a] - 1) * layer.dilation[a] + 1;
    if (extent[a] > room) return std::nullopt;
  }
  for (i64 per_row = 1; per_row <= 64; ++per_row) {
    ChannelLanes::Rectangle r{};
    r.across = ceil_div(call.out[2], per_row);
    if (per_row > 1 && r.across < lanes) break;  // too short to turn in vectors
    const i64 wide = (r.across - 1) * axis[2].in_step + extent[2];
    if (wide > room) continue;
    const i64 tall = room / (wide * layer.kernel[0]);
    if (tall < extent[1]) continue;
    const i64 most = Limits::sum_bytes / (r.across * 2 * lanes * bytes);
    if (most < 1) continue;
    r.down = piece(call.out[1], std::clamp<i64>((tall - extent[1]) / axis[1].in_step + 1, 1, most));
    r.per_row = ceil_div(call.out[2], r.across);
    r.per_column = ceil_div(call.out[1], r.down);
    r.first = first;
    r.inputs = {layer.kernel[0], (r.down - 1) * axis[1].in_step + extent[1], wide};
    const i64 outputs = r.across * r.down;
    const i64 parts = call.batch * call.out[0] * r.per_row * r.per_column;
    i64 chunk = std::clamp<i64>((Limits::sum_bytes / (outputs * bytes) - lanes) / lanes * lanes, lanes, packing.rows);
    while (chunk > lanes && parts * layer.groups * ceil_div(packing.rows, chunk) < tasks)
      chunk = std::max(lanes, chunk / 2 / lanes * lanes);
    chunk = round_up(piece(packing.rows, chunk), lanes);
    const i64 vectors = row_vectors(chunk, lanes);
    const i64 positions = fitting_positions(vectors, target.registers);
    const double inputs =
        static_cast<double>(r.inputs[0] * r.inputs[1] * std::max(wide, lanes) * round_up(layer.cols, lanes));
    const double turned =
        inputs * static_cast<double>(ceil_div(packing.rows, chunk)) + static_cast<double>(outputs * packing.rows);
    const double all =
        static_cast<double>(parts) * (cycles(packing, layer.cols, outputs, layer.taps(), positions, vectors) *
                                          static_cast<double>(packing.rows / lanes) +
                                      kTurn * turned);
    if (map.rectangle && all >= map.cycles) continue;
    map.rectangle = r;
    map.cycles = all;
    map.parts = parts;
    map.chunk = chunk;
    map.vectors = vectors;
    map.positions = positions;
    map.outputs = outputs;
    map.inputs = r.inputs[0] * r.inputs[1] * r.inputs[2];
    map.panel = map.inputs * pitch + lanes;
    map.sums = outputs * (chunk + lanes);
  }
  if (!map.rectangle) return std::nullopt;
  map.groups = {{outputs_of(*map.rectangle, layer, axis)}};
  return map;
}

// Channels last: runs of positions and chunks of channels such that weights and inputs are read seldom, and all threads
// have work.
std::optional<ChannelLanes> plan_runs(const Layer& layer, const Packing& packing, const Target& target,
                                      const Schedule& schedule, i64 tasks) {
  const i64 lanes = target.lanes, bytes = target.number_bytes;
  i64 dense = 1, phases = 1, taps = 0;  // inputs or outputs of a position
  for (const AxisPlan& axis : schedule.axis) {
    dense *= axis.in_step;
    phases *= axis.out_step;
  }
  for (const PhaseTaps& phase : schedule.phases) taps += static_cast<i64>(phase.offset_of.size());
  const bool adds = schedule.reductions.size() > 1, staged = packing.rows > layer.rows;
  // An input takes more of a cache than the columns that are read at a time, if a power of two of bytes lies between
  // inputs: sets for the others stay empty.
  const i64 pixel = layer.groups * layer.cols * bytes, apart = packing.columns < layer.cols ? pixel & -pixel : 0;
  const i64 room = Limits::panel_bytes / (std::max(packing.columns * bytes, apart) * dense);
  std::optional<ChannelLanes> best;
  for (i64 chunks = 1; chunks <= packing.rows / lanes; chunks *= 2) {
    ChannelLanes map;
    map.last = true;
    map.panel = packing.columns;
    map.chunk = round_up(piece(packing.rows, ceil_div(packing.rows, chunks)), lanes);
    map.vectors = row_vectors(map.chunk, lanes);
    map.positions = fitting_positions(map.vectors, target.registers);
    const i64 fit = adds || staged ? std::min(room, Limits::sum_bytes / (phases * map.chunk * bytes)) : room;
    const i64 cuts = ceil_div(packing.rows, map.chunk) * layer.groups;
    const i64 row = schedule.axis[2].positions;
    for (i64 most = std::min(fit, schedule.positions);; most /= 2) {
      map.run = piece(schedule.positions, std::max(most, map.positions));
      if (map.run > row) map.run = round_up(map.run, row);
      map.parts = ceil_div(schedule.positions, map.run);
      double work = 0;
      for (const PhaseTaps& phase : schedule.phases)
        work +=
            cycles(packing, layer.cols, map.run, static_cast<i64>(phase.offset_of.size()), map.positions, map.vectors);
      work *= static_cast<double>(packing.rows / lanes * map.parts);
      const bool differ = packing.rows % map.chunk != 0;
      const double longest =
          differ ? static_cast<double>(map.chunk) / static_cast<double>(packing.rows * layer.groups * map.parts) : 0;
      const double weights = static_cast<double>(taps * packing.rows * layer.cols * (map.parts - 1));
      const double inputs =
          static_cast<double>(schedule.positions * dense * layer.cols * (ceil_div(packing.rows, map.chunk) - 1));
      if (staged) {
        map.sums = map.run * phases * map.chunk;
        work += kStaged * static_cast<double>(schedule.positions * phases * packing.rows);
      }
      map.cycles = work * idle_at_end(map.parts * cuts, tasks, longest) +
                   kFetch * static_cast<double>(bytes) * (weights + inputs);
      const bool fits = map.sums * bytes <= 2 * Limits::sum_bytes;
      if (fits && (!best || map.cycles < best->cycles)) best = map;
      if (most <= map.positions) break;
    }
  }
  if (best) best->groups.resize(schedule.phases.size());
  return best;
}

}  // namespace

std::optional<ChannelLanes> plan_channel_lanes(const Layer& layer, const Call& call, const Packing& packing,
                                               const Target& target, const Schedule& schedule, i64 tasks) {
  if (!packing.vectors || schedule.positions == 0) return std::nullopt;
  std::optional<ChannelLanes> images = plan_images(layer, call, packing, target, schedule, tasks);
  std::optional<ChannelLanes> rectangles = call.reads_last
                                               ? plan_runs(layer, packing, target, schedule, tasks)
                                               : plan_rectangles(layer, call, packing, target, schedule, tasks);
  return rectangles && (!images || rectangles->cycles < images->cycles) ? rectangles : images;
}

std::string explain_channel_lanes(const Layer& layer, const Target& target, const Schedule& schedule) {
  const ChannelLanes& map = *schedule.channel_lanes;
  std::size_t groups = 0;
  for (const auto& phase : map.groups) groups += phase.size();
  std::ostringstream why;
  why << (layer.transposed ? "transposed convolution" : "convolution")
      << (map.rectangle || map.run ? "" : " of a small map") << (map.last ? ", channels last" : "")
      << ": lanes run along channels, register tiles of " << map.vectors << " vectors of " << target.lanes
      << " channels x " << map.positions << " positions; ";
  if (map.rectangle)
    why << "a task computes " << map.rectangle->down << " x " << map.rectangle->across << " outputs";
  else if (map.run)
    why << "a task computes the outputs of " << map.run << " positions";
  else
    why << "the " << map.outputs << " outputs of an image fall into " << groups
        << (groups == 1 ? " group that uses" : " groups, each of which uses") << " the same taps"
        << (map.zeros ? ", or zeros where few lie outside" : "") << "; a task computes " << map.images
        << (map.images == 1 ? " image" : " images");
  why << " and " << map.chunk << " of " << layer.rows << " channels; " << say_threads(schedule.threads);
  return why.str();
}

}  // namespace upscore
