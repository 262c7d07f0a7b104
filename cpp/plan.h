// What will be done and why, decided without doing it: pure functions of the layer and of the call's sizes.
#pragma once

#include <optional>
#include <vector>

#include "geometry.h"

namespace upscore {

// How to compute where there are several ways: as the taps are, the fastest, by minimal filtering, folded, or as the
// taps are in bfloat16 parts; these in tiles as they lie, or in tiles whose rows are positions.
enum class Method { kDirect, kFastest, kFiltered, kFolded, kBf16, kPositions };

// The sizes that work is cut to. Sums and panel share a core's second-level cache and keep its scratch small.
struct Limits {
  static constexpr i64 panel_bytes = 448 << 10;  // inputs, shared by all rows of a task
  static constexpr i64 bf16_bytes = 640 << 10;   // the same with their bfloat16 parts
  static constexpr i64 sum_bytes = 512 << 10;    // partial sums
  static constexpr i64 terms = 512;              // added in registers before they are added to memory: accuracy
  static constexpr i64 offsets = 64;             // window places in one panel
  static constexpr i64 together = 1024;          // phases and channels written next to each other, channels last
  static constexpr i64 stream_bytes = 12 << 20;  // outputs beyond this do not stay in the caches
  static constexpr i64 far_bytes = 6 << 20;      // inputs that come from memory
};

// Whether a call's inputs are so many.
inline bool reads_far(const Layer& layer, const Call& call, i64 number_bytes) {
  const i64 inputs = call.batch * layer.groups * layer.cols * call.in[0] * call.in[1] * call.in[2];
  return inputs * number_bytes >= Limits::far_bytes;
}

// Vectors of a group's inputs, if they are so many; otherwise none is waited for.
inline double far_vectors(const Layer& layer, const Call& call, i64 lanes, i64 number_bytes) {
  if (!reads_far(layer, call, number_bytes)) return 0;
  return static_cast<double>(call.batch * layer.cols * call.in[0] * call.in[1] * call.in[2]) /
         static_cast<double>(lanes);
}

// What the kernels of an instruction set can hold.
struct Target {
  int lanes, tile_rows, registers, number_bytes;
  bool bf16;  // float32 numbers can be multiplied in bfloat16 parts
  bool operator==(const Target&) const = default;
  int vectors(int rows) const;  // widest tile, in vectors, for this many rows
};

// A set of output rows that read the same window: one phase, or all of them when fused.
struct PhaseClass {
  std::vector<i64> tap;  // flat kernel index per (row phase, window place); -1 is a structural zero
  i64 taps = 0;          // window places
  i64 phases = 1;        // phases that are rows of this class (1 unless fused)
  i64 weights = 0;       // packed weights of the classes before it, per column
};

// How the weights lie in memory, which is the order in which they are read:
// [group][block of columns][class][block of rows][tap][column][row]. Sizes do not matter.
struct Packing {
  bool fused = false;
  bool vectors = false;    // tiles are vectors of rows, for calls whose lanes run along channels, and for no others
  bool bf16 = false;       // in three bfloat16 parts, tiles of 16 rows by 32 columns
  bool positions = false;  // the same, where rows of tiles are positions: vectors of the rows of a phase
  bool few = false;        // columns, then: lines hold two parts of them
  bool by_phase = false;   // fused rows are ordered by phase, not by channel, for writing channels last
  int tile_rows = 1;
  i64 rows = 0;     // of a group: the layer's, with zeros behind them up to a whole vector, if tiles are vectors
  i64 phases = 1;   // of the whole layer: the product of the strides
  i64 columns = 1;  // in a block: with a class's taps, what is summed in registers in one go
  std::vector<PhaseClass> classes;
  i64 per_column = 0;  // packed numbers of one group and input channel
};

// Whether channels that do not fill vectors can be written next to each other, with the phases of the last axis.
bool writes_together(const Layer& layer);

// For any call channels first; for calls channels last; in whole vectors, for calls whose lanes run along channels.
enum class Order { kAny, kLast, kVectors };
inline Order order_of(const Call& call) { return call.reads_last ? Order::kLast : Order::kAny; }
Packing plan_packing(const Layer& layer, const Target& target, Order order);

// In bfloat16 parts, rows of tiles being positions or not: if there is a matrix unit, and rows and columns fill its
// tiles.
std::optional<Packing> plan_bf16_packing(const Layer& layer, const Target& target, bool positions);

}  // namespace upscore
