#include "minimal_adjoint.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "execute.h"
#include "minimal_sets.h"
#include "remembered.h"
#include "scratch.h"
#include "threads.h"
#include "turn.h"

namespace upscore {
namespace {

constexpr i64 kInputBytes = 640 << 10;    // transformed inputs of a tile
constexpr i64 kProductBytes = 768 << 10;  // products of a tile
constexpr i64 kWeightBytes = 256 << 10;   // of a few columns and a vector of rows, while they are transformed
constexpr i64 kTerms = 256;               // in registers: fewer than directly, for the transforms cost accuracy
constexpr i64 kMostTerms = 512;
constexpr i64 kMostColumns = 128;  // summed in one go
constexpr i64 kMostSets = 96;

// Cycles, for choosing; only their proportions matter.
constexpr double kDirect = 0.6;  // the same in the direct way, with what goes around it
constexpr double kSum = 3;       // a vector of products to registers and back
constexpr double kSmall = 1e6;   // in the direct way: not worth finding out
constexpr double kWeight = 1;    // a transformed weight, made
constexpr double kWeightByte = 1 / 16.0;

double cycles_directly(const Layer& layer, const Call& call, i64 lanes) {
  auto size = [&](const Size& s) { return static_cast<double>(call.batch * s[0]) * static_cast<double>(s[1] * s[2]); };
  const double products =
      static_cast<double>(layer.taps() * layer.cols) * static_cast<double>(ceil_div(layer.rows, lanes));
  return static_cast<double>(layer.groups) *
         (products * size(call.out) * kDirect + static_cast<double>(layer.cols) * size(call.in) * kTurn);
}

template <typename T>
class MinimalAdjoint final : public Way<T> {
 public:
  MinimalAdjoint(const Layer& layer, const Call& call, const Kernels<T>& kernels, MinimalPacking packing)
      : layer_(layer),
        call_(call),
        kernels_(kernels),
        p_(std::move(packing)),
        lanes_(kernels.lanes),
        padded_(round_up(layer.rows, kernels.lanes)),
        leads_(layer.stride[0] * layer.stride[1]) {
    for (std::size_t a = 0; a < kAxes; ++a) {
      // As of the layer that this is the adjoint of: its input is the output here.
      const AxisPlan fused = plan_axis(call.out[a], call.in[a], layer.kernel[a], layer.stride[a], layer.dilation[a],
                                       call.lo[a], true, true);
      const std::vector<i64>& offset = fused.phases[0].offset;  // falling
      outputs_[a] = p_.axis[a].outputs();
      lines_[a] = p_.axis[a].lines();
      window_[a] = p_.axis[a].window;
      sets_[a] = ceil_div(call.out[a], outputs_[a]);
      base_[a] = fused.base - offset.front() * layer.stride[a];
      for (i64 line = 0; line < lines_[a]; ++line)
        shift_[a].push_back(p_.axis[a].filtered ? line : offset.front() - offset[static_cast<std::size_t>(line)]);
    }
    find_blocks();
    const i64 together = layer.stride[2] * p_.taps;
    columns_ = std::min({layer.cols, kMostColumns, std::max(kTerms / together / lanes_, i64{1}) * lanes_});
    pitch_ = round_up(columns_, lanes_) + lanes_;  // not a power of two
  }

  // The cheapest of the cuts into tasks that fit; false if none is, or none is cheaper than the direct way.
  bool cut(int threads, Method method, double limit) {
    const i64 bytes = sizeof(T), vector = lanes_ * bytes, rows = set_rows(), lines = lines_[0] * lines_[1];
    if (rows * sets_[2] == 0 || layer_.stride[2] * p_.taps * std::min(columns_, lanes_) > kMostTerms) return false;
    if (layer_.taps() > kWeightBytes / vector) return false;
    const i64 reach = shift_[2].back(), fit = kTurnedBytes / (vector * lines * layer_.stride[2]);
    if (reach >= fit) return false;
    const i64 across = std::min({sets_[2], (fit - reach - 1) / outputs_[2] + 1, kSpareBytes / (2 * vector * p_.lines)});
    if (across < 1) return false;
    const double weights = static_cast<double>(all_blocks_ * layer_.cols * padded_);
    double least = std::numeric_limits<double>::infinity(), soonest = least;
    for (i64 wide = padded_; wide >= lanes_; wide = wide > lanes_ ? round_up(wide / 2, lanes_) : 0) {
      const i64 most = std::min({kInputBytes / (layer_.stride[2] * p_.lines * pitch_ * bytes),
                                 kProductBytes / (p_.points * wide * bytes), kMostSets});
      const i64 row = kInputBytes / (room_of_set(wide) * bytes);
      for (i64 fewer = row < 1 ? 0 : most; fewer >= 1; fewer /= 2) {
        const i64 here = piece(sets_[2], std::min({across, fewer, row})),
                  down = piece(rows, std::max<i64>(fewer / here, 1));
        const i64 parts = ceil_div(padded_, wide), tiles = ceil_div(rows, down) * ceil_div(sets_[2], here);
        const double set = cycles_of_set(here, wide);
        const double read = weights * static_cast<double>(bytes) * kWeightByte / static_cast<double>(parts);
        least = std::min(least, static_cast<double>(parts) *
                                    (set * static_cast<double>(rows * sets_[2]) + read * static_cast<double>(tiles)));
        const double time = static_cast<double>(ceil_div(tiles * parts * layer_.groups, threads)) *
                            (set * static_cast<double>(here * down) + read);
        if (time >= soonest) continue;
        soonest = time;
        rows_ = wide;
        across_ = here;
        down_ = down;
      }
    }
    if (across_ == 0) return false;
    // It waits longer than the direct way for inputs from memory, channels last, where that copies none.
    const double wait = call_.reads_last ? Cycles::far_filtered_last - Cycles::far_last : 0;
    const double all = static_cast<double>(layer_.groups) *
                       (least + weights * kWeight + far_vectors(layer_, call_, lanes_, bytes) * wait);
    if (method != Method::kFiltered && all > std::min(limit, cycles_directly(layer_, call_, lanes_))) return false;
    const i64 sets = across_ * down_;
    inputs_ = std::max(layer_.stride[2] * p_.lines * sets * pitch_, across_ * room_of_set(rows_));
    products_ = p_.points * sets * rows_;
    turned_ = lines * input_span(across_) * lanes_;
    return true;
  }

  void pack(const T* w, int threads) {
    weights_.allocate(static_cast<std::size_t>(layer_.groups * all_blocks_ * layer_.cols * padded_));
    parallel_for(layer_.groups * padded_ / lanes_, threads,
                 [&](i64 task) { pack_vector(w, task / (padded_ / lanes_), task % (padded_ / lanes_) * lanes_); });
  }

  // The one call, or the same channels last.
  bool takes(const Call& call) const override {
    const bool same = call.batch == call_.batch && call.in == call_.in && call.out == call_.out && call.lo == call_.lo;
    return same && (!call.writes_last || layer_.rows % lanes_ == 0);
  }
  std::size_t size() const override { return weights_.size(); }

  void execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const override {
    const i64 per_row = ceil_div(sets_[2], across_), parts = ceil_div(padded_, rows_);
    const std::vector<T> biases = whole_vectors(bias, layer_.groups, layer_.rows, padded_);
    parallel_for(ceil_div(set_rows(), down_) * per_row * parts * layer_.groups, team.threads, [&](i64 task) {
      const i64 part = task % parts, group = task / parts % layer_.groups, tile = task / (parts * layer_.groups);
      Tile t{tile / per_row * down_, 0, tile % per_row * across_, 0, group, part * rows_, 0};
      t.rows = std::min(down_, set_rows() - t.row);
      t.count = std::min(across_, sets_[2] - t.left);
      t.wide = std::min(rows_, padded_ - t.first);
      compute(call, t, bias ? biases.data() + group * padded_ + t.first : nullptr, x, y);
    });
  }

  std::string why(const Call&, const Team& team) const override {
    i64 direct = layer_.taps();
    for (i64 outputs : outputs_) direct *= outputs;
    return "convolution: minimal filtering because windows are narrow and the map is large: " +
           std::to_string(all_blocks_) + " products instead of " + std::to_string(direct) + " for " +
           std::to_string(outputs_[0]) + " x " + std::to_string(outputs_[1]) + " x " + std::to_string(outputs_[2]) +
           " outputs, lanes run along channels; a task computes " + std::to_string(across_ * down_) +
           " sets of outputs of " + std::to_string(std::min(rows_, layer_.rows)) + " channels; " +
           say_threads(team.threads);
  }

 private:
  // Rows of sets [row, row + rows), counted over images and both leading axes; sets [left, left + count) of each;
  // output channels [first, first + wide) of a group.
  struct Tile {
    i64 row, rows, left, count, group, first, wide;
  };
  // A point's products of one phase of the last axis and one tap of the axes that are not filtered.
  struct Block {
    i64 phase, line;
  };

  // A set of outputs of `wide` channels, with `across` of them in a row.
  double cycles_of_set(i64 across, i64 wide) const {
    const auto axes = static_cast<double>(p_.filtered.size()), vectors = static_cast<double>(wide / lanes_);
    const auto points = static_cast<double>(p_.points), lines = static_cast<double>(p_.lines);
    const auto rows = static_cast<double>(lines_[0] * lines_[1]), stride = static_cast<double>(layer_.stride[2]);
    const double units = static_cast<double>(leads_ * ceil_div(layer_.cols, columns_));
    const double products = static_cast<double>(all_blocks_ * layer_.cols) * kProduct +
                            units * points * (kSum + kCall / static_cast<double>(kMaxPositions));
    const double numbers = rows * static_cast<double>(outputs_[2] * lanes_), begun = rows + lines * axes / 4;
    const double inputs = static_cast<double>(leads_ * ceil_div(layer_.cols, lanes_)) * stride *
                          (numbers * kTurn + lines * axes * kPass + begun * kCall / static_cast<double>(across));
    const double outputs = static_cast<double>(outputs_[0] * outputs_[1] * outputs_[2] * lanes_) * kTurn / 2;
    return vectors * (products + points * axes * kPass + outputs) + inputs;
  }

  // Numbers to transform and turn back the outputs of a set.
  i64 room_of_set(i64 wide) const {
    return 2 * p_.points * wide + outputs_[0] * outputs_[1] * outputs_[2] * (wide + lanes_);
  }
  i64 set_rows() const { return call_.batch * sets_[0] * sets_[1]; }
  i64 input_span(i64 sets) const { return ((sets - 1) * outputs_[2] + shift_[2].back() + 1) * layer_.stride[2]; }
  const std::vector<Block>& blocks(i64 lead, i64 point) const {
    return blocks_[static_cast<std::size_t>(lead * p_.points + point)];
  }
  // Of the window, its places ascending: kernel index or -1. Falling offsets in the layer are rising ones here.
  i64 tap(i64 phase, i64 place) const {
    const i64 window = window_[0] * window_[1] * window_[2];
    return p_.tap[static_cast<std::size_t>(phase * window + window - 1 - place)];
  }

  // Point 0 takes the first tap alone, the last point the last tap, those between a mixture.
  void find_blocks() {
    std::vector<std::vector<i64>> of_line(static_cast<std::size_t>(p_.lines));  // places of the window that it takes
    for (i64 line = 0; line < p_.lines; ++line)
      for (i64 place = 0; place < window_[0] * window_[1] * window_[2]; ++place) {
        bool takes = true;
        for (i64 a = kAxes - 1, l = line, w = place; a >= 0; --a) {
          const auto at = static_cast<std::size_t>(a);
          const i64 point = l % lines_[at], tap = w % window_[at];
          takes = takes && (!p_.axis[a].filtered ? point == tap
                            : point == 0         ? tap == 0
                            : point == 3         ? tap == window_[at] - 1
                                                 : true);
          l /= lines_[at];
          w /= window_[at];
        }
        if (takes) of_line[static_cast<std::size_t>(line)].push_back(place);
      }
    std::vector<std::vector<i64>> of_point(static_cast<std::size_t>(p_.points));  // lines
    for (i64 line = 0; line < p_.lines; ++line)
      of_point[static_cast<std::size_t>(p_.line[static_cast<std::size_t>(line)].point)].push_back(line);
    for (i64 lead = 0; lead < leads_; ++lead)
      for (i64 point = 0; point < p_.points; ++point) {
        before_.push_back(all_blocks_);
        blocks_.emplace_back();
        for (i64 phase = 0; phase < layer_.stride[2]; ++phase)
          for (i64 line : of_point[static_cast<std::size_t>(point)]) {
            const std::vector<i64>& places = of_line[static_cast<std::size_t>(line)];
            if (std::any_of(places.begin(), places.end(),
                            [&](i64 place) { return tap(lead * layer_.stride[2] + phase, place) >= 0; }))
              blocks_.back().push_back({phase, line});
          }
        all_blocks_ += static_cast<i64>(blocks_.back().size());
      }
  }

  // weights[group][chunk of columns][phase of the leading axes][point][vector of rows][block][column][lane]
  i64 weights_at(i64 group, i64 column, i64 columns, i64 lead, i64 point) const {
    return ((group * layer_.cols + column) * all_blocks_ +
            before_[static_cast<std::size_t>(lead * p_.points + point)] * columns) *
           padded_;
  }

  void pack_vector(const T* w, i64 group, i64 row) {
    const i64 taps = layer_.taps(), here = std::min(lanes_, layer_.rows - row);
    const i64 window = window_[0] * window_[1] * window_[2], most = kWeightBytes / (taps * lanes_ * sizeof(T));
    const T* const end = w + layer_.groups * layer_.rows * layer_.cols * taps;
    std::vector<i64> order;
    for (i64 i = 0; i < lines_[2]; ++i) order.push_back(i);
    for (i64 column = 0; column < layer_.cols; column += columns_) {
      const i64 columns = std::min(columns_, layer_.cols - column);
      for (i64 c = 0; c < columns; c += most) {
        const i64 count = std::min(most, columns - c), length = count * lanes_;
        T* const plain = scratch<T>(static_cast<std::size_t>(taps * length + (window + 3 * p_.lines) * length));
        T *const numbers = plain + taps * length, *const points = numbers + window * length,
                 *const spare = points + p_.lines * length;
        kernels_.transpose(w + ((group * layer_.rows + row) * layer_.cols + column + c) * taps, end, layer_.cols * taps,
                           here, count * taps, nullptr, plain, lanes_);
        for (i64 lead = 0; lead < leads_; ++lead)
          for (i64 phase = 0; phase < layer_.stride[2]; ++phase) {
            for (i64 place = 0; place < window; ++place) {
              const i64 from = tap(lead * layer_.stride[2] + phase, place);
              T* to = numbers + place * length;
              if (from < 0)
                std::fill_n(to, length, T(0));
              else
                kernels_.transform_sets[1](plain + from * lanes_, 0, taps * lanes_, count, to, 0, lanes_);
            }
            transform_row(
                kernels_, p_,
                {window_, lines_, window_[1] * window_[2] * length, window_[2] * length, length, lanes_, order.data()},
                numbers, count, spare, points, length, lanes_);
            for (i64 point = 0; point < p_.points; ++point) {
              const std::vector<Block>& all = blocks(lead, point);
              const i64 size = static_cast<i64>(all.size());
              T* to = weights_.data() + weights_at(group, column, columns, lead, point) + row * size * columns;
              for (std::size_t b = 0; b < all.size(); ++b)
                if (all[b].phase == phase)
                  std::copy_n(points + all[b].line * length, length, to + (static_cast<i64>(b) * columns + c) * lanes_);
            }
          }
      }
    }
  }

  void compute(const Call& call, const Tile& tile, const T* bias, const T* x, T* y) const {
    const i64 sets = tile.rows * tile.count;
    T* const inputs =
        scratch<T>(static_cast<std::size_t>(inputs_ + products_ + turned_ + 2 * p_.lines * across_ * lanes_));
    T *const products = inputs + inputs_, *const turned = products + products_, *const spare = turned + turned_;
    std::fill_n(products, p_.points * sets * tile.wide, T(0));
    for (i64 column = 0; column < layer_.cols; column += columns_)
      for (i64 lead = 0; lead < leads_; ++lead) {
        const i64 columns = std::min(columns_, layer_.cols - column);
        // Rows below each other lie near each other in memory; channels do not.
        for (i64 c = 0; c < columns; c += lanes_)
          for (i64 r = 0; r < tile.rows; ++r)
            transform_inputs(call, tile, r, lead, column + c, std::min(lanes_, columns - c), x, turned, spare,
                             inputs + r * tile.count * pitch_ + c, sets);
        multiply(tile, column, columns, lead, sets, inputs, products);
      }
    for (i64 r = 0; r < tile.rows; ++r) write(call, tile, r, sets, bias, products, inputs, y);
  }

  // inputs[phase of the last axis][line][set][column], of a row of sets and a vector of columns
  void transform_inputs(const Call& call, const Tile& tile, i64 r, i64 lead, i64 column, i64 columns, const T* x,
                        T* turned, T* spare, T* inputs, i64 sets) const {
    const auto [image, z, y] = set_row(tile.row + r, sets_[0], sets_[1]);
    const Image<T> from = image_of(x, call.batch, layer_.groups * layer_.cols, call.in, call.reads_last, image,
                                   tile.group * layer_.cols + column);
    const Size& stride = layer_.stride;
    const i64 span = input_span(tile.count), line = span * lanes_;
    for (i64 i = 0; i < lines_[0] * lines_[1]; ++i)
      turn_row(kernels_, from, columns,
               base_[0] + (z * outputs_[0] + shift_[0][static_cast<std::size_t>(i / lines_[1])]) * stride[0] +
                   lead / stride[1],
               base_[1] + (y * outputs_[1] + shift_[1][static_cast<std::size_t>(i % lines_[1])]) * stride[1] +
                   lead % stride[1],
               base_[2] + tile.left * outputs_[2] * stride[2], span, turned + i * line);
    const SetNumbers numbers{
        lines_, lines_, lines_[1] * line, line, stride[2] * lanes_, outputs_[2] * stride[2] * lanes_, shift_[2].data()};
    for (i64 phase = 0; phase < stride[2]; ++phase)
      transform_row(kernels_, p_, numbers, turned + phase * lanes_, tile.count, spare,
                    inputs + phase * p_.lines * sets * pitch_, sets * pitch_, pitch_);
  }

  // products[point][set][row] += weights * inputs
  void multiply(const Tile& tile, i64 column, i64 columns, i64 lead, i64 sets, const T* inputs, T* products) const {
    const i64 most_rows = piece(tile.wide / lanes_, kMaxRowVectors) * lanes_;
    const i64 positions = piece(sets, fitting_positions(most_rows / lanes_, kernels_.registers));
    i64 w_offset[kMostTerms], x_tap[kMostTerms], c_offset[kMaxPositions];
    const T* from;
    ChannelProduct<T> p;
    p.w_offset = w_offset;
    p.x = &from;
    p.x_pitch = pitch_;
    p.x_tap = x_tap;
    p.columns = columns;
    p.c_offset = c_offset;
    p.accumulate = true;
    p.bias = nullptr;
    for (i64 point = 0; point < p_.points; ++point) {
      const std::vector<Block>& all = blocks(lead, point);
      p.taps = static_cast<i64>(all.size());
      if (p.taps == 0) continue;
      for (std::size_t b = 0; b < all.size(); ++b) {
        w_offset[b] = static_cast<i64>(b) * columns * lanes_;
        x_tap[b] = (all[b].phase * p_.lines + all[b].line) * sets * pitch_;
      }
      p.w_tile_stride = p.taps * columns * lanes_;
      const T* weights = weights_.data() + weights_at(tile.group, column, columns, lead, point);
      for (i64 r = 0; r < tile.wide; r += most_rows) {
        const i64 here = std::min(most_rows, tile.wide - r);
        p.w = weights + (tile.first + r) * p.taps * columns;
        p.c = products + point * sets * tile.wide + r;
        for (i64 first = 0; first < sets; first += positions) {
          const i64 now = std::min(positions, sets - first);
          from = inputs + first * pitch_;
          for (i64 q = 0; q < now; ++q) c_offset[q] = (first + q) * tile.wide;
          kernels_.line_product[here / lanes_][now](p);
        }
      }
    }
  }

  // The outputs of one row of sets.
  void write(const Call& call, const Tile& tile, i64 r, i64 sets, const T* bias, const T* products, T* spare,
             T* y) const {
    const i64 length = tile.count * tile.wide, pitch = tile.wide + lanes_;
    const i64 left = tile.left * outputs_[2], width = std::min(tile.count * outputs_[2], call.out[2] - left);
    const T* from[kMostLines];
    for (i64 point = 0; point < p_.points; ++point)
      from[point] = products + (point * sets + r * tile.count) * tile.wide;
    T* const buffer = spare;
    spare += across_ * outputs_[0] * outputs_[1] * outputs_[2] * (rows_ + lanes_);
    const i64 outer = transform_back_leading(kernels_, p_, kAxes - 1, length, spare, from);
    const auto [image, z, down] = set_row(tile.row + r, sets_[0], sets_[1]);
    const i64 channels = layer_.groups * layer_.rows, plane = call.out[0] * call.out[1] * call.out[2];
    const i64 channel = tile.group * layer_.rows + tile.first;
    for (i64 row = 0; row < outer; ++row) {
      const i64 oz = z * outputs_[0] + row / outputs_[1], oy = down * outputs_[1] + row % outputs_[1];
      if (oz >= call.out[0] || oy >= call.out[1]) continue;
      const i64 first = (oz * call.out[1] + oy) * call.out[2] + left;
      T* const to = call.writes_last ? y + (image * plane + first) * channels + channel : buffer;
      const i64 apart = call.writes_last ? channels : pitch;
      if (p_.axis[2].filtered) {
        // All sets that are whole, then one with some outputs outside, if there is one.
        const i64 whole = width / outputs_[2];
        for (i64 i = 0; i < tile.count;) {
          const i64 together = i < whole ? whole : 1;
          const T* four[4];
          T* dst[3] = {};
          for (i64 k = 0; k < 4; ++k) four[k] = from[row * 4 + k] + i * tile.wide;
          for (i64 k = 0; k < outputs_[2]; ++k) {
            const i64 at = i * outputs_[2] + k;
            dst[k] = at < width ? to + at * apart : nullptr;
          }
          kernels_.transform_outputs(four, tile.wide, together, tile.wide, static_cast<int>(outputs_[2]), bias, dst,
                                     outputs_[2] * apart, false);
          i += together;
        }
      } else {
        for (i64 i = 0; i < width; ++i)
          for (i64 c = 0; c < tile.wide; ++c)
            to[i * apart + c] = from[row][i * tile.wide + c] + (bias ? bias[c] : T(0));
      }
      if (!call.writes_last)
        turn_outputs(kernels_, buffer, buffer + width * pitch, pitch, width,
                     std::min(tile.wide, layer_.rows - tile.first), y + (image * channels + channel) * plane + first,
                     plane);
    }
  }

  const Layer layer_;
  const Call call_;
  const Kernels<T>& kernels_;
  const MinimalPacking p_;
  const i64 lanes_, padded_, leads_;  // rows of whole vectors; phases of the leading axes
  Size outputs_, lines_, window_, sets_, base_;
  std::vector<i64> shift_[kAxes];           // of a line, in positions
  std::vector<std::vector<Block>> blocks_;  // per phase of the leading axes and point
  std::vector<i64> before_;                 // blocks of those before
  i64 all_blocks_ = 0;
  i64 columns_ = 1, pitch_ = 1;
  i64 rows_ = 0, across_ = 0, down_ = 0;  // of a task
  i64 inputs_ = 0, products_ = 0, turned_ = 0;
  Buffer<T> weights_;
};

// What it depends on whether this way is taken.
struct Question {
  Layer layer;
  Call call;
  const void* kernels;
  int threads;
  Method method;
  double limit;
  bool operator==(const Question&) const = default;
};

}  // namespace

template <typename T>
std::unique_ptr<Way<T>> minimal_adjoint(const Layer& layer, const Call& call, const Kernels<T>& kernels, const T* w,
                                        int threads, Method method, double limit) {
  const bool wanted = method == Method::kFastest || method == Method::kFiltered;
  if (layer.transposed || !wanted || call.batch == 0) return nullptr;
  if (method != Method::kFiltered && cycles_directly(layer, call, kernels.lanes) < kSmall) return nullptr;
  auto make = [&]() -> std::unique_ptr<MinimalAdjoint<T>> {
    Layer forward = layer;
    forward.transposed = true;
    auto packing = plan_minimal_packing(forward, target_of(kernels), false);
    if (!packing) return nullptr;
    auto way = std::make_unique<MinimalAdjoint<T>>(layer, call, kernels, std::move(*packing));
    if (!way->cut(threads, method, limit)) return nullptr;
    return way;
  };
  std::unique_ptr<MinimalAdjoint<T>> way;
  const Question question{layer, call, &kernels, threads, method, limit};
  if (!remembered(question, [&] { return (way = make()) != nullptr; })) return nullptr;
  if (!way) way = make();
  way->pack(w, threads);
  return way;
}

template std::unique_ptr<Way<float>> minimal_adjoint<float>(const Layer&, const Call&, const Kernels<float>&,
                                                            const float*, int, Method, double);
template std::unique_ptr<Way<double>> minimal_adjoint<double>(const Layer&, const Call&, const Kernels<double>&,
                                                              const double*, int, Method, double);

}  // namespace upscore
