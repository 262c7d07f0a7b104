#include "plan.h"

#include <algorithm>
#include <numeric>

#include "kernels/kernels.h"

namespace upscore {
namespace {

// How near a product with so many rows comes to the machine's rate: a tile of few rows waits for its loads, which come
// from the second-level cache if there are many columns.
double efficiency(i64 rows, int tile_rows) {
  auto cycles = [](i64 tile) { return tile == 1 ? 6.5 : std::max(static_cast<double>(tile), 3.5) + 1.5; };
  const i64 tail = rows % tile_rows;
  const double all = static_cast<double>(rows / tile_rows) * cycles(tile_rows) + (tail ? cycles(tail) : 0);
  return static_cast<double>(rows) / all;
}

constexpr i64 kFewestColumns = 16, kFewestInLines = 8;  // for the tiles of a matrix unit; for lines of two parts

// Fusing the phases gives products more rows, but multiplies the zeros that make their windows the same.
template <typename Efficiency>
bool worth_fusing(const Layer& layer, i64 phases, Efficiency&& efficiency) {
  if (!layer.transposed || phases == 1 || phases > 4096) return false;
  double filled = 1;
  bool single = true;
  for (std::size_t a = 0; a < kAxes; ++a) {
    const auto residues = axis_residues(layer.kernel[a], layer.stride[a], layer.dilation[a], true);
    filled *= static_cast<double>(layer.kernel[a]) / static_cast<double>(residues[0].tap.size() * residues.size());
    single = single && residues[0].tap.size() == 1;
  }
  const double fused = filled * efficiency(layer.rows * phases);
  const double apart = efficiency(layer.rows);
  return fused > 1.05 * apart || (single && filled == 1);
}

}  // namespace

int Target::vectors(int rows) const { return most_vectors(rows, registers); }

bool writes_together(const Layer& layer) {
  const i64 phases = layer.transposed ? layer.stride[2] : 1;
  return layer.groups == 1 && layer.rows > 1 && layer.rows * phases <= Limits::together;
}

namespace {

i64 phases_of(const Layer& layer) { return layer.transposed ? layer.stride[0] * layer.stride[1] * layer.stride[2] : 1; }

// The taps of each class, and how many columns are summed at once.
void find_classes(const Layer& layer, Packing& packing) {
  std::vector<AxisPhase> axis[kAxes];
  for (int a = 0; a < kAxes; ++a) {
    if (layer.transposed) {
      axis[a] = axis_residues(layer.kernel[a], layer.stride[a], layer.dilation[a], packing.fused);
    } else {
      axis[a].resize(1);
      axis[a][0].tap.resize(static_cast<std::size_t>(layer.kernel[a]));
      std::iota(axis[a][0].tap.begin(), axis[a][0].tap.end(), 0);
    }
  }
  for (const AxisPhase& z : axis[0])
    for (const AxisPhase& y : axis[1])
      for (const AxisPhase& x : axis[2]) {
        std::vector<i64> taps;
        for (int tz : z.tap)
          for (int ty : y.tap)
            for (int tx : x.tap)
              taps.push_back(tz < 0 || ty < 0 || tx < 0 ? -1 : (tz * layer.kernel[1] + ty) * layer.kernel[2] + tx);
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
    packing.per_column += c.taps * packing.rows * c.phases;
    most_taps = std::max(most_taps, c.taps);
  }
  packing.columns = std::clamp<i64>(Limits::terms / std::min(most_taps, Limits::offsets), 1, layer.cols);
}

}  // namespace

Packing plan_packing(const Layer& layer, const Target& target, Order order) {
  Packing packing;
  packing.phases = phases_of(layer);
  packing.vectors = order == Order::kVectors || (order == Order::kLast && layer.rows % target.lanes == 0);
  packing.rows = packing.vectors ? round_up(layer.rows, i64{target.lanes}) : layer.rows;
  packing.fused = !packing.vectors &&
                  worth_fusing(layer, packing.phases, [&](i64 rows) { return efficiency(rows, target.tile_rows); });
  const i64 vector_bytes = target.lanes * target.number_bytes;
  packing.by_phase = order == Order::kLast && packing.fused && writes_together(layer) &&
                     layer.rows * packing.phases * vector_bytes <= Limits::sum_bytes;
  packing.tile_rows =
      packing.vectors
          ? target.lanes
          : static_cast<int>(std::clamp<i64>(Limits::sum_bytes / (packing.phases * vector_bytes), 1, target.tile_rows));
  find_classes(layer, packing);
  return packing;
}

std::optional<Packing> plan_bf16_packing(const Layer& layer, const Target& target, bool positions) {
  Packing packing;
  packing.phases = phases_of(layer);
  const i64 vector_bytes = target.lanes * target.number_bytes;
  packing.few = positions && layer.cols <= kBf16Few;
  if (!target.bf16 || layer.cols < (packing.few ? kFewestInLines : kFewestColumns) ||
      packing.phases * kBf16Rows * vector_bytes > Limits::sum_bytes)
    return std::nullopt;
  packing.bf16 = true;
  packing.positions = positions;
  packing.fused = worth_fusing(layer, packing.phases, [&](i64 rows) {
    return positions ? 1 : static_cast<double>(rows) / static_cast<double>(round_up(rows, kBf16Rows));
  });
  packing.tile_rows = kBf16Rows;
  packing.rows = round_up(
      layer.rows, packing.fused && !positions ? kBf16Rows / std::gcd(i64{kBf16Rows}, packing.phases) : kBf16Rows);
  find_classes(layer, packing);
  packing.columns = std::min(round_up(packing.columns, kBf16Terms), layer.cols);
  return packing;
}

}  // namespace upscore
