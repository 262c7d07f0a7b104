#include "channel_lanes.h"

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "scratch.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kMostOutputs = 1024;   // positions of an image
constexpr i64 kMostPairs = 1 << 15;  // of an output and a tap

i64 round_up(i64 a, i64 b) { return ceil_div(a, b) * b; }

// The largest of equal pieces of at most `most`.
i64 piece(i64 all, i64 most) { return ceil_div(all, ceil_div(all, most)); }

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
i64 row_vectors(i64 rows, i64 unit, i64 lanes) {
  return round_up(piece(rows, kMaxRowVectors * lanes / unit * unit), unit) / lanes;
}

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
constexpr double kTurn = 0.4;  // to turn a number

bool allowed(const Layer& layer, const Packing& packing, const Target& target, const Schedule& schedule, i64 unit) {
  return !packing.fused && packing.tile_rows == target.tile_rows && layer.rows % unit == 0 &&
         unit <= kMaxRowVectors * target.lanes && schedule.positions > 0;
}

std::optional<ChannelLanes> plan_images(const Layer& layer, const Call& call, const Packing& packing,
                                        const Target& target, const Schedule& schedule, i64 tasks) {
  const i64 lanes = target.lanes, unit = std::max<i64>(lanes, target.tile_rows), bytes = target.number_bytes;
  if (!allowed(layer, packing, target, schedule, unit)) return std::nullopt;
  ChannelLanes map;
  i64 in = 1;
  map.outputs = 1;
  for (std::size_t a = 0; a < kAxes; ++a)
    if ((map.outputs *= call.out[a]) > kMostOutputs || (in *= call.in[a]) > kMostPairs) return std::nullopt;
  if (in * layer.taps() > kMostPairs) return std::nullopt;

  // As many images at once as leave room for the sums of some vectors of channels.
  const i64 rows = std::min(layer.rows, kMaxRowVectors * unit);
  const i64 panel = (Limits::panel_bytes / ((in + 1) * bytes) - lanes) / packing.columns;
  const i64 sums = Limits::sum_bytes / (map.outputs * (rows + lanes) * bytes);
  const i64 images = std::min(panel < lanes ? panel : panel / lanes * lanes, sums);
  if (panel < 1) return std::nullopt;
  map.images = piece(call.batch, std::clamp<i64>(images, 1, call.batch));
  map.image_pitch = map.images <= lanes ? map.images : round_up(map.images, lanes);
  const i64 outputs = map.outputs * map.images;
  map.parts = ceil_div(call.batch, map.images);
  map.chunk = std::clamp<i64>((Limits::sum_bytes / (outputs * bytes) - lanes) / unit * unit, unit, layer.rows);
  while (map.chunk > unit && map.parts * layer.groups * ceil_div(layer.rows, map.chunk) < tasks)
    map.chunk = std::max(unit, map.chunk / 2 / unit * unit);
  map.chunk = round_up(piece(layer.rows, map.chunk), unit);

  // With few positions it is better to multiply some zeros than to take the weights several times.
  const i64 vectors = row_vectors(map.chunk, unit, lanes);
  map.positions = std::min<i64>(kMaxPositions, target.registers / vectors);
  map.groups = group_outputs(schedule.axis, schedule.phases.size());
  for (std::vector<ChannelLanes::Group>& groups : map.groups) {
    auto cost = [&](const ChannelLanes::Group& group) {
      return cycles(packing, layer.cols, static_cast<i64>(group.outputs.size()) * map.images,
                    static_cast<i64>(group.taps.size()), map.positions, vectors);
    };
    double apart = 0;
    for (const ChannelLanes::Group& group : groups) apart += cost(group);
    if (groups.size() > 1) {
      ChannelLanes::Group all = merge(groups, in);
      const double together = cost(all);
      if (together < apart) {
        groups = {std::move(all)};
        map.zeros = true;
        map.cycles += together;
        continue;
      }
    }
    for (ChannelLanes::Group& group : groups) make_regular(group);
    map.cycles += apart;
  }
  map.cycles *= static_cast<double>(map.parts * (layer.rows / lanes));
  map.columns = packing.columns;
  map.inputs = in + map.zeros;
  map.panel = map.inputs * (packing.columns * map.image_pitch + lanes);
  map.sums = outputs * (map.chunk + lanes);
  return map;
}

// One rectangle's outputs and what they read.
ChannelLanes::Group outputs_of(const ChannelLanes::Rectangle& rectangle, const Layer& layer) {
  const Size &kernel = layer.kernel, &inputs = rectangle.inputs;
  ChannelLanes::Group group;
  for (i64 tap = 0; tap < layer.taps(); ++tap) {
    group.taps.push_back(tap);
    group.inputs.push_back(
        (tap / (kernel[1] * kernel[2]) * inputs[1] + tap / kernel[2] % kernel[1] * layer.dilation[1]) * inputs[2] +
        tap % kernel[2] * layer.dilation[2]);
  }
  for (i64 y = 0; y < rectangle.down; ++y)
    for (i64 x = 0; x < rectangle.across; ++x) {
      group.outputs.push_back(y * rectangle.across + x);
      group.shift.push_back(y * layer.stride[1] * inputs[2] + x * layer.stride[2]);
    }
  return group;
}

std::optional<ChannelLanes> plan_rectangles(const Layer& layer, const Call& call, const Packing& packing,
                                            const Target& target, const Schedule& schedule, i64 tasks) {
  const i64 lanes = target.lanes, unit = std::max<i64>(lanes, target.tile_rows), bytes = target.number_bytes;
  if (layer.transposed || !allowed(layer, packing, target, schedule, unit)) return std::nullopt;
  ChannelLanes map;
  // Whole vectors of channels are turned: those of several reductions, if one has fewer.
  map.columns = std::min(ceil_div(lanes, packing.columns) * packing.columns, layer.cols);
  const i64 pitch = round_up(map.columns, lanes) + lanes;
  const i64 room = Limits::panel_bytes / (pitch * bytes);
  Size extent;
  for (std::size_t a = 0; a < kAxes; ++a) {
    extent[a] = (layer.kernel[a] - 1) * layer.dilation[a] + 1;
    if (extent[a] > room) return std::nullopt;
  }
  for (i64 per_row = 1; per_row <= 64; ++per_row) {
    ChannelLanes::Rectangle r{};
    r.across = ceil_div(call.out[2], per_row);
    if (per_row > 1 && r.across < lanes) break;  // too short to turn in vectors
    const i64 wide = (r.across - 1) * layer.stride[2] + extent[2];
    if (wide > room) continue;
    const i64 tall = room / (wide * layer.kernel[0]);
    if (tall < extent[1]) continue;
    const i64 most = Limits::sum_bytes / (r.across * (unit + lanes) * bytes);
    if (most < 1) continue;
    r.down = piece(call.out[1], std::clamp<i64>((tall - extent[1]) / layer.stride[1] + 1, 1, most));
    r.per_row = ceil_div(call.out[2], r.across);
    r.per_column = ceil_div(call.out[1], r.down);
    r.inputs = {layer.kernel[0], (r.down - 1) * layer.stride[1] + extent[1], wide};
    const i64 outputs = r.across * r.down;
    const i64 parts = call.batch * call.out[0] * r.per_row * r.per_column;
    i64 chunk = std::clamp<i64>((Limits::sum_bytes / (outputs * bytes) - lanes) / unit * unit, unit, layer.rows);
    while (chunk > unit && parts * layer.groups * ceil_div(layer.rows, chunk) < tasks)
      chunk = std::max(unit, chunk / 2 / unit * unit);
    chunk = round_up(piece(layer.rows, chunk), unit);
    const i64 vectors = row_vectors(chunk, unit, lanes);
    const i64 positions = std::min<i64>(kMaxPositions, target.registers / vectors);
    const double inputs =
        static_cast<double>(r.inputs[0] * r.inputs[1] * std::max(wide, lanes) * round_up(layer.cols, lanes));
    const double turned =
        inputs * static_cast<double>(ceil_div(layer.rows, chunk)) + static_cast<double>(outputs * layer.rows);
    const double all =
        static_cast<double>(parts) * (cycles(packing, layer.cols, outputs, layer.taps(), positions, vectors) *
                                          static_cast<double>(layer.rows / lanes) +
                                      kTurn * turned);
    if (map.rectangle && all >= map.cycles) continue;
    map.rectangle = r;
    map.cycles = all;
    map.parts = parts;
    map.chunk = chunk;
    map.positions = positions;
    map.outputs = outputs;
    map.inputs = r.inputs[0] * r.inputs[1] * r.inputs[2];
    map.panel = map.inputs * pitch + lanes;
    map.sums = outputs * (chunk + lanes);
  }
  if (!map.rectangle) return std::nullopt;
  map.groups = {{outputs_of(*map.rectangle, layer)}};
  return map;
}

}  // namespace

std::optional<ChannelLanes> plan_channel_lanes(const Layer& layer, const Call& call, const Packing& packing,
                                               const Target& target, const Schedule& schedule, i64 tasks) {
  std::optional<ChannelLanes> images = plan_images(layer, call, packing, target, schedule, tasks);
  std::optional<ChannelLanes> rectangles = plan_rectangles(layer, call, packing, target, schedule, tasks);
  return rectangles && (!images || rectangles->cycles < images->cycles) ? rectangles : images;
}

std::string explain_channel_lanes(const Layer& layer, const Target& target, const Schedule& schedule) {
  const ChannelLanes& map = *schedule.channel_lanes;
  std::size_t groups = 0;
  for (const auto& phase : map.groups) groups += phase.size();
  std::ostringstream why;
  why << (layer.transposed ? "transposed convolution" : "convolution") << (map.rectangle ? "" : " of a small map")
      << ": lanes run along channels, register tiles of "
      << row_vectors(map.chunk, std::max(target.lanes, target.tile_rows), target.lanes) << " vectors of "
      << target.lanes << " channels x " << map.positions << " positions; ";
  if (map.rectangle)
    why << "a task computes " << map.rectangle->down << " x " << map.rectangle->across << " outputs";
  else
    why << "the " << map.outputs << " outputs of an image fall into " << groups
        << (groups == 1 ? " group that uses" : " groups, each of which uses") << " the same taps"
        << (map.zeros ? ", or zeros where few lie outside" : "") << "; a task computes " << map.images
        << (map.images == 1 ? " image" : " images");
  why << " and " << map.chunk << " of " << layer.rows << " channels; " << schedule.threads
      << (schedule.threads == 1 ? " thread" : " threads");
  return why.str();
}

namespace {

template <typename T>
class Task {
 public:
  Task(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
       const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y)
      : layer_(layer),
        call_(call),
        packing_(packing),
        schedule_(schedule),
        map_(*schedule.channel_lanes),
        kernels_(kernels),
        packed_(packed),
        bias_(bias),
        x_(x),
        x_end_(x + call.batch * layer.groups * layer.cols * call.in[0] * call.in[1] * call.in[2]),
        y_(y),
        plane_(call.in[0] * call.in[1] * call.in[2]),
        out_plane_(call.out[0] * call.out[1] * call.out[2]) {}

  // Output channels [first_row, first_row + rows) of one group, of one part of the outputs.
  void compute(i64 part, i64 group, i64 first_row, i64 rows) {
    group_ = group;
    first_row_ = first_row;
    rows_ = rows;
    place(part);
    pitch_ = rows + kernels_.lanes;  // not a power of two: rows that are turned together lie in different cache sets
    panel_ = scratch<T>(static_cast<std::size_t>(map_.panel + map_.sums));
    sums_ = panel_ + map_.panel;
    panel_first_ = panel_last_ = 0;
    cut();
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const Block& block = blocks_[i];
      const Reduction& r = *block.reduction;
      const bool first = block.reduction == &schedule_.reductions.front();
      if (r.column_last > panel_last_) copy_inputs(r.column_first);
      fetch_ahead(block, i + 1 < blocks_.size() ? &blocks_[i + 1] : nullptr);
      for (const ChannelLanes::Group& group : map_.groups[block.phase])
        multiply(group, block, !first, &r == &schedule_.reductions.back());
    }
    write();
  }

 private:
  // Weights that are multiplied one after the other, in the order in which they lie.
  struct Block {
    const Reduction* reduction;
    std::size_t phase;
    i64 row, rows;
    const T* weights;
    i64 size;
  };

  void place(i64 part) {
    first_ = {0, 0, 0};
    images_ = 1;
    if (!map_.rectangle) {
      image_ = part * map_.images;
      images_ = std::min(map_.images, call_.batch - image_);
      return;
    }
    const ChannelLanes::Rectangle& r = *map_.rectangle;
    first_[2] = part % r.per_row * r.across;
    part /= r.per_row;
    first_[1] = part % r.per_column * r.down;
    part /= r.per_column;
    first_[0] = part % call_.out[0];
    image_ = part / call_.out[0];
  }

  void cut() {
    blocks_.clear();
    const i64 lanes = kernels_.lanes, unit = std::max<i64>(lanes, kernels_.tile_rows);  // as many rows as whole tiles
    const i64 most = row_vectors(rows_, unit, lanes) * lanes;
    for (const Reduction& r : schedule_.reductions)
      for (std::size_t phase = 0; phase < map_.groups.size(); ++phase) {
        if (map_.groups[phase].empty()) continue;
        const PhaseClass& c = packing_.classes[static_cast<std::size_t>(schedule_.phases[phase].packed_class)];
        const i64 columns = r.column_last - r.column_first;
        for (i64 row = 0; row < rows_; row += most) {
          const i64 rows = std::min(most, rows_ - row);
          const T* weights = packed_ + (group_ * layer_.cols + r.column_first) * packing_.per_column +
                             (c.weights + (first_row_ + row) * c.taps) * columns;
          blocks_.push_back({&r, phase, row, rows, weights, rows * c.taps * columns});
        }
      }
  }

  // The panel, from a column on: as many of them as it holds.
  void copy_inputs(i64 first) {
    panel_first_ = first;
    panel_last_ = std::min(first + map_.columns, layer_.cols);
    const T* x = x_ + ((image_ * layer_.groups + group_) * layer_.cols + first) * plane_;
    if (map_.rectangle)
      copy_rectangle(x, panel_last_ - first);
    else
      copy_images(x, panel_last_ - first);
  }

  // panel[input][column][image], with zeros behind the inputs if need be. Whole vectors are written: beyond a column
  // with the next one's place, beyond the last one with what is between the inputs.
  void copy_images(const T* x, i64 columns) {
    const i64 next = layer_.groups * layer_.cols * plane_;
    input_pitch_ = columns * map_.image_pitch + kernels_.lanes;
    if (map_.image_pitch == 1) {
      kernels_.transpose(x, x_end_, plane_, columns, plane_, nullptr, panel_, input_pitch_);
    } else {
      for (i64 c = 0; c < columns; ++c)
        kernels_.transpose(x + c * plane_, x_end_, next, images_, plane_, nullptr, panel_ + c * map_.image_pitch,
                           input_pitch_);
    }
    if (map_.zeros) std::fill_n(panel_ + plane_ * input_pitch_, input_pitch_, T(0));
  }

  // panel[tap of the first axis][row][input][column], zeros outside.
  void copy_rectangle(const T* x, i64 columns) {
    const Size &in = call_.in, &inputs = map_.rectangle->inputs;
    input_pitch_ = round_up(columns, kernels_.lanes) + kernels_.lanes;
    Size from;
    for (std::size_t a = 0; a < kAxes; ++a)
      from[a] = first_[a] * layer_.stride[a] + schedule_.axis[a].phases[0].offset[0];
    const i64 skip = std::clamp<i64>(-from[2], 0, inputs[2]), stop = std::clamp<i64>(in[2] - from[2], skip, inputs[2]);
    T* line = panel_;
    for (i64 tap = 0; tap < inputs[0]; ++tap)
      for (i64 row = 0; row < inputs[1]; ++row, line += inputs[2] * input_pitch_) {
        const i64 z = from[0] + tap * layer_.dilation[0], y = from[1] + row;
        if (z < 0 || z >= in[0] || y < 0 || y >= in[1] || skip == stop) {
          kernels_.fill(T(0), inputs[2] * input_pitch_, line);
          continue;
        }
        kernels_.fill(T(0), skip * input_pitch_, line);
        kernels_.transpose(x + (z * in[1] + y) * in[2] + from[2] + skip, x_end_, plane_, columns, stop - skip, nullptr,
                           line + skip * input_pitch_, input_pitch_);
        kernels_.fill(T(0), (inputs[2] - stop) * input_pitch_, line + stop * input_pitch_);
      }
  }

  // While one block is multiplied, the next one is fetched from memory.
  void fetch_ahead(const Block& block, const Block* next) {
    ahead_ = reinterpret_cast<const char*>(next ? next->weights : block.weights);
    ahead_step_ = 0;
    if (!next) return;
    i64 terms = 0;
    for (const ChannelLanes::Group& group : map_.groups[block.phase])
      terms += ceil_div(static_cast<i64>(group.outputs.size()) * images_, map_.positions) *
               static_cast<i64>(group.taps.size());
    terms *= block.reduction->column_last - block.reduction->column_first;
    if (terms > 0) ahead_step_ = ceil_div(next->size * static_cast<i64>(sizeof(T)), terms);
  }

  void multiply(const ChannelLanes::Group& group, const Block& block, bool accumulate, bool last_terms) {
    const Reduction& r = *block.reduction;
    const PhaseTaps& phase = schedule_.phases[block.phase];
    const PhaseClass& c = packing_.classes[static_cast<std::size_t>(phase.packed_class)];
    const i64 columns = r.column_last - r.column_first, all_taps = static_cast<i64>(group.taps.size());
    i64 first = 0, last = all_taps;  // taps of this reduction
    auto offset = [&](i64 tap) {
      return phase.offset_of[static_cast<std::size_t>(group.taps[static_cast<std::size_t>(tap)])];
    };
    while (first < last && offset(first) < r.offset_first) ++first;
    while (last > first && offset(last - 1) >= r.offset_last) --last;
    const T* bias = bias_ && last_terms ? bias_ + group_ * layer_.rows + first_row_ + block.row : nullptr;
    if (first == last && accumulate && !bias) return;

    const bool regular = !group.shift.empty();
    i64 w_offset[Limits::offsets], x_tap[Limits::offsets] = {}, x_offset[Limits::offsets * kMaxPositions],
                                   c_offset[kMaxPositions];
    for (i64 t = first; t < last; ++t) {
      w_offset[t - first] = group.taps[static_cast<std::size_t>(t)] * columns * packing_.tile_rows;
      if (regular) x_tap[t - first] = group.inputs[static_cast<std::size_t>(t)] * input_pitch_;
    }
    ChannelProduct<T> p;
    p.w = block.weights;
    p.w_tile_stride = c.taps * columns * packing_.tile_rows;
    p.w_offset = w_offset;
    p.x = panel_ + (r.column_first - panel_first_) * map_.image_pitch;
    p.x_tap = x_tap;
    p.x_offset = x_offset;
    p.x_stride = map_.image_pitch;
    p.taps = last - first;
    p.columns = columns;
    p.c = sums_ + block.row;
    p.c_offset = c_offset;
    p.accumulate = accumulate;
    p.bias = bias;
    // Positions are counted over outputs and, within them, images.
    const i64 all = static_cast<i64>(group.outputs.size()) * images_;
    for (i64 begin = 0, most = piece(all, map_.positions); begin < all; begin += most) {
      const i64 count = std::min(most, all - begin);
      for (i64 q = 0; q < count; ++q) {
        const i64 output = (begin + q) / images_, image = (begin + q) % images_;
        c_offset[q] = (image * map_.outputs + group.outputs[static_cast<std::size_t>(output)]) * pitch_;
        if (regular) {
          x_offset[q] = group.shift[static_cast<std::size_t>(output)] * input_pitch_ + image;
          continue;
        }
        for (i64 t = first; t < last; ++t)
          x_offset[(t - first) * count + q] =
              group.inputs[static_cast<std::size_t>(output * all_taps + t)] * input_pitch_ + image;
      }
      p.x_offset_step = regular ? 0 : count;
      p.ahead = ahead_;
      p.ahead_step = ahead_step_;
      ahead_ += p.taps * columns * ahead_step_;
      kernels_.channel_product[block.rows / kernels_.lanes][count](p);
    }
  }

  // From [image or row][output][channel] to [channel][output].
  void write() const {
    for (i64 image = 0; image < images_; ++image) {
      const i64 channel = ((image_ + image) * layer_.groups + group_) * layer_.rows + first_row_;
      const T* sums = sums_ + image * map_.outputs * pitch_;
      if (!map_.rectangle) {
        turn(sums, map_.outputs, y_ + channel * out_plane_);
        continue;
      }
      const ChannelLanes::Rectangle& r = *map_.rectangle;
      const i64 across = std::min(r.across, call_.out[2] - first_[2]),
                down = std::min(r.down, call_.out[1] - first_[1]);
      T* y = y_ + channel * out_plane_ + (first_[0] * call_.out[1] + first_[1]) * call_.out[2] + first_[2];
      if (across == call_.out[2]) {  // whole rows lie one behind the other
        turn(sums, down * across, y);
        continue;
      }
      for (i64 row = 0; row < down; ++row) turn(sums + row * r.across * pitch_, across, y + row * call_.out[2]);
    }
  }

  // [output][channel] to [channel][output]
  void turn(const T* from, i64 outputs, T* to) const {
    const i64 lanes = kernels_.lanes, whole = outputs / lanes * lanes;
    const T* const end = sums_ + map_.sums;
    if (whole > 0) kernels_.transpose(from, end, pitch_, whole, rows_, nullptr, to, out_plane_);
    if (whole == outputs) return;
    if (whole > 0) {  // the last vector overlaps the one before
      kernels_.transpose(from + (outputs - lanes) * pitch_, end, pitch_, lanes, rows_, nullptr, to + outputs - lanes,
                         out_plane_);
      return;
    }
    for (i64 row = 0; row < rows_; ++row)
      for (i64 output = 0; output < outputs; ++output) to[row * out_plane_ + output] = from[output * pitch_ + row];
  }

  const Layer& layer_;
  const Call& call_;
  const Packing& packing_;
  const Schedule& schedule_;
  const ChannelLanes& map_;
  const Kernels<T>& kernels_;
  const T *const packed_, *const bias_, *const x_, *const x_end_;
  T* const y_;
  const i64 plane_, out_plane_;
  Size first_{};
  i64 image_ = 0, images_ = 1;
  i64 group_ = 0, first_row_ = 0, rows_ = 0, pitch_ = 0, input_pitch_ = 0, panel_first_ = 0, panel_last_ = 0;
  T *panel_ = nullptr, *sums_ = nullptr;
  const char* ahead_ = nullptr;
  i64 ahead_step_ = 0;
  std::vector<Block> blocks_;
};

}  // namespace

template <typename T>
void execute_channel_lanes(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
                           const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y) {
  const ChannelLanes& map = *schedule.channel_lanes;
  const i64 chunks = ceil_div(layer.rows, map.chunk);
  parallel_for(map.parts * layer.groups * chunks, schedule.threads, [&](i64 task) {
    const i64 row = task % chunks * map.chunk, group = task / chunks % layer.groups;
    Task<T>(layer, call, packing, schedule, kernels, packed, bias, x, y)
        .compute(task / chunks / layer.groups, group, row, std::min(map.chunk, layer.rows - row));
  });
}

#define UPSCORE_INSTANTIATE(T)                                                                       \
  template void execute_channel_lanes<T>(const Layer&, const Call&, const Packing&, const Schedule&, \
                                         const Kernels<T>&, const T*, const T*, const T*, T*);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
