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
constexpr i64 kShortRun = 32;           // positions in a row below which an index beats runs
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
  for (PhaseClass& c : packing.classes) {
    c.weights = packing.group_size;
    packing.group_size += c.taps * layer.cols * layer.rows * c.phases;
  }
  return packing;
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
    const i64 limit = packing.fused ? 1 : 1 << 30;
    i64 seen = 0;
    for (std::size_t z = 0; z < s.axis[0].phases.size(); ++z)
      for (std::size_t y = 0; y < s.axis[1].phases.size(); ++y)
        for (std::size_t x = 0; x < s.axis[2].phases.size(); ++x) {
          if (seen++ == limit) return;
          visit(z, y, x);
        }
  };
  each_phase([&](std::size_t z, std::size_t y, std::size_t x) {
    each_tap(s.axis[0].phases[z], s.axis[1].phases[y], s.axis[2].phases[x],
             [&](const Size& o) { index.emplace(o, 0); });
  });
  for (auto& [offset, place] : index) {
    place = static_cast<i64>(s.offsets.size());
    s.offsets.push_back({sign * offset[0], sign * offset[1], sign * offset[2]});
  }
  i64 most_taps = 0;
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

  // Reductions: so many terms in registers at once, and a panel that fits.
  const i64 window = static_cast<i64>(s.offsets.size());
  const i64 places = std::clamp<i64>(window, 1, kOffsets);
  const i64 columns =
      std::clamp<i64>(kTerms / std::max<i64>(1, std::min(most_taps, places)), 1, layer.cols);
  for (i64 c = 0; c < layer.cols; c += columns)
    for (i64 o = 0; o < std::max<i64>(window, 1); o += places)
      s.reductions.push_back({o, std::min(o + places, window), c, std::min(c + columns, layer.cols)});

  // Tiles: as many positions as the panel and the sums leave room for.
  const i64 lanes = target.lanes, bytes = target.number_bytes;
  const int widest = target.vectors(packing.tile_rows);
  const i64 align = packing.fused ? packing.tile_rows / std::gcd<i64>(packing.tile_rows, packing.phases)
                                  : packing.tile_rows;
  const i64 by_panel = kPanelBytes / (places * columns * lanes * bytes);
  const i64 by_sums = kSumBytes / (std::min(align, layer.rows) * packing.phases * lanes * bytes);
  i64 vectors = std::clamp<i64>(std::min(by_panel, by_sums), 1, kMaxVectors);
  vectors = std::min(vectors, ceil_div(std::max<i64>(s.positions, 1), lanes));
  if (vectors > widest) vectors -= vectors % widest;

  const i64 work = s.positions * layer.groups * layer.rows * layer.cols * std::max<i64>(1, layer.taps());
  s.threads = work < kSerialWork ? 1 : threads;
  // Enough tasks to share out evenly: first fewer positions per task, then fewer channels.
  auto tasks = [&](i64 v, i64 chunk) {
    return ceil_div(s.positions, v * lanes) * layer.groups * ceil_div(layer.rows, chunk);
  };
  const i64 enough = s.threads == 1 ? 1 : 4 * s.threads;
  while (vectors > widest && tasks(vectors, layer.rows) < enough) vectors -= widest;
  s.tile = vectors * lanes;
  s.chunk = std::clamp<i64>(kSumBytes / (packing.phases * s.tile * bytes) / align * align, align,
                            round_up(layer.rows, align));
  while (s.chunk > align && tasks(vectors, s.chunk) < enough)
    s.chunk = std::max(align, s.chunk / 2 / align * align);
  s.panel = places * columns * s.tile;
  s.sums = std::min(s.chunk, layer.rows) * packing.phases * s.tile;
  s.indexed = s.axis[2].positions < kShortRun &&
              call.batch * layer.groups * layer.cols * call.in[0] * call.in[1] * call.in[2] < (i64{1} << 31);

  std::ostringstream why;
  why << (layer.transposed ? "transposed convolution" : "convolution") << ": " << packing.phases
      << (packing.phases == 1 ? " phase, " : " phases, ")
      << (packing.fused ? "fused into one product because they share a window of " : "each with its own taps in a window of ")
      << window << (window == 1 ? " input; " : " inputs; ") << "tiles of " << packing.tile_rows
      << " rows x " << widest << " vectors of " << lanes << " positions; " << s.tile
      << " positions and " << std::min(s.chunk, layer.rows) << " of " << layer.rows
      << " channels a task; sums of at most " << columns * std::min(std::max<i64>(most_taps, 1), places)
      << " terms in registers; rows of " << s.axis[2].positions << " positions are copied "
      << (s.indexed ? "through an index" : "as runs") << "; " << s.threads
      << (s.threads == 1 ? " thread" : " threads");
  s.why = why.str();
  return s;
}

}  // namespace upscore
