// Folding (col2im): one product over the input channels gives what every input adds through every tap, and these
// contributions are then added where they overlap. Lanes run along the taps of the output channels, so positions may be
// few; no product is with a zero, and inputs are broadcast from where they lie. For many input channels and small maps,
// or few output channels: a large map is folded band by band, and what the next band needs of one is kept.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "schedule.h"

namespace upscore {

// A unit is some output channels, whose taps together fill vectors as well as they can: the rows of a product.
struct FoldPacking {
  i64 channels = 1, vectors = 1;  // of a unit
  i64 units = 1;                  // of a group
};

// Nothing for layers that cannot be folded.
std::optional<FoldPacking> plan_fold_packing(const Layer& layer, const Target& target);

struct FoldSchedule {
  // A tap of the kernel: the phase of the output that it adds to, and how far from an output's place its input's is.
  struct Tap {
    i64 phase, shift;
  };
  AxisPlan axis[kAxes];     // fused: positions are those of the outputs of all phases
  std::vector<Tap> taps;    // of the kernel
  i64 pitch[kAxes];         // places from one position of an axis to the next, room for zeros between rows included
  i64 images = 1;           // of a task, at most: small ones are computed together
  i64 image = 0;            // places from one of them to the next
  i64 places = 0;           // of their contributions
  i64 before = 0, row = 0;  // zeros before them; of a row with the zeros behind, in numbers
  i64 width = 0;            // places of a phase of the output
  // Along the first axis that has several positions, which read the inputs from `nearest` to `farthest` of their own
  // place: those of a band, which is folded at once, and of a task. All of them, but of an image that is too large.
  std::size_t along = kAxes - 1;
  i64 nearest = 0, farthest = 0;
  i64 band = 1, stretch = 1;
  i64 units = 1;     // of a task
  i64 together = 1;  // vectors of rows that are folded together
  // Of a single image: all rows are computed first, so many vectors by a task, then all are folded, so many channels
  // and strips (phases of the leading axes) by a task.
  bool in_turn = false;
  i64 share = 1, channels = 1, strips = 1;
  i64 vectors = 1, positions = 1;  // of a register tile
  i64 rows = 1, across = 1;        // inputs that are multiplied together: so many rows of all images, of each so many
  bool in_place = false;           // inputs are not copied first
  // Lanes along inputs that lie in a line instead, so that nothing is turned: so many at a time, by register tiles of
  // taps and vectors.
  struct Lines {
    i64 inputs, taps, vectors;
    bool in_place;
  };
  std::optional<Lines> lines;
  i64 bf16 = 0;  // if any: words of a panel of inputs in bfloat16 parts, which the matrix unit multiplies
  i64 panel = 0, products = 0;  // scratch, in numbers
  Writing writing;
  int threads = 1;
  double cycles = 0;  // of a group, that it should take
  std::string why;
};

// Nothing where an image's sums do not fit.
std::optional<FoldSchedule> plan_fold(const Layer& layer, const Call& call, const FoldPacking& packing,
                                      const Target& target, const Team& team);

// Whether it takes less than so many cycles, of minimal filtering or another way, for an image and one thread; of small
// images, for one and for several in the mean. Like the bits of a result, that depends neither on the batch nor on the
// threads.
bool worth_folding(const Layer& layer, const Call& call, const FoldPacking& packing, const Target& target, double limit,
                   bool filtered);

// Whether outputs can be written channels last.
bool writes_last(const Layer& layer, const FoldPacking& packing, const FoldSchedule& schedule, const Target& target);

// Weights (groups * cols, rows, taps) as [group][unit][vector][column][row].
template <typename T>
void pack_fold(const Layer& layer, const FoldPacking& packing, const Target& target, int threads, const T* w,
               T* packed);

// The same in bfloat16 parts (parts.h).
template <typename T>
void pack_fold_parts(const Layer& layer, const FoldPacking& packing, const Kernels<T>& kernels, const Target& target,
                     int threads, const T* w, std::uint16_t* packed);

// With weights in bfloat16 parts where the schedule has them.
template <typename T>
void execute_fold(const Layer& layer, const Call& call, const FoldPacking& packing, const FoldSchedule& schedule,
                  const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y);

}  // namespace upscore
