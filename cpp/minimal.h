// Minimal filtering (Winograd, "Arithmetic Complexity of Computations", 1980; for networks Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", 2016). Fused phases read one window of inputs. Where it is two or
// three inputs wide along an axis, four products give three outputs of two taps, or two outputs of three, for what
// takes six: four consecutive inputs are transformed by sums and differences, multiplied by transformed weights,
// and the sums are transformed back. Several axes save 1.5 times each.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/kernels.h"
#include "schedule.h"

namespace upscore {

constexpr i64 kMostLines = 64;             // inputs of a set of outputs
constexpr i64 kTransformedTogether = 256;  // numbers of an output, channels last

struct MinimalAxis {
  i64 window = 1;         // inputs that the phases read
  bool filtered = false;  // four points; otherwise its taps are summed as they are
  i64 points() const { return filtered ? 4 : 1; }
  i64 outputs() const { return filtered ? 5 - window : 1; }
  i64 lines() const { return filtered ? 4 : window; }
};

// What depends on the layer alone. A point is one of the transformed products; a row is a phase of a channel.
struct MinimalPacking {
  // As a point of the filtered axes and a tap of the others.
  struct Line {
    i64 point, tap;
  };
  MinimalAxis axis[kAxes];
  i64 points = 1, taps = 1, lines = 1, phases = 1;
  std::vector<std::size_t> filtered;        // axes
  int last_leading = -1;                    // filtered axis before the last axis, if any
  std::vector<Line> line;                   // of the window
  std::vector<std::vector<i64>> phases_of;  // per point, those with weights there: single taps have zeros
  std::vector<i64> before;                  // per point, phases of the points before it; and of all at the end
  std::vector<i64> rank;                    // per point and phase, its place in phases_of, or -1
  std::vector<i64> place;                   // the same, its place among all, phase by phase
  std::vector<i64> tap;                     // per phase and window place, the offsets ascending: kernel index or -1
  i64 block = 1;                            // output channels that are packed together
  bool last = false;                        // for channels last: rows of one phase lie together, in vectors
  bool strips = false;                      // written channels last, a phase of the leading axes at a time

  // The place of a line among transformed inputs, which are those of point after point.
  i64 line_place(i64 number) const {
    const Line& l = line[static_cast<std::size_t>(number)];
    return l.point * taps + l.tap;
  }
};

// Nothing where no axis can be filtered.
std::optional<MinimalPacking> plan_minimal_packing(const Layer& layer, const Target& target, bool last);

// One axis of a call, whose positions are sets of outputs: the stride is stretched by their number.
struct SetAxis {
  AxisPlan plan;
  std::vector<i64> reach;  // offsets of the inputs of a set, ascending
};
SetAxis plan_sets(const Layer& layer, const Call& call, const MinimalAxis& axis, std::size_t a);

struct MinimalSchedule {
  AxisPlan axis[kAxes];  // of sets of outputs
  Window window;
  i64 positions = 0, width = 0, tiles = 0;  // in all, of a tile, how many tiles
  i64 chunk = 0, parts = 1, part = 0;       // channels transformed back at a time; tasks per tile; their channels
  i64 columns = 1;                          // input channels summed in registers in one go
  i64 inputs = 0, products = 0, sums = 0;   // scratch, in numbers
  i64 line = 0;                             // room for a channel's inputs of a tile, where they are turned, or 0
  Writing writing;
  int threads = 1;
  double cycles = 0;  // that an image should take, of one thread
  std::string why;
};

// Whether outputs can be written channels last. Inputs can be read so where `packing.last`, or where they are turned.
bool writes_last(const Layer& layer, const MinimalPacking& packing, const Target& target);

// Nothing where an image would take longer than so many cycles. Like the bits of a result, that depends neither on the
// batch nor on the threads.
std::optional<MinimalSchedule> plan_minimal(const Layer& layer, const Call& call, const MinimalPacking& packing,
                                            const Target& target, const Team& team,
                                            double limit = std::numeric_limits<double>::infinity());

// Weights in the order in which they are read: [group][point][block of rows][tap][column][row]; for channels last
// [group][phase][point][vector of channels][tap][column][channel].
template <typename T>
void pack_minimal(const Layer& layer, const MinimalPacking& packing, const Target& target, int threads, const T* w,
                  T* packed);

template <typename T>
void execute_minimal(const Layer& layer, const Call& call, const MinimalPacking& packing,
                     const MinimalSchedule& schedule, const Kernels<T>& kernels, const T* packed, const T* bias,
                     const T* x, T* y);

// The same bits, channels last.
template <typename T>
void execute_minimal_last(const Layer& layer, const Call& call, const MinimalPacking& packing,
                          const MinimalSchedule& schedule, const Kernels<T>& kernels, const T* packed, const T* bias,
                          const T* x, T* y);

// Transforms the copied lines of the window, [line][length], along its leading axes that are filtered, in place but for
// the last of them: destination(line, inner) says where that puts a line, and how far from it the one `inner` lines on.
template <typename T, typename Destination>
void transform_leading(const Kernels<T>& kernels, const MinimalPacking& packing, T* copied, i64 pitch, i64 length,
                       Destination&& destination) {
  i64 outer = 1, inner = packing.lines;
  for (int a = 0; a <= packing.last_leading; ++a) {
    const MinimalAxis& axis = packing.axis[a];
    inner /= axis.lines();
    for (i64 o = 0; o < outer && axis.filtered; ++o)
      for (i64 i = 0; i < inner; ++i) {
        const i64 line = o * 4 * inner + i;
        T *from = copied + line * pitch, *to = from;
        i64 to_pitch = inner * pitch;
        if (a == packing.last_leading) std::tie(to, to_pitch) = destination(line, inner);
        kernels.transform_sets[4](from, inner * pitch, kernels.lanes, ceil_div(length, kernels.lanes), to, to_pitch,
                                  kernels.lanes);
      }
    outer *= axis.lines();
  }
}

// The way back, of products whose lines of `length` numbers are at from[point]: along the filtered axes before `end`,
// after which from[output * inner + point] says where they are, in `spare`. Returns the number of outputs.
template <typename T>
i64 transform_back_leading(const Kernels<T>& kernels, const MinimalPacking& packing, std::size_t end, i64 length,
                           T* spare, const T** from) {
  i64 outer = 1, inner = packing.points;
  for (std::size_t a : packing.filtered) {
    if (a >= end) break;
    const i64 outputs = packing.axis[a].outputs();
    inner /= 4;
    const T* result[kMostLines];
    for (i64 o = 0; o < outer; ++o)
      for (i64 i = 0; i < inner; ++i) {
        const T* four[4];
        for (i64 k = 0; k < 4; ++k) four[k] = from[(o * 4 + k) * inner + i];
        T* to = spare + (o * outputs * inner + i) * length;
        kernels.transform_sums(four, length, static_cast<int>(outputs), to, inner * length);
        for (i64 k = 0; k < outputs; ++k) result[(o * outputs + k) * inner + i] = to + k * inner * length;
      }
    outer *= outputs;
    std::copy_n(result, outer * inner, from);
    spare += outer * inner * length;
  }
  return outer;
}

}  // namespace upscore
