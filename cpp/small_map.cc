#include "small_map.h"

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
std::vector<std::vector<SmallMap::Group>> group_outputs(const AxisPlan* axis, std::size_t phases) {
  std::vector<std::map<std::vector<i64>, SmallMap::Group>> by_taps(phases);
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
        SmallMap::Group& group = by_taps[static_cast<std::size_t>(phase)][taps];
        group.taps = std::move(taps);
        group.outputs.push_back(output++);
        group.inputs.insert(group.inputs.end(), inputs.begin(), inputs.end());
      }
  std::vector<std::vector<SmallMap::Group>> groups(phases);
  for (std::size_t i = 0; i < phases; ++i)
    for (auto& [taps, group] : by_taps[i]) groups[i].push_back(std::move(group));
  return groups;
}

// One group of all: the taps that some of them use; where others read outside, they read the input `zero`.
SmallMap::Group merge(const std::vector<SmallMap::Group>& groups, i64 zero) {
  std::set<i64> used;
  for (const SmallMap::Group& group : groups) used.insert(group.taps.begin(), group.taps.end());
  SmallMap::Group all;
  all.taps.assign(used.begin(), used.end());
  for (const SmallMap::Group& group : groups)
    for (std::size_t o = 0; o < group.outputs.size(); ++o) {
      all.outputs.push_back(group.outputs[o]);
      auto input = group.inputs.begin() + static_cast<std::ptrdiff_t>(o * group.taps.size());
      for (i64 tap : all.taps)
        all.inputs.push_back(std::binary_search(group.taps.begin(), group.taps.end(), tap) ? *input++ : zero);
    }
  return all;
}

// Cycles for a vector of channels and one input channel. Register tiles of three vectors by `positions` take two
// loads or two products a cycle, wait for additions if they have few, and for weights from the second-level cache.
double cycles(const SmallMap::Group& group, i64 images, i64 positions) {
  constexpr double kVectors = kMaxRowVectors, kLatency = 4, kWait = 1.5;
  const i64 all = static_cast<i64>(group.outputs.size()) * images, most = piece(all, positions);
  const double p = static_cast<double>(most);
  const double tap = std::max({0.5 * p * kVectors, 0.5 * (p + kVectors), kLatency}) + kWait;
  return static_cast<double>(ceil_div(all, most) * static_cast<i64>(group.taps.size())) * tap / kVectors;
}

}  // namespace

std::optional<SmallMap> plan_small_map(const Layer& layer, const Call& call, const Packing& packing,
                                       const Target& target, const Schedule& schedule, i64 tasks) {
  const i64 lanes = target.lanes, unit = std::max<i64>(lanes, target.tile_rows), bytes = target.number_bytes;
  if (packing.fused || packing.tile_rows != target.tile_rows || layer.rows % unit != 0 || unit > kMaxRowVectors * lanes)
    return std::nullopt;
  if (schedule.positions == 0) return std::nullopt;
  SmallMap map;
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
  const i64 outputs = map.outputs * map.images, tiles = ceil_div(call.batch, map.images);
  map.chunk = std::clamp<i64>((Limits::sum_bytes / (outputs * bytes) - lanes) / unit * unit, unit, layer.rows);
  while (map.chunk > unit && tiles * layer.groups * ceil_div(layer.rows, map.chunk) < tasks)
    map.chunk = std::max(unit, map.chunk / 2 / unit * unit);
  map.chunk = round_up(piece(layer.rows, map.chunk), unit);

  // With few positions it is better to multiply some zeros than to take the weights several times.
  map.positions = std::min<i64>(kMaxPositions, target.registers / kMaxRowVectors);
  map.groups = group_outputs(schedule.axis, schedule.phases.size());
  for (std::vector<SmallMap::Group>& groups : map.groups) {
    double apart = 0;
    for (const SmallMap::Group& group : groups) apart += cycles(group, map.images, map.positions);
    if (groups.size() > 1) {
      SmallMap::Group all = merge(groups, in);
      const double together = cycles(all, map.images, map.positions);
      if (together < apart) {
        groups = {std::move(all)};
        map.zeros = true;
        apart = together;
      }
    }
    map.cycles += apart;
  }
  map.cycles *= static_cast<double>(tiles * layer.cols * (layer.rows / lanes));
  map.inputs = in + map.zeros;
  map.panel = map.inputs * (packing.columns * map.image_pitch + lanes);
  map.sums = outputs * (map.chunk + lanes);
  return map;
}

std::string explain_small_map(const Layer& layer, const Target& target, const Schedule& schedule) {
  const SmallMap& map = *schedule.small_map;
  std::size_t groups = 0;
  for (const auto& phase : map.groups) groups += phase.size();
  std::ostringstream why;
  why << (layer.transposed ? "transposed convolution" : "convolution") << " of a small map: lanes run along channels, "
      << "register tiles of " << kMaxRowVectors << " vectors of " << target.lanes << " channels x " << map.positions
      << " positions; the " << map.outputs << " outputs of an image fall into " << groups
      << (groups == 1 ? " group that uses" : " groups, each of which uses") << " the same taps"
      << (map.zeros ? ", or zeros where few lie outside" : "") << "; a task computes " << map.images
      << (map.images == 1 ? " image and " : " images and ") << map.chunk << " of " << layer.rows << " channels; "
      << schedule.threads << (schedule.threads == 1 ? " thread" : " threads");
  return why.str();
}

namespace {

template <typename T>
class SmallMapTask {
 public:
  SmallMapTask(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
               const Kernels<T>& kernels, const T* packed, const T* x_end)
      : layer_(layer),
        packing_(packing),
        schedule_(schedule),
        map_(*schedule.small_map),
        kernels_(kernels),
        packed_(packed),
        x_end_(x_end),
        plane_(call.in[0] * call.in[1] * call.in[2]),
        channels_(layer.groups * layer.cols) {}

  // Output channels [first_row, first_row + rows) of one group, of all the outputs of some images.
  void compute(i64 group, i64 first_row, i64 rows, i64 images, const T* bias, const T* x, T* y) {
    group_ = group;
    first_row_ = first_row;
    rows_ = rows;
    images_ = images;
    pitch_ = rows + kernels_.lanes;  // not a power of two: rows that are turned together lie in different cache sets
    panel_ = scratch<T>(static_cast<std::size_t>(map_.panel + map_.sums));
    sums_ = panel_ + map_.panel;
    cut();
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const Block& block = blocks_[i];
      const Reduction& r = *block.reduction;
      const bool first = block.reduction == &schedule_.reductions.front();
      if (i == 0 || block.reduction != blocks_[i - 1].reduction)
        copy_inputs(x + (group * layer_.cols + r.column_first) * plane_, r.column_last - r.column_first);
      fetch_ahead(block, i + 1 < blocks_.size() ? &blocks_[i + 1] : nullptr);
      for (const SmallMap::Group& group : map_.groups[block.phase])
        multiply(group, block, !first, &r == &schedule_.reductions.back() ? bias : nullptr);
    }
    write(y);
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

  void cut() {
    blocks_.clear();
    const i64 lanes = kernels_.lanes, unit = std::max<i64>(lanes, kernels_.tile_rows);  // as many rows as whole tiles
    const i64 most = round_up(piece(rows_, kMaxRowVectors * lanes / unit * unit), unit);
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

  // panel[input][column][image], with zeros behind the inputs if need be. Whole vectors are written: beyond a column
  // with the next one's place, beyond the last one with what is between the inputs.
  void copy_inputs(const T* x, i64 columns) {
    const i64 next = channels_ * plane_;
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

  // While one block is multiplied, the next one is fetched from memory.
  void fetch_ahead(const Block& block, const Block* next) {
    ahead_ = reinterpret_cast<const char*>(next ? next->weights : block.weights);
    ahead_step_ = 0;
    if (!next) return;
    i64 terms = 0;
    for (const SmallMap::Group& group : map_.groups[block.phase])
      terms += ceil_div(static_cast<i64>(group.outputs.size()) * images_, map_.positions) *
               static_cast<i64>(group.taps.size());
    terms *= block.reduction->column_last - block.reduction->column_first;
    if (terms > 0) ahead_step_ = ceil_div(next->size * static_cast<i64>(sizeof(T)), terms);
  }

  void multiply(const SmallMap::Group& group, const Block& block, bool accumulate, const T* bias) {
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
    if (first == last && accumulate && !bias) return;

    i64 w_offset[Limits::offsets], x_offset[Limits::offsets * kMaxPositions], c_offset[kMaxPositions];
    for (i64 t = first; t < last; ++t)
      w_offset[t - first] = group.taps[static_cast<std::size_t>(t)] * columns * packing_.tile_rows;
    ChannelProduct<T> p;
    p.w = block.weights;
    p.w_tile_stride = c.taps * columns * packing_.tile_rows;
    p.w_offset = w_offset;
    p.x = panel_;
    p.x_offset = x_offset;
    p.x_stride = map_.image_pitch;
    p.taps = last - first;
    p.columns = columns;
    p.c = sums_ + block.row;
    p.c_offset = c_offset;
    p.accumulate = accumulate;
    p.bias = bias ? bias + first_row_ + block.row : nullptr;
    // Positions are counted over outputs and, within them, images.
    const i64 all = static_cast<i64>(group.outputs.size()) * images_;
    for (i64 begin = 0, most = piece(all, map_.positions); begin < all; begin += most) {
      const i64 count = std::min(most, all - begin);
      for (i64 q = 0; q < count; ++q) {
        const i64 output = (begin + q) / images_, image = (begin + q) % images_;
        c_offset[q] = (image * map_.outputs + group.outputs[static_cast<std::size_t>(output)]) * pitch_;
        for (i64 t = first; t < last; ++t)
          x_offset[(t - first) * count + q] =
              group.inputs[static_cast<std::size_t>(output * all_taps + t)] * input_pitch_ + image;
      }
      p.ahead = ahead_;
      p.ahead_step = ahead_step_;
      ahead_ += p.taps * columns * ahead_step_;
      kernels_.channel_product[block.rows / kernels_.lanes][count](p);
    }
  }

  // From [image][output][channel] to [image][channel][output].
  void write(T* y) const {
    const i64 whole = map_.outputs / kernels_.lanes * kernels_.lanes;
    for (i64 image = 0; image < images_; ++image) {
      const T* from = sums_ + image * map_.outputs * pitch_;
      T* to = y + (image * layer_.groups * layer_.rows + group_ * layer_.rows + first_row_) * map_.outputs;
      if (whole > 0) kernels_.transpose(from, sums_ + map_.sums, pitch_, whole, rows_, nullptr, to, map_.outputs);
      for (i64 row = 0; row < rows_; ++row)
        for (i64 output = whole; output < map_.outputs; ++output)
          to[row * map_.outputs + output] = from[output * pitch_ + row];
    }
  }

  const Layer& layer_;
  const Packing& packing_;
  const Schedule& schedule_;
  const SmallMap& map_;
  const Kernels<T>& kernels_;
  const T *const packed_, *const x_end_;
  const i64 plane_, channels_;
  i64 group_ = 0, first_row_ = 0, rows_ = 0, images_ = 0, pitch_ = 0, input_pitch_ = 0;
  T *panel_ = nullptr, *sums_ = nullptr;
  const char* ahead_ = nullptr;
  i64 ahead_step_ = 0;
  std::vector<Block> blocks_;
};

}  // namespace

template <typename T>
void execute_small_map(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
                       const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y) {
  const SmallMap& map = *schedule.small_map;
  const i64 chunks = ceil_div(layer.rows, map.chunk), tiles = ceil_div(call.batch, map.images);
  const i64 plane = call.in[0] * call.in[1] * call.in[2];
  const T* x_end = x + call.batch * layer.groups * layer.cols * plane;
  parallel_for(tiles * layer.groups * chunks, schedule.threads, [&](i64 task) {
    const i64 row = task % chunks * map.chunk, group = task / chunks % layer.groups;
    const i64 image = task / chunks / layer.groups * map.images;
    SmallMapTask<T> all(layer, call, packing, schedule, kernels, packed, x_end);
    all.compute(group, row, std::min(map.chunk, layer.rows - row), std::min(map.images, call.batch - image),
                bias ? bias + group * layer.rows : nullptr, x + image * layer.groups * layer.cols * plane,
                y + image * layer.groups * layer.rows * map.outputs);
  });
}

#define UPSCORE_INSTANTIATE(T)                                                                                      \
  template void execute_small_map<T>(const Layer&, const Call&, const Packing&, const Schedule&, const Kernels<T>&, \
                                     const T*, const T*, const T*, T*);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
