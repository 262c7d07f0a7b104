#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>

#include "minimal.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kMostPhases = 256;
constexpr i64 kMostVectors = 6;            // of sets in a tile, written channels last; kMostTiles sets otherwise
constexpr i64 kInputBytes = 1024 << 10;    // transformed inputs of a tile, all channels
constexpr i64 kProductBytes = 448 << 10;   // products of a chunk of channels
constexpr i64 kSumBytes = 256 << 10;       // outputs of one channel
constexpr i64 kLastSumBytes = 800 << 10;   // of all channels, where they are written next to each other;
constexpr i64 kFewInputBytes = 512 << 10;  // inputs then
constexpr i64 kTurnedBytes = 288 << 10;    // inputs of a tile that are turned together
constexpr i64 kTerms = 256;                // in registers: fewer than directly, for the transforms cost accuracy
constexpr i64 kSlack = 4096;               // reads may pass the end

// Cycles, as fitted to 6,870 random layers on AVX-512 (of a Zen 5, less 10 % for a Zen 4); the direct way has an
// estimate of its own, in the schedule.
constexpr double kProduct = 0.31;  // a vector times a weight, added
constexpr double kWeightByte = 0.115;
constexpr double kInput = 8.4;       // a vector of inputs copied and transformed
constexpr double kInputRow = 5.7;    // to begin with a row of them
constexpr double kOutput = 6.8;      // a vector of products transformed back
constexpr double kWritten = 2.7;     // a vector of outputs, more than in the direct way
constexpr double kWrittenRow = 6.3;  // a row of them
constexpr double kLast = 1.35;       // of all of them, channels last
constexpr double kTask = 500;
constexpr double kSmall = 5e4;  // in the direct way: not worth it

MinimalPacking::Line split_line(const MinimalAxis* axis, i64 line) {
  i64 at[kAxes];
  for (int a = kAxes - 1; a >= 0; --a) {
    at[a] = line % axis[a].lines();
    line /= axis[a].lines();
  }
  MinimalPacking::Line split{0, 0};
  for (std::size_t a = 0; a < kAxes; ++a) {
    if (axis[a].filtered)
      split.point = split.point * 4 + at[a];
    else
      split.tap = split.tap * axis[a].window + at[a];
  }
  return split;
}

// Sums of a set that wait to be written, if all channels are written together.
i64 numbers_together(const Layer& layer, const MinimalPacking& packing) {
  i64 numbers = layer.rows;
  for (std::size_t a = 0; a < kAxes; ++a)
    numbers *= packing.axis[a].outputs() * (packing.strips && a < 2 ? 1 : layer.stride[a]);
  return numbers;
}

// Of a channel, the most inputs that a tile reads, each row in whole vectors; 0 where rows are not read one by one.
i64 turned_line(const MinimalPacking& packing, const MinimalSchedule& s, const Target& target) {
  if (!packing.axis[2].filtered) return 0;
  const i64 segments = std::min(s.width, s.width / s.axis[2].positions + 2);
  const i64 row = s.width * s.axis[2].in_step + segments * (4 + target.lanes);
  const i64 line = (ceil_div(packing.lines / 4 * row, target.lanes) | 1) * target.lanes;  // not a power of two
  return line * target.lanes * target.number_bytes <= kTurnedBytes ? line : 0;
}

}  // namespace

std::optional<MinimalPacking> plan_minimal_packing(const Layer& layer, const Target& target, bool last) {
  if (!layer.transposed || layer.rows * layer.cols == 1) return {};  // channels that do not mix save no products
  MinimalPacking p;
  std::vector<AxisPhase> residues[kAxes];
  for (std::size_t a = 0; a < kAxes; ++a) {
    if (layer.stride[a] > kMostPhases || layer.kernel[a] > kMostLines * layer.stride[a]) return {};
    residues[a] = axis_residues(layer.kernel[a], layer.stride[a], layer.dilation[a], true);
    const std::vector<i64>& offset = residues[a][0].offset;  // falling
    MinimalAxis& axis = p.axis[a];
    axis.window = static_cast<i64>(offset.size());
    const bool contiguous = offset.front() - offset.back() == axis.window - 1;
    axis.filtered = contiguous && (axis.window == 2 || axis.window == 3);
    if (axis.filtered) p.filtered.push_back(a);
    if (axis.filtered && a < 2) p.last_leading = static_cast<int>(a);
    p.points *= axis.points();
    p.taps *= axis.filtered ? 1 : axis.window;
    p.lines *= axis.lines();
    p.phases *= layer.stride[a];
    if (p.lines > kMostLines || p.phases > kMostPhases) return {};
  }
  if (p.filtered.empty()) return {};
  for (i64 line = 0; line < p.lines; ++line) p.line.push_back(split_line(p.axis, line));

  // Along an axis, point 0 takes the first tap alone, the last point the last tap, those between a mixture.
  auto present = [&](std::size_t a, i64 phase, i64 point) {
    const std::vector<int>& tap = residues[a][static_cast<std::size_t>(phase)].tap;
    if (point == 0 && p.axis[a].filtered) return tap.back() >= 0;
    if (point == 3) return tap.front() >= 0;
    return std::any_of(tap.begin(), tap.end(), [](int t) { return t >= 0; });
  };
  const i64 px = p.axis[2].points(), py = p.axis[1].points(), sx = layer.stride[2], sy = layer.stride[1];
  p.before.push_back(0);
  for (i64 point = 0; point < p.points; ++point) {
    p.phases_of.emplace_back();
    for (i64 phase = 0; phase < p.phases; ++phase) {
      const bool here = present(2, phase % sx, point % px) && present(1, phase / sx % sy, point / px % py) &&
                        present(0, phase / (sx * sy), point / (px * py));
      p.rank.push_back(here ? static_cast<i64>(p.phases_of.back().size()) : -1);
      if (here) p.phases_of.back().push_back(phase);
    }
    p.before.push_back(p.before.back() + static_cast<i64>(p.phases_of.back().size()));
  }
  for (i64 phase = 0; phase < p.phases; ++phase) {
    const std::vector<int>& z = residues[0][static_cast<std::size_t>(phase / (sx * sy))].tap;
    const std::vector<int>& y = residues[1][static_cast<std::size_t>(phase / sx % sy)].tap;
    const std::vector<int>& x = residues[2][static_cast<std::size_t>(phase % sx)].tap;
    for (auto tz = z.rbegin(); tz != z.rend(); ++tz)
      for (auto ty = y.rbegin(); ty != y.rend(); ++ty)
        for (auto tx = x.rbegin(); tx != x.rend(); ++tx)
          p.tap.push_back(*tz < 0 || *ty < 0 || *tx < 0 ? -1 : (*tz * layer.kernel[1] + *ty) * layer.kernel[2] + *tx);
  }
  const bool full = p.before.back() == p.points * p.phases;
  p.block = full ? target.tile_rows / std::gcd<i64>(target.tile_rows, p.phases) : target.tile_rows;
  p.last = last && layer.rows % target.lanes == 0;
  // Sums of all would leave room for narrow tiles only.
  p.strips = full && sx % target.tile_rows == 0 &&
             numbers_together(layer, p) * target.lanes * target.number_bytes * kMostVectors > kLastSumBytes;
  p.place.assign(p.rank.size(), -1);
  for (i64 phase = 0, places = 0; phase < p.phases; ++phase)
    for (i64 point = 0; point < p.points; ++point) {
      const auto at = static_cast<std::size_t>(point * p.phases + phase);
      if (p.rank[at] >= 0) p.place[at] = places++;
    }
  return p;
}

SetAxis plan_sets(const Layer& layer, const Call& call, const MinimalAxis& axis, std::size_t a) {
  SetAxis sets;
  sets.plan =
      plan_axis(call.in[a], call.out[a], layer.kernel[a], layer.stride[a], layer.dilation[a], call.lo[a], true, true);
  const std::vector<i64>& offset = sets.plan.phases[0].offset;
  sets.reach.assign(offset.rbegin(), offset.rend());
  while (axis.filtered && sets.reach.size() < 4) sets.reach.push_back(sets.reach.back() + 1);
  sets.plan.positions = ceil_div(sets.plan.positions, axis.outputs());
  sets.plan.in_step = axis.outputs();
  sets.plan.out_step *= axis.outputs();
  return sets;
}

std::optional<MinimalSchedule> plan_minimal(const Layer& layer, const Call& call, const MinimalPacking& packing,
                                            const Target& target, const Team& team, double limit) {
  if (limit < kSmall) return {};
  const int threads = team.threads;
  MinimalSchedule s;
  const i64 lanes = target.lanes, bytes = target.number_bytes;
  double image = 1;
  i64 steps = 1;
  std::vector<i64> reach[kAxes];
  for (std::size_t a = 0; a < kAxes; ++a) {
    SetAxis sets = plan_sets(layer, call, packing.axis[a], a);
    s.axis[a] = std::move(sets.plan);
    reach[a] = std::move(sets.reach);
    image *= static_cast<double>(s.axis[a].positions);
    steps *= s.axis[a].out_step;
  }
  if (image == 0 || call.batch == 0) return {};

  const i64 columns = packing.last ? round_up(layer.cols, lanes) : layer.cols;
  const double rows = static_cast<double>(packing.before.back() * packing.taps * layer.rows);
  const double cols = static_cast<double>(layer.cols), written = static_cast<double>(steps * layer.rows);
  const double lines = static_cast<double>(packing.lines * columns),
               weight_bytes = rows * cols * static_cast<double>(bytes);
  i64 most = std::min({kMostTiles / lanes, kInputBytes / (packing.lines * layer.cols * lanes * bytes),
                       kProductBytes / (packing.before.back() * std::min(packing.block, layer.rows) * lanes * bytes),
                       kSumBytes / (steps * lanes * bytes)});
  if (most < 1) return {};
  // Of so many vectors of sets: their inputs, and everything else but the weights.
  // Channels last, rows of sets and incomplete vectors of them cost nothing, since lanes run along channels.
  const double rows_of_vector =
      packing.last ? 0 : static_cast<double>(lanes) / static_cast<double>(s.axis[2].positions);
  const double runs_of_vector = std::max(rows_of_vector, static_cast<double>(lanes) / static_cast<double>(kMostTiles));
  auto input_cycles = [&](double vectors) { return vectors * lines * (kInput + kInputRow * runs_of_vector); };
  auto output_cycles = [&](double vectors, double loads) {
    return vectors * (rows * (cols * kProduct * loads + kOutput) + written * (kWritten + kWrittenRow * rows_of_vector));
  };
  const double sets = image / static_cast<double>(lanes), image_vectors = packing.last ? sets : std::ceil(sets);
  s.cycles = input_cycles(image_vectors) + output_cycles(image_vectors, 1) +
             std::ceil(image_vectors / static_cast<double>(most)) * (weight_bytes * kWeightByte + kTask);
  if (packing.last) s.cycles *= kLast;
  if (s.cycles >= limit) return {};

  std::vector<Size> offsets;
  for (i64 z : reach[0])
    for (i64 y : reach[1])
      for (i64 x : reach[2]) offsets.push_back({z, y, x});
  s.window = plain_window(std::move(offsets));
  s.positions = call.batch * s.axis[0].positions * s.axis[1].positions * s.axis[2].positions;
  // Tiles are whole vectors of positions; channels last, where rows and columns fill vectors, whole register tiles.
  const i64 block = packing.last ? lanes : packing.block;
  const bool few = call.writes_last && !packing.last;  // sums of all channels wait for each other
  i64 unit = lanes, products = packing.before.back();  // at once
  i64 sums = steps;
  if (packing.last) {
    unit = fitting_positions(piece(layer.rows / lanes, kMaxRowVectors), target.registers);
    products = packing.points;
    most = std::clamp<i64>(
        std::min(kInputBytes / (packing.lines * columns * bytes), kProductBytes / (products * block * bytes)) / unit, 1,
        kMostVectors * lanes / unit);
  }
  if (few) {
    sums = numbers_together(layer, packing);
    if (packing.strips) products = packing.points * layer.stride[2];
    most = std::clamp<i64>(
        std::min({kLastSumBytes / (sums * lanes * bytes), kFewInputBytes / (packing.lines * layer.cols * lanes * bytes),
                  kProductBytes / (products * packing.block * lanes * bytes)}),
        1, kMostVectors);
  }
  const i64 all = ceil_div(s.positions, unit);
  // Narrow tiles read the weights more often, parts of the channels transform the inputs more often, and few tasks
  // leave threads without work.
  const i64 blocks = ceil_div(layer.rows, block);
  double least = 0;
  for (i64 wide = std::min(most, all); wide >= 1; --wide)
    for (i64 parts = 1; parts <= std::min<i64>(blocks, threads == 1 || few ? 1 : 4 * threads); ++parts) {
      const i64 tiles = ceil_div(all, wide), part = ceil_div(blocks, parts);
      const double share = static_cast<double>(part) / static_cast<double>(blocks);
      const double loads = wide % 3 == 0 || packing.last ? 1 : wide > 3 ? 1.05 : wide == 2 ? 1.1 : 1.3;
      const double vectors = static_cast<double>(wide * unit) / static_cast<double>(lanes);
      const double task =
          kTask + input_cycles(vectors) + share * (output_cycles(vectors, loads) + weight_bytes * kWeightByte);
      const double time = turns(tiles * ceil_div(blocks, part) * layer.groups, threads) * task;
      if (least != 0 && time >= least) continue;
      least = time;
      s.tiles = tiles;
      s.part = part * block;
    }
  s.width = ceil_div(all, s.tiles) * unit;
  s.tiles = ceil_div(s.positions, s.width);
  s.parts = ceil_div(layer.rows, s.part);
  s.chunk = std::clamp<i64>(kProductBytes / (products * s.width * bytes) / block * block, block, s.part);
  s.columns = std::clamp<i64>(kTerms / packing.taps, 1, layer.cols);
  s.inputs = packing.lines * (columns * s.width + lanes);
  s.products = products * s.chunk * s.width;
  s.sums = packing.last ? kMostLines * (s.chunk + kTransformedTogether) : sums * s.width + kSlack;
  const i64 together = few ? layer.rows : 1;
  s.writing = plan_writing(s.axis, call.batch * layer.groups * layer.rows, together, sums / together * s.width, target);
  s.line = call.reads_last && !packing.last ? turned_line(packing, s, target) : 0;
  s.threads = threads;
  std::ostringstream why;
  why << "transposed convolution" << (packing.last ? ", channels last" : "") << ": " << packing.phases
      << (packing.phases == 1 ? " phase" : " phases")
      << ", minimal filtering because windows are narrow and the map is large: " << packing.before.back() * packing.taps
      << " products for " << packing.phases;
  for (const MinimalAxis& axis : packing.axis)
    if (axis.filtered) why << " x " << axis.outputs();
  why << " outputs instead of "
      << layer.taps() * packing.axis[0].outputs() * packing.axis[1].outputs() * packing.axis[2].outputs()
      << "; a task computes " << s.width << " sets of outputs of " << std::min(s.part, layer.rows) << " channels; "
      << say_threads(threads);
  s.why = why.str();
  return s;
}

bool writes_last(const Layer& layer, const MinimalPacking& packing, const Target& target) {
  const i64 vector = target.lanes * target.number_bytes;
  return packing.last ||
         (layer.groups == 1 && layer.rows > 1 && numbers_together(layer, packing) * vector <= kLastSumBytes &&
          packing.lines * layer.cols * vector <= kFewInputBytes);
}

}  // namespace upscore
