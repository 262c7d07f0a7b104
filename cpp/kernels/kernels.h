// The inner loops, as a table per instruction set and number type. One source each, compiled once per
// instruction set; the table is chosen once, at the top.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../geometry.h"

namespace upscore {

// What a shuffle of numbers of this type is told its lanes with.
template <typename T>
using LaneIndex = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

constexpr int kMaxTileRows = 8;
constexpr int kMaxPackedRows = 16;  // in tiles of weights
constexpr int kMaxTileVectors = 12;
// Additions take four cycles: a single row has enough of them under way with many vectors only.
constexpr int most_vectors(int rows, int registers) {
  const int fit = registers / rows, most = rows == 1 ? kMaxTileVectors : kMaxTileVectors / 2;
  return fit < most ? fit : most;
}

// Positions whose inputs are broadcast to so many vectors of weights.
constexpr int kMaxRowVectors = 3;
constexpr int kMaxPositions = 12;
constexpr i64 fitting_positions(i64 vectors, i64 registers) {
  const i64 fit = (registers + registers / 8) / vectors;  // no register is left then
  return fit < kMaxPositions ? fit : kMaxPositions;
}

// How many of the vectors that are left are multiplied next: two pieces alike rather than a narrow last one.
inline i64 next_vectors(i64 left, i64 widest) {
  return left > widest && left < 2 * widest ? (left + 1) / 2 : (left < widest ? left : widest);
}

// c[r][v] (+)= sum over taps and columns of w[tap*w_tap_stride + column*w_step + r] *
// x[x_offset[tap] + column*x_stride + v*x_vector].
template <typename T>
struct Product {
  const T* w;
  i64 w_tap_stride, w_step;
  const T* x;
  const i64* x_offset;
  i64 x_stride, x_vector;
  i64 taps, columns;
  T* c;
  i64 c_stride;
  bool accumulate;
  const T* const* ahead = nullptr;  // fetched meanwhile, per tap, for each column: inputs that come next; or weights
  i64 ahead_stride = 0;
  bool ahead_tile = false;  // as many vectors of them as the tile has; one, otherwise
};
template <typename T>
using ProductKernel = void (*)(const Product<T>&);

// Where the rows of a product go that are an output already, for vector v of positions from vector[v] on: every row to
// its place, or each pair of them, alternating, to the place of the pair.
template <typename T>
struct OutputRow {
  i64 place;
  T bias;
};
template <typename T>
struct OutputRows {
  T* const* vector;
  const OutputRow<T>* row;
  bool past_caches;  // the rows lie on vectors
};
template <typename T>
using OutputKernel = void (*)(const Product<T>&, const OutputRows<T>&);

// The same with lanes along rows, for P positions: c[c_offset[q] + r] (+)= sum over taps and columns of
// w[w_offset[tap] + row r of the column] * x[tap*x_step + q][x_tap[tap] + column*x_stride].
template <typename T>
struct ChannelProduct {
  const T* w;
  i64 w_tile_stride;  // from one tile of rows to the next
  i64 w_step = 0;     // of an apart product: from one column to the next; of a plane product, if they lie apart
  const i64* w_offset;
  const T* const* x;
  i64 x_step;  // 0, or P where every tap has places of its own
  const i64* x_tap;
  i64 x_stride;
  i64 taps, columns;
  T* c;
  const i64* c_offset;
  bool accumulate;
  const T* bias;                // added last, unless null
  const char* ahead = nullptr;  // fetched meanwhile, unless null: so many bytes for each tap and column
  i64 ahead_step = 0;
  bool past_caches = false;  // c lies on vectors, and will not be read soon
  i64 c_gap = 0;             // numbers between one vector of rows and the next
  // A line product reads x[0][q*x_pitch + x_tap[tap] + column], a plane product x[0][q + x_tap[tap] + column*x_stride].
  i64 x_pitch = 0;
  i64 x_ahead = 0, w_ahead = 0;  // of a plane product: from what is read now to what is fetched, if known
  bool x_far = false;  // a line product fetches the inputs of the next tap, after the last one those of the next line
};
template <typename T>
using ChannelProductKernel = void (*)(const ChannelProduct<T>&);

// Products of float32 numbers in three bfloat16 parts each, where there is a matrix unit: see kernels/bf16.h.
constexpr int kBf16Rows = 16;  // of a tile of weights; two are multiplied together
constexpr i64 kBf16Parts = 3;
constexpr i64 kBf16Bytes = kBf16Parts * i64{sizeof(std::uint16_t)};  // of a number
constexpr i64 kBf16Terms = 32;                                       // that a tile adds
constexpr i64 kBf16Tile = kBf16Rows * kBf16Terms;                    // numbers
constexpr i64 kBf16Few = kBf16Terms / 2;  // columns of which two parts fill a line, so that three products are enough

// Where products whose rows are positions go: each row to its place, or nowhere; of a vector, so many numbers, so far
// from there, and what is added to them, unless null.
struct Bf16Channels {
  i64 place;
  int count;
  const float* bias;
};
struct Bf16Places {
  float* const* row;
  const Bf16Channels* vector;
  bool past_caches;  // all vectors are whole, and lie on vectors
};

// c[r][v] (+)= sum over taps and blocks of 32 terms of w[block][w_tap[tap] + row] * x[block][x_tap[tap] + v*x_vector].
// Channels first, w are the weights and x the inputs; channels last it is the other way round. All strides count
// bfloat16 numbers, and pairs of them where x is concerned.
struct Bf16Product {
  const std::uint16_t* w;
  const i64* w_tap;
  i64 w_row, w_tile, w_part, w_block;  // from one row, tile of rows, part, block to the next
  const std::uint16_t* w_next;         // fetched meanwhile, as many, unless null
  const std::uint32_t* x;              // a row of pairs for each two terms
  const i64* x_tap;
  i64 x_row, x_vector, x_part, x_block;
  i64 taps, blocks;
  bool few;  // columns: instead of parts there are lines of two of them, as cut_few and round_few make them
  int rows;  // at most two tiles'
  i64 vectors;
  float* c;
  i64 c_stride;
  bool accumulate;
  // The same is done for so many products, whose weights and sums, and inputs unless null, lie so far from w, c and x.
  i64 products;
  const i64 *w_offset, *c_offset, *x_offset;
  const OutputRows<float>* out;  // where sums go instead, unless null: as they are, or in pairs
  bool pairs;
  const Bf16Places* places;  // or there, unless null

  i64 steps() const { return (few ? 3 : 6) * taps * blocks; }  // of a tile: products of parts
};
// Inputs of at most 32 places, `pitch` numbers from a column to the next, or channels last from a place to the next, to
// panel[block of 32 columns][part][vector of places][pair of columns][place]; of those that lie so far `ahead` lines
// are fetched. This is done in units of little work: four columns of a vector of places, or 16 of them turned, channels
// last.
struct Bf16Cut {
  const float* x;
  i64 pitch, columns, places, ahead;
  const i64* offset;  // of each column, unless null: whole vectors are read then
  bool last;
  std::uint32_t* panel;
  float* turned;                         // room for 256 numbers, channels last
  i64 column = 0, vector = 0, step = 0;  // what comes next

  i64 vectors() const { return ceil_div(places, kBf16Terms / 2); }
  int steps() const { return last ? 5 : 4; }
  i64 units() const { return 2 * ceil_div(columns, kBf16Terms) * vectors() * steps(); }
};
struct Bf16Kernels {
  // dst[part][pair][i] of rows 2*pair and 2*pair + 1 of 32, of which there are `rows`, in whole vectors of i < length;
  // src_pitch numbers, and `pitch` words, from one to the next. The others are zeros.
  void (*cut)(const float* src, i64 src_pitch, i64 rows, i64 length, std::uint32_t* dst, i64 pitch);
  // The same, rounded.
  void (*round_pairs)(const float* src, i64 src_pitch, i64 rows, i64 length, std::uint32_t* dst, i64 pitch);
  // dst[block*block_pitch + part*part_pitch + place*32 + i] of the numbers src[place*step + block*32 + i], of which
  // there are `columns`; the others of the last block are zeros.
  void (*cut_places)(const float* src, i64 step, i64 places, i64 columns, std::uint16_t* dst, i64 part_pitch,
                     i64 block_pitch);
  // The same of src[i*src_pitch + place], of at most 32 rows, in whole vectors of places.
  void (*cut_turned)(const float* src, i64 src_pitch, i64 rows, i64 places, std::uint16_t* dst, i64 part_pitch);
  // Both of few columns, a line of whose low and high parts, then one of high and middle parts, are as two parts.
  void (*cut_few_places)(const float* src, i64 step, i64 places, i64 columns, std::uint16_t* dst, i64 line_pitch);
  void (*cut_few_turned)(const float* src, i64 src_pitch, i64 rows, i64 places, std::uint16_t* dst, i64 line_pitch);
  // What is multiplied by the first of these lines, and both that are by the second: dst[3][pair][i] of few rows, the
  // high and low, the middle and high, and the high and middle parts, rounded, for i < 16.
  void (*round_few)(const float* src, i64 src_pitch, i64 rows, std::uint32_t* dst);
  // dst[row*dst_pitch + i] = src[i*src_pitch + row] + bias[row] unless null, for i < length, of at most 16 rows. Past
  // the caches, all of these lie on vectors.
  void (*put_turned)(const float* src, i64 src_pitch, i64 length, i64 rows, const float* bias, float* dst,
                     i64 dst_pitch, bool past_caches);
  // dst[part*apart + i] for i < length, in whole pairs of vectors.
  void (*cut_row)(const float* src, i64 length, std::uint16_t* dst, i64 apart);
  // `rows` of 16 rows, src_pitch apart, as inputs of products, rounded: dst[block][part][pair of terms][row], of so
  // many blocks of 32 terms; zeros where there are no more rows.
  void (*round_rows)(const float* src, i64 src_pitch, i64 rows, i64 blocks, std::uint32_t* dst);
  // dst[i/16*vector_pitch + part*part_pitch + place*16 + i%16] of the numbers first[place*step + i] and
  // second[place*step + i], either of which may be null and is zeros then, for i < columns; zeros up to a whole vector.
  void (*cut_pairs)(const float* first, const float* second, i64 step, i64 places, i64 columns, std::uint32_t* dst,
                    i64 vector_pitch, i64 part_pitch);
  // dst[part*part_pitch + i] of first[i] and second[i], rounded, in whole vectors of i < length.
  void (*round_pair)(const float* first, const float* second, i64 length, std::uint32_t* dst, i64 part_pitch);
  // A tile of weights, [column][row], to its three parts, [row][column], `apart` numbers from one to the next.
  void (*round)(const float* src, i64 columns, std::uint16_t* dst, i64 apart);
  void (*use)(int rows);  // makes this thread's tiles ready for so many rows; 0 gives them up
  void (*product)(const Bf16Product& p);
  void (*cut_units)(Bf16Cut& cut, i64 units);
  // The product of a single tap, sums in whole vectors; meanwhile so many units are cut.
  void (*product_and_cut)(const Bf16Product& p, Bf16Cut& next, i64 units);
};

// A stretch of an output row, along which weights and biases recur:
// out[i] = sum over taps of w[tap][(phase + i) % step] * x[tap][first + i] + bias[(phase + i) % step] for i < length.
// Whole vectors are written, past the caches if `out` lies on a vector; what is behind the last goes to `rest`. The
// first `head` numbers come from there: they are another row's, which ends where this one begins.
template <typename T>
struct Stencil {
  const T *w, *bias;                                          // recurring up to a vector behind the last phase
  const T* const* x;                                          // per tap, inputs as often as they have phases
  i64 taps, step, turn, w_pitch, first, phase, length, head;  // turn: phases from a vector's first to the next one's
  bool alike;                                                 // the weights of a tap are one number, again and again
  T *out, *rest;
  bool past_caches;
};
template <typename T>
using StencilKernel = void (*)(const Stencil<T>&);

// Channels last, channels that do not mix: one position, out[i] = sum over taps of w[tap][i] * x[tap][i] + bias[i] for
// i < channels. Whole vectors are read and written: the next position writes over the excess. And again for the next
// ones, whose inputs lie `x_step` further on.
template <typename T>
struct PixelStencil {
  const T* const* w;
  const T* const* x;
  const T* bias;
  i64 taps, channels, repeats, x_step;
  T* out;
};

// Where a stretch of a panel comes from, and how many zeros follow. Holes are zeros inside of the run before them.
struct Run {
  static constexpr i64 kZeros = -1, kHole = -2;
  i64 place, length, source, zeros = 0;
};

// Adds a run behind the last; zeros go with what they follow, if they lie right behind it.
inline void add_run(const Run& run, std::vector<Run>& runs) {
  Run* const last = runs.empty() ? nullptr : &runs.back();
  const bool follows = last && last->place + last->length + last->zeros == run.place;
  if (run.source == Run::kZeros && follows && last->source != Run::kHole)
    (last->source == Run::kZeros ? last->length : last->zeros) += run.length;
  else
    runs.push_back(run);
}

// A line of so many numbers: those in [skip, stop) come from `source` on, the others are zeros.
inline void add_line(i64 place, i64 length, i64 skip, i64 stop, i64 source, std::vector<Run>& runs) {
  if (skip > 0) add_run({place, skip, Run::kZeros}, runs);
  if (stop > skip) add_run({place + skip, stop - skip, source}, runs);
  if (stop < length) add_run({place + stop, length - stop, Run::kZeros}, runs);
}

// Part of a row in which sums of several phases alternate; without a source, of nothing but the bias.
struct RowPart {
  i64 source, first, last, place;
};

// A row of tiles of four inputs, `step` apart: the first begins `before` inputs in front of `source`, from which on
// there are `inside` inputs; all others are zeros.
struct TileRun {
  i64 place, tiles, before, source, inside;
};
constexpr i64 kMostTiles = 144;                           // in a run
constexpr i64 kMostTileInputs = 3 * kMostTiles + 4 + 64;  // that they read

template <typename T>
struct Kernels {
  int lanes;                          // numbers in a vector
  int tile_rows;                      // rows of the widest product tile
  int registers;                      // accumulators that a tile may use
  const Bf16Kernels* bf16 = nullptr;  // of float32, where there is a matrix unit
  ProductKernel<T> product[kMaxTileRows + 1][kMaxTileVectors + 1];
  OutputKernel<T> product_rows[kMaxTileRows + 1][kMaxTileVectors + 1];             // written as they are
  OutputKernel<T> product_pairs[kMaxTileRows + 1][kMaxTileVectors + 1];            // of even numbers of rows
  ChannelProductKernel<T> channel_product[kMaxRowVectors + 1][kMaxPositions + 1];  // weights in tiles of a vector
  ChannelProductKernel<T> apart_product[kMaxRowVectors + 1][kMaxPositions + 1];    // the same, columns w_step apart
  ChannelProductKernel<T> line_product[kMaxRowVectors + 1][kMaxPositions + 1];     // places in a line
  ChannelProductKernel<T> plane_product[kMaxRowVectors + 1][kMaxPositions + 1];    // or next to each other
  StencilKernel<T> stencil;
  void (*pixel_stencil)(const PixelStencil<T>&);
  // dst[i*step + e] = src[i] for i < count, e < step. Up to a vector more is written.
  void (*repeat)(const T* src, i64 count, i64 step, T* dst);
  // dst[(i*times + t)*channels + c] = src[i*channels + c] for i < count, t < times, c < channels. Up to a vector more
  // is read and written.
  void (*repeat_pixels)(const T* src, i64 count, i64 channels, i64 times, T* dst);

  // For each row, dst[place + e - first] = src[source + (e % step)*pitch + e / step] + bias[(e % step)*each] for e in
  // [first, last); `each` is 0 or 1, and with 0 there need be no bias.
  // With `excess`, up to step vectors behind the last may be written (with anything), and as much read behind the
  // sources: rows ascend by place then.
  void (*interleave)(const T* src, i64 pitch, i64 step, const RowPart* rows, i64 count, const T* bias, i64 each, T* dst,
                     bool excess);
  // For each row, dst[place + i] = src[source + first + i] for i < last - first.
  void (*copy_rows)(const T* src, const RowPart* rows, i64 count, T* dst);
  // dst[i*dst_pitch + c] = src[c*src_pitch + i] for c < channels, i < length; zeros up to a whole vector of channels.
  // Plus bias[c], unless null, for whole vectors of channels. Nothing at or after src_end is read.
  void (*transpose)(const T* src, const T* src_end, i64 src_pitch, i64 channels, i64 length, const T* bias, T* dst,
                    i64 dst_pitch);
  // dst[i*dst_pitch + j] = src[i*step + j*spread] for i < positions, j < length. Up to a vector more of each row is
  // read and written.
  void (*unfold)(const T* src, i64 step, i64 spread, i64 positions, i64 length, T* dst, i64 dst_pitch);
  // For t < taps: sums[t*lanes + l] += x[i] * lines[place[t] + i] for i < count, i % lanes = l. Up to a vector more of
  // each is read.
  void (*dots)(const T* x, i64 count, const T* lines, const i64* place, i64 taps, T* sums);
  // out[i] = bias + sum over taps of w[t] * lines[place[t] + i] for i < count, in whole vectors: up to a vector more is
  // read and written.
  void (*weigh)(const T* w, i64 taps, const T* lines, const i64* place, i64 count, T bias, T* out);
  // dst[i] = sum over rows of rows[r][i], after what is there with `accumulate`, for i < length, in whole vectors: up
  // to a vector more is read and written.
  void (*add_rows)(const T* const* rows, i64 count, i64 length, bool accumulate, T* dst);
  void (*fill)(T value, i64 length, T* dst);
  // dst[i] = src[i], past the caches: for outputs far larger than they are.
  void (*stream)(const T* src, i64 length, T* dst);
  // Minimal filtering, see kernels/minimal.h.
  // dst[k*dst_pitch + run.place + i] for the four transformed inputs k of tile i; `ahead` of what is read now comes
  // what will be read later, if `far` from memory; a vector more than the last tile may be written. Nothing outside of
  // [x_begin, x_end) is read.
  void (*transform_rows)(const T* x_begin, const T* x, const T* x_end, i64 ahead, bool far, i64 step,
                         const TileRun* runs, i64 count, T* dst, i64 dst_pitch);
  // The points of 1, 2, 3 or 4 numbers of every set, a vector each, as they come, as taps, or as inputs: set i at
  // src[i*step], its numbers `pitch` apart, to dst[i*dst_step], its points `dst_pitch` apart.
  void (*transform_sets[5])(const T* src, i64 pitch, i64 step, i64 sets, T* dst, i64 dst_pitch, i64 dst_step);
  void (*transform_sums)(const T* const* src, i64 length, int outputs, T* dst, i64 dst_pitch);
  // The same of `count` sets, `src_step` apart, each output to places of its own, `dst_step` apart, or nowhere; plus
  // bias[i] unless null; `length` fills vectors.
  void (*transform_outputs)(const T* const* src, i64 src_step, i64 count, i64 length, int outputs, const T* bias,
                            T* const* dst, i64 dst_step, bool past_caches);
  // For every column c: panel[c*pitch + run.place + i] = x[c*x_stride + run.source + i*step] for i < length;
  // zeros where the source says so. Runs ascend by place and leave no gaps; a vector more than the last
  // place may be written. Nothing at or after x_end is read.
  void (*copy_runs)(const T* x, const T* x_end, i64 x_stride, i64 columns, i64 step, const Run* runs, i64 count,
                    i64 pitch, T* panel);
};

// A product with so many vectors, from p.x and p.c on, in pieces that registers hold.
template <typename T>
void multiply_vectors(const Kernels<T>& kernels, Product<T> p, int height, i64 vectors) {
  const i64 widest = most_vectors(height, kernels.registers);
  for (i64 left = vectors; left > 0;) {
    const i64 n = next_vectors(left, widest);
    kernels.product[height][n](p);
    p.x += n * p.x_vector;
    p.c += n * kernels.lanes;
    left -= n;
  }
}

template <typename T>
bool lies_on_vector(const T* p, const Kernels<T>& kernels) {
  return reinterpret_cast<std::uintptr_t>(p) % (static_cast<std::size_t>(kernels.lanes) * sizeof(T)) == 0;
}

struct IsaKernels {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
};

// One per instruction set that this library was built for. Functions, not objects: nothing of an
// instruction set may run before it has been chosen.
namespace isa_baseline {
const IsaKernels& kernels();
}
#if defined(__x86_64__)
namespace isa_avx2 {
const IsaKernels& kernels();
}
namespace isa_avx512 {
const IsaKernels& kernels();
#if defined(UPSCORE_AMX)
const IsaKernels& amx_kernels();
#endif
}  // namespace isa_avx512
#endif

}  // namespace upscore
