#include "geometry.h"

#include <algorithm>
#include <set>

namespace upscore {

std::vector<AxisPhase> axis_residues(i64 kernel, i64 stride, i64 dilation, bool fused) {
  std::vector<AxisPhase> residues(static_cast<std::size_t>(stride));
  for (i64 t = 0; t < kernel; ++t) {
    AxisPhase& p = residues[static_cast<std::size_t>(t * dilation % stride)];
    p.tap.push_back(static_cast<int>(t));
    p.offset.push_back(-(t * dilation / stride));
  }
  if (!fused) return residues;
  std::set<i64> window;
  for (const AxisPhase& p : residues) window.insert(p.offset.begin(), p.offset.end());
  for (AxisPhase& p : residues) {
    AxisPhase full;
    for (auto offset = window.rbegin(); offset != window.rend(); ++offset) {
      auto at = std::find(p.offset.begin(), p.offset.end(), *offset);
      full.tap.push_back(at == p.offset.end() ? -1 : p.tap[static_cast<std::size_t>(at - p.offset.begin())]);
      full.offset.push_back(*offset);
    }
    p = std::move(full);
  }
  return residues;
}

AxisPlan plan_axis(i64 in, i64 out, i64 kernel, i64 stride, i64 dilation, i64 lo, bool transposed, bool fused) {
  AxisPlan axis;
  axis.in = in;
  axis.out = out;
  if (!transposed) {
    axis.positions = out;
    axis.in_step = stride;
    AxisPhase all;
    for (i64 t = 0; t < kernel; ++t) {
      all.tap.push_back(static_cast<int>(t));
      all.offset.push_back(t * dilation - lo);
    }
    axis.phases.push_back(std::move(all));
    return axis;
  }
  axis.out_step = stride;
  std::vector<AxisPhase> residues = axis_residues(kernel, stride, dilation, fused);
  if (fused) {
    // Position j stands for q = j + first, where y + lo = q*stride + residue.
    const i64 first = floor_div(lo, stride);
    axis.positions = floor_div(out - 1 + lo, stride) - first + 1;
    axis.base = first * stride - lo;
    for (AxisPhase& p : residues)
      for (i64& offset : p.offset) offset += first;
    axis.phases = std::move(residues);
    return axis;
  }
  // Phase y0 holds the outputs y = j*stride + y0; its residue is (y0 + lo) mod stride.
  axis.positions = ceil_div(out, stride);
  for (i64 y0 = 0; y0 < stride; ++y0) {
    const i64 q = floor_div(y0 + lo, stride);
    AxisPhase p = residues[static_cast<std::size_t>(y0 + lo - q * stride)];
    for (i64& offset : p.offset) offset += q;
    axis.phases.push_back(std::move(p));
  }
  return axis;
}

}  // namespace upscore
