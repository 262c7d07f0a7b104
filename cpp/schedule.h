// How a call's sizes are cut into tasks: a pure function of the layer, its packing and the sizes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "plan.h"
#include "threads.h"
#include "window.h"

namespace upscore {

// A range of window offsets times a block of input channels: what is summed in registers in one go.
// Depends on the layer alone, so that the order of additions never depends on threads or tiles.
struct Reduction {
  i64 offset_first, offset_last;  // into Window::offsets
  i64 column_first, column_last;
  i64 line_first, line_last;  // into Window::lines: where those offsets are

  bool same_inputs(const Reduction& other) const {
    return column_first == other.column_first && line_first == other.line_first && line_last == other.line_last;
  }
};

struct PhaseTaps {
  i64 packed_class = 0;        // which PhaseClass of the packing
  std::vector<i64> offset_of;  // per tap, its index into Window::offsets; ascending
};

// A phase's taps in a reduction: the first, how many, and where each reads in a panel whose lines are so long.
struct ReducedTaps {
  i64 first, count;
  i64 place[Limits::offsets];
};
ReducedTaps reduced_taps(const Window& window, const PhaseTaps& phase, const Reduction& r, i64 line);

// Positions of one task: a run over batch and axes, or a rectangle of rows.
struct Tile {
  i64 positions = 0;  // of a run; of a row of the rectangle
  i64 rows = 1;
  i64 width = 0;       // places of its sums, whole vectors
  i64 count = 0;       // tiles in all
  i64 per_row = 1;     // by rows: tiles next to each other
  i64 per_column = 1;  // by rows: tiles below each other
};

// How the rows of an output are written.
struct Writing {
  bool staged = false;       // rows are put together before they are written: they are short, or go past the caches
  bool stream = false;       // past the caches
  i64 staging = 0;           // scratch for putting together, in numbers
  i64 together = 0;          // if any: numbers of a channel in a tile, whose phases are interleaved across short rows
  std::vector<char> hollow;  // if any: the phases of the leading axes that no tap reaches, and so only the bias
};

// `axis` as the output is written, `channels` of it, in all images; `together` of them lie next to each other. A tile
// has so many `sums` of a channel.
Writing plan_writing(const AxisPlan* axis, i64 channels, i64 together, i64 sums, const Target& target);

// Lanes run along output channels instead of positions; outputs of a part that use the same taps form a group. A part
// is some images of a small map, whose positions fill lanes badly and whose border is much of it; or a rectangle of a
// larger one, with zeros around it, where there is one phase; or, channels last, a run of positions of any map.
struct ChannelLanes {
  struct Group {
    std::vector<i64> taps;     // of the phase; ascending
    std::vector<i64> outputs;  // positions
    std::vector<i64> inputs;   // positions: per output, one for each tap; or, if regular, of the first output alone
    std::vector<i64> shift;    // if regular: per output, from the first one's inputs to its own
  };
  struct Rectangle {
    i64 across, down;         // outputs
    i64 per_row, per_column;  // rectangles next to each other, below each other
    Size first, inputs;       // that its taps reach, the first from an output; of the first axis, those at its taps
  };
  std::vector<std::vector<Group>> groups;  // per phase
  std::optional<Rectangle> rectangle;
  i64 run = 0;                     // positions of a run; there are no groups then
  bool last = false;               // channels last: inputs are read, and outputs written, where they lie
  i64 inputs = 0, outputs = 0;     // of an image or rectangle
  bool zeros = false;              // the last of the inputs is a zero, for taps that read outside
  i64 images = 1, chunk = 0;       // of a task: images, output channels
  i64 parts = 1;                   // of a group and chunk
  i64 columns = 1;                 // in a panel, at most
  i64 image_pitch = 1;             // of a panel, [input][column][image]
  i64 vectors = 1, positions = 1;  // of a register tile
  i64 panel = 0, sums = 0;         // scratch per task, in numbers
  double cycles = 0;               // that it should take
};

// What estimates of different ways have in common, in cycles: they are weighed against each other, and only their
// proportions matter.
struct Cycles {
  static constexpr double product = 0.5;  // a vector times a number, added
  static constexpr double copy = 4;       // a vector into a panel
  // By the matrix unit, in six tiles' products: a row and column for a vector; to cut a vector of inputs into parts.
  static constexpr double bf16_product = 0.26, cut = 4;
  static constexpr double begin = 7;  // a row of them, or zeros beside it
  static constexpr double piece = 8;  // a row of outputs to begin with
  static constexpr double task = 500;
  static constexpr double serial = 1e5;  // below which waking another thread costs more
  // To wait for a vector of inputs that comes from memory, and channels last: direct and filtered. Folding fetches
  // inputs while it multiplies the ones before.
  static constexpr double far = 3.5, far_last = 10, far_filtered = 4, far_filtered_last = 25;
};

struct Schedule {
  AxisPlan axis[kAxes];
  Window window;
  std::vector<PhaseTaps> phases;
  std::vector<Reduction> reductions;
  Tile tile;
  i64 positions = 0;         // batch * positions of all axes
  i64 chunk = 0;             // output channels per task
  i64 strips = 1;            // phases of the leading axes per task
  i64 groups = 1;            // per task, if it has all of their channels and strips
  i64 panel = 0, sums = 0;   // scratch per task, in numbers
  i64 parts = 0;             // of a panel, if any: where bfloat16 parts begin, behind the inputs of one tile of columns
  bool far_weights = false;  // too many for a core's cache
  Writing writing;
  int threads = 1;
  std::optional<ChannelLanes> channel_lanes;
  double cycles = 0;  // that it should take, of all threads
  std::string why;
};

// Words from one pair of columns to the next: a number of cache lines that keeps pairs in different sets.
inline i64 bf16_pitch(i64 places) {
  constexpr i64 line = 16;
  return (ceil_div(places, line) | 1) * line;
}

// Of tiles whose rows are positions: places of a panel, whole vectors of them, whose parts do not begin in the same
// sets of a cache; and numbers from a position's sums to the next.
inline i64 bf16_places(i64 places) { return round_up(places, 16) | 1; }
inline i64 sums_pitch(i64 rows) { return bf16_pitch(rows); }

Schedule plan_schedule(const Layer& layer, const Call& call, const Packing& packing, const Target& target,
                       const Team& team);

// With the weights packed as for any call; or, channels first, in vectors, if lanes along channels take less time.
Schedule plan_direct(const Layer& layer, const Call& call, const Packing& any, const std::optional<Packing>& vectors,
                     const Target& target, const Team& team);

// What that should take of one thread, with weights that are packed in both ways.
double direct_cycles(const Layer& layer, const Call& call, const Target& target);

}  // namespace upscore
