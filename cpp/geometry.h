// The normal form inside the engine: three axes, the leading ones of size 1 where a layer has fewer.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace upscore {

using i64 = std::int64_t;
constexpr int kAxes = 3;
using Size = std::array<i64, kAxes>;

// What does not change with the input's size.
struct Layer {
  Size kernel{1, 1, 1}, stride{1, 1, 1}, dilation{1, 1, 1};
  i64 groups = 1;
  i64 rows = 0;  // output channels of one group
  i64 cols = 0;  // input channels of one group
  // true: the input is coarse and steps by the stride over the output (transposed convolution).
  // false: the adjoint, whose input is dense and steps by the stride.
  bool transposed = true;

  i64 taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  bool operator==(const Layer&) const = default;
};

// One call: sizes of input and output, and the crop before.
struct Call {
  i64 batch = 0;
  Size in{1, 1, 1}, out{1, 1, 1}, lo{0, 0, 0};
  bool reads_last = false, writes_last = false;  // channels last in memory: of the input, of the output
  bool operator==(const Call&) const = default;
};

// The taps that one residue of one axis uses: kernel index and the input offset it reads. Tap -1 is a
// structural zero, there to give all residues the same offsets.
struct AxisPhase {
  std::vector<int> tap;
  std::vector<i64> offset;
};

// One axis as the kernels see it: output base + position * out_step + phase is fed by
// input position * in_step + offset.
struct AxisPlan {
  i64 in = 1, out = 1;
  i64 positions = 1;
  i64 in_step = 1, out_step = 1;
  i64 base = 0;
  std::vector<AxisPhase> phases;
};

// `fused`: all residues share one window of offsets (missing taps are zeros), positions run over the
// inputs; otherwise each residue has just its own taps and positions run over the outputs.
AxisPlan plan_axis(i64 in, i64 out, i64 kernel, i64 stride, i64 dilation, i64 lo, bool transposed, bool fused);

// The taps per residue r = (t*d) mod s in the order in which weights are packed. Independent of sizes.
std::vector<AxisPhase> axis_residues(i64 kernel, i64 stride, i64 dilation, bool fused);

inline i64 floor_div(i64 a, i64 b) { return a / b - ((a % b != 0) && ((a < 0) != (b < 0))); }
inline i64 ceil_div(i64 a, i64 b) { return floor_div(a + b - 1, b); }
inline i64 round_up(i64 a, i64 b) { return ceil_div(a, b) * b; }
// The largest of equal pieces of at most `most`.
inline i64 piece(i64 all, i64 most) { return ceil_div(all, ceil_div(all, most)); }

}  // namespace upscore
