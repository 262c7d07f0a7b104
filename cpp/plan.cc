#include "plan.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <sstream>

namespace upscore {
namespace {

constexpr i64 kPanelBytes = 448 << 10;  // of input, shared by all rows of a task: stays in a core's L2
constexpr i64 kSumBytes = 512 << 10;    // of partial sums
constexpr i64 kTerms = 512;             // added in registers before they are added to memory: accuracy
constexpr i64 kOffsets = 64;            // window places in one panel
constexpr i64 kSerialWork = 1 << 19;    // multiplications below which waking another thread costs more
constexpr double kCopy = 3;             // cycles to copy a vector into a panel
constexpr i64 kStreamBytes = 12 << 20;  // outputs beyond this do not stay in the caches
constexpr i64 kStaging = 4096;          // numbers put together before they are written
constexpr i64 kShortRow = 64;           // positions in a row below which rows are put together
constexpr int kMaxVectors = 12;         // vectors of positions in a tile

i64 round_up(i64 a, i64 b) { return ceil_div(a, b) * b; }

// Fusing pays when the rows of one phase do not fill a register tile, or when it costs nothing because no
// two inputs meet; it may not multiply many structural zeros.
bool worth_fusing(const Layer& layer, const Target& target, i64 phases) {
  if (!layer.transposed || phases == 1 || phases > 4096) return false;
  double filled = 1;
  bool single = true;
  for (int a = 0; a < kAxes; ++a) {
    const auto residues = axis_residues(layer.kernel[a], layer.stride[a], layer.dilation[a], true);
    filled *= static_cast<double>(layer.kernel[a]) /
              static_cast<double>(residues[0].tap.size() * residues.size());
    single = single && residues[0].tap.size() == 1;
  }
  return filled > 0.6 && (single || layer.rows < 2 * target.tile_rows);
}

}  // namespace

int Target::vectors(int rows) const { return std::min(6, registers / rows); }

Packing plan_packing(const Layer& layer, const Target& target) {
  Packing packing;
  std::vector<AxisPhase> axis[kAxes];
  if (layer.transposed)
    for (int a = 0; a < kAxes; ++a) packing.phases *= layer.stride[a];
  packing.fused = worth_fusing(layer, target, packing.phases);
  for (int a = 0; a < kAxes; ++a) {
    if (layer.transposed) {
      axis[a] = axis_residues(layer.kernel[a], layer.stride[a], layer.dilation[a], packing.fused);
    } else {
      axis[a].resize(1);
      axis[a][0].tap.resize(static_cast<std::size_t>(layer.kernel[a]));
      std::iota(axis[a][0].tap.begin(), axis[a][0].tap.end(), 0);
    }
  }
  const i64 vector_bytes = target.lanes * target.number_bytes;
  packing.tile_rows = static_cast<int>(
      std::clamp<i64>(kSumBytes / (packing.phases * vector_bytes), 1, target.tile_rows));
  for (const AxisPhase& z : axis[0])
    for (const AxisPhase& y : axis[1])
      for (const AxisPhase& x : axis[2]) {
        std::vector<i64> taps;
        for (int tz : z.tap)
          for (int ty : y.tap)
            for (int tx : x.tap)
              taps.push_back(tz < 0 || ty < 0 || tx < 0
                                 ? -1
                                 : (tz * layer.kernel[1] + ty) * layer.kernel[2] + tx);
        const i64 count = static_cast<i64>(taps.size());
        if (packing.fused && !packing.classes.empty()) {
          PhaseClass& all = packing.classes[0];
          all.tap.insert(all.tap.end(), taps.begin(), taps.end());
          ++all.phases;
          continue;
        }
        packing.classes.push_back({std::move(taps), count, 1, 0});
      }
  i64 most_taps = 1;
  for (PhaseClass& c : packing.classes) {
    c.weights = packing.per_column;
    packing.per_column += c.taps * layer.rows * c.phases;
    most_taps = std::max(most_taps, c.taps);
  }
  packing.columns = std::clamp<i64>(kTerms / std::min(most_taps, kOffsets), 1, layer.cols);
  return packing;
}

Window plain_window(std::vector<Size> offsets) {
  Window w;
  w.lines = offsets;
  w.shift_of.assign(offsets.size(), 0);
  w.line_of.resize(offsets.size());
  std::iota(w.line_of.begin(), w.line_of.end(), 0);
  w.offsets = std::move(offsets);
  return w;
}

Window shared_window(std::vector<Size> offsets) {
  Window w;
  if (offsets.empty()) return w;
  auto [low, high] = std::minmax_element(offsets.begin(), offsets.end(),
                                         [](const Size& a, const Size& b) { return a[2] < b[2]; });
  const i64 first = (*low)[2];
  w.extra = (*high)[2] - first;
  for (const Size& o : offsets) {
    if (w.lines.empty() || w.lines.back()[0] != o[0] || w.lines.back()[1] != o[1])
      w.lines.push_back({o[0], o[1], first});
    w.line_of.push_back(static_cast<i64>(w.lines.size()) - 1);
    w.shift_of.push_back(o[2] - first);
  }
  w.offsets = std::move(offsets);
  return w;
}

Schedule plan_schedule(const Layer& layer, const Call& call, const Packing& packing, const Target& target,
                       int threads) {
  Schedule s;
  s.positions = call.batch;
  for (int a = 0; a < kAxes; ++a) {
    s.axis[a] = plan_axis(call.in[a], call.out[a], layer.kernel[a], layer.stride[a], layer.dilation[a],
                          call.lo[a], layer.transposed, packing.fused);
    s.positions *= s.axis[a].positions;
  }

  // The distinct offsets in the order in which every phase's taps come.
  std::map<Size, i64> index;
  const i64 sign = layer.transposed ? -1 : 1;
  auto each_tap = [&](const AxisPhase& z, const AxisPhase& y, const AxisPhase& x, auto&& visit) {
    for (i64 oz : z.offset)
      for (i64 oy : y.offset)
        for (i64 ox : x.offset) visit(Size{sign * oz, sign * oy, sign * ox});
  };
  auto each_phase = [&](auto&& visit) {
    for (std::size_t z = 0; z < s.axis[0].phases.size(); ++z)
      for (std::size_t y = 0; y < s.axis[1].phases.size(); ++y)
        for (std::size_t x = 0; x < s.axis[2].phases.size(); ++x) {
          visit(z, y, x);
          if (packing.fused) return;
        }
  };
  i64 taps = 0;
  each_phase([&](std::size_t z, std::size_t y, std::size_t x) {
    each_tap(s.axis[0].phases[z], s.axis[1].phases[y], s.axis[2].phases[x], [&](const Size& o) {
      index.emplace(o, 0);
      ++taps;
    });
  });
  std::vector<Size> offsets;
  for (auto& [offset, place] : index) {
    place = static_cast<i64>(offsets.size());
    offsets.push_back({sign * offset[0], sign * offset[1], sign * offset[2]});
  }
  i64 most_taps = 1;
  each_phase([&](std::size_t z, std::size_t y, std::size_t x) {
    PhaseTaps phase;
    each_tap(s.axis[0].phases[z], s.axis[1].phases[y], s.axis[2].phases[x],
             [&](const Size& o) { phase.offset_of.push_back(index[o]); });
    if (!packing.fused && layer.transposed) {
      const i64 at[kAxes] = {static_cast<i64>(z), static_cast<i64>(y), static_cast<i64>(x)};
      for (int a = 0; a < kAxes; ++a) {
        const i64 stride = layer.stride[a], shifted = at[a] + call.lo[a];
        phase.packed_class = phase.packed_class * stride + (shifted - floor_div(shifted, stride) * stride);
      }
    }
    most_taps = std::max(most_taps, static_cast<i64>(phase.offset_of.size()));
    s.phases.push_back(std::move(phase));
  });

  // Rows or not: lines that are shared cost fewer copies, whole vectors within rows waste lanes.
  const i64 lanes = target.lanes, bytes = target.number_bytes, row = s.axis[2].positions;
  s.window = shared_window(offsets);
  const double products = 0.5 * static_cast<double>(taps * layer.rows * (packing.fused ? packing.phases : 1));
  const double used = static_cast<double>(row) / static_cast<double>(round_up(row, lanes));
  const double rows_cost = (products + kCopy * static_cast<double>(s.window.lines.size())) / used;
  const double plain_cost =
      products + kCopy * static_cast<double>(offsets.size()) * (1 + static_cast<double>(lanes) / static_cast<double>(row));
  s.by_rows = s.axis[2].in_step == 1 && s.window.extra < 4096 && rows_cost <= plain_cost;
  if (!s.by_rows) s.window = plain_window(std::move(offsets));

  // Reductions: so many terms in registers at once, and a panel that fits.
  const i64 window = static_cast<i64>(s.window.offsets.size());
  const i64 places = std::clamp<i64>(window, 1, kOffsets);
  for (i64 c = 0; c < layer.cols; c += packing.columns)
    for (i64 o = 0; o < std::max<i64>(window, 1); o += places)
      s.reductions.push_back({o, std::min(o + places, window), c, std::min(c + packing.columns, layer.cols)});
  i64 lines = 1;
  for (const Reduction& r : s.reductions)
    if (r.offset_last > r.offset_first)
      lines = std::max(lines, s.window.line_of[static_cast<std::size_t>(r.offset_last - 1)] -
                                  s.window.line_of[static_cast<std::size_t>(r.offset_first)] + 1);

  // Tiles: as many positions as the panel and the sums leave room for. The sums of a task hold some
  // channels times some strips; a strip is all phases of the last axis for one phase of the others.
  const i64 step = s.axis[2].out_step, strips = packing.phases / step;
  const int widest = target.vectors(packing.tile_rows);
  const i64 align = packing.fused ? packing.tile_rows / std::gcd<i64>(packing.tile_rows, packing.phases)
                                  : packing.tile_rows;
  const i64 least = std::min(align, layer.rows) * (packing.fused ? packing.phases : step);
  const i64 by_panel = kPanelBytes / (lines * packing.columns * lanes * bytes);
  const i64 by_sums = kSumBytes / (least * lanes * bytes);
  i64 vectors = std::clamp<i64>(std::min(by_panel, by_sums), 1, kMaxVectors);
  if (vectors > widest) vectors -= vectors % widest;

  const i64 work = s.positions * layer.groups * layer.rows * layer.cols * layer.taps() / packing.phases;
  s.threads = work < kSerialWork ? 1 : threads;
  // Enough tasks to share out evenly: first fewer positions per task, then fewer channels. Tiles are cut evenly.
  const i64 length = s.by_rows ? row : s.positions;
  auto tiles = [&](i64 v) { return ceil_div(length, v * lanes) * (s.by_rows ? s.positions / row : 1); };
  const i64 enough = s.threads == 1 ? 1 : 4 * s.threads;
  if (length > 0) {
    while (vectors > widest && tiles(vectors) * layer.groups < enough) vectors -= widest;
    vectors = ceil_div(ceil_div(length, ceil_div(length, vectors * lanes)), lanes);
    s.tiles = tiles(vectors);
  }
  s.tile = vectors * lanes;
  const i64 room = kSumBytes / (s.tile * bytes * step);
  s.strips = packing.fused ? strips : std::clamp<i64>(room / align, 1, strips);
  s.strips = ceil_div(strips, ceil_div(strips, s.strips));
  s.chunk = std::clamp<i64>(room / s.strips / align * align, align, round_up(layer.rows, align));
  auto tasks = [&] {
    return s.tiles * layer.groups * ceil_div(layer.rows, s.chunk) * ceil_div(strips, s.strips);
  };
  while (s.chunk > align && tasks() < enough) s.chunk = std::max(align, s.chunk / 2 / align * align);
  s.panel = lines * packing.columns * (s.tile + s.window.extra) + 2 * lanes;
  s.panel = round_up(s.panel, lanes);
  s.sums = std::min(s.chunk, layer.rows) * s.strips * step * s.tile + kStaging;  // reads may pass the end
  const i64 out_bytes = call.batch * layer.groups * layer.rows * call.out[0] * call.out[1] * call.out[2] * bytes;
  s.stream = out_bytes > kStreamBytes;
  s.staged = s.stream || row < kShortRow;
  s.staging = kStaging + 16 * step * lanes;

  std::ostringstream why;
  why << (layer.transposed ? "transposed convolution" : "convolution") << ": " << packing.phases
      << (packing.phases == 1 ? " phase, " : " phases, ")
      << (packing.fused ? "fused into one product because they share a window of "
                        : "each with its own taps in a window of ")
      << window << (window == 1 ? " input; " : " inputs; ") << "tiles of " << packing.tile_rows
      << " rows x " << std::min<i64>(widest, vectors) << " vectors of " << lanes << " positions; a task computes "
      << s.tile << " positions "
      << (s.by_rows ? "of one row, whose inputs are copied once per line of the window, "
                    : "across rows, whose inputs are copied once per window place because rows are short, ")
      << "and " << std::min(s.chunk, layer.rows) << " of " << layer.rows << " channels; at most "
      << packing.columns * std::min(most_taps, places) << " terms are summed in registers; the output is "
      << (s.stream ? "larger than the caches and written past them; " : "written through the caches; ")
      << s.threads << (s.threads == 1 ? " thread" : " threads");
  s.why = why.str();
  return s;
}

}  // namespace upscore
