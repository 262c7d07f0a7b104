#include <algorithm>
#include <tuple>
#include <utility>

#include "minimal.h"
#include "panel.h"
#include "scratch.h"
#include "tasks.h"
#include "threads.h"

namespace upscore {
namespace {

// Lanes run along channels: those of the inputs while they are transformed, those of the outputs from then on.
template <typename T>
class Execution {
 public:
  Execution(const Layer& layer, const Call& call, const MinimalPacking& packing, const MinimalSchedule& schedule,
            const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y)
      : layer_(layer),
        call_(call),
        packing_(packing),
        s_(schedule),
        kernels_(kernels),
        packed_(packed),
        bias_(bias),
        x_(x),
        x_end_(x + call.batch * layer.groups * layer.cols * call.in[0] * call.in[1] * call.in[2]),
        y_(y),
        in_channels_(layer.groups * layer.cols),
        out_channels_(layer.groups * layer.rows),
        column_pitch_(round_up(layer.cols, kernels.lanes)),
        depth_(packing.taps * layer.cols),
        output_step_(schedule.axis[2].out_step * out_channels_) {
    for (const MinimalAxis& axis : packing.axis) outputs_ *= axis.outputs();
    for (i64 phase = 0; phase < packing.phases; ++phase)
      for (i64 number = 0; number < outputs_; ++number) {
        Size shift;
        for (i64 a = kAxes - 1, p = phase, n = number; a >= 0; --a) {
          const auto at = static_cast<std::size_t>(a);
          shift[at] = n % packing.axis[a].outputs() * layer.stride[at] + p % layer.stride[at];
          n /= packing.axis[a].outputs();
          p /= layer.stride[at];
        }
        shift_.push_back(shift);
      }
    past_caches_ = schedule.writing.stream && lies_on_vector(y, kernels);
  }

  void run() {
    const Tasks tasks(layer_, call_, s_.tiles, layer_.groups, s_.parts);
    parallel_for(tasks.count(), s_.threads, [&](i64 index) {
      const auto [tile, group, part] = tasks[index];
      compute(tile, group, part * s_.part, std::min((part + 1) * s_.part, layer_.rows));
    });
  }

 private:
  void compute(i64 tile, i64 group, i64 first_row, i64 last_row) const {
    thread_local std::vector<Segment> segments;
    const i64 first = tile * s_.width, count = std::min(s_.width, s_.positions - first);
    split_tile(s_.axis, first, first + count, segments);
    const i64 lines = packing_.lines * column_pitch_;
    T* inputs = scratch<T>(static_cast<std::size_t>(s_.inputs + s_.products + s_.sums + lines + 4 * column_pitch_));
    T* products = inputs + s_.inputs;
    T* spare = products + s_.products;
    T* copied = spare + s_.sums;
    transform(segments, group, copied, copied + lines, inputs);
    for (i64 row = first_row; row < last_row; row += s_.chunk) {
      const i64 rows = std::min(s_.chunk, last_row - row);
      const i64 together = ceil_div(kTransformedTogether, rows);
      std::fill_n(spare, together * rows, T(0));
      for (i64 phase = 0; phase < packing_.phases; ++phase) {
        multiply(phase, group, row, rows, count, inputs, products);
        for (const Segment& s : segments)
          for (i64 i = 0; i < s.length; i += together)
            transform_back(phase, s, i, std::min(together, s.length - i), group * layer_.rows + row, rows, products,
                           spare, spare + together * rows);
      }
    }
  }

  // From one point and tap to the next.
  i64 plane_pitch() const { return s_.width * column_pitch_; }

  // inputs[point][tap][position][column]. Along the last axis they are transformed as they are read.
  void transform(const std::vector<Segment>& segments, i64 group, T* copied, T* border, T* inputs) const {
    const bool rows = packing_.axis[2].filtered;
    const i64 together = rows ? 4 : 1;
    for (const Segment& s : segments)
      for (i64 i = 0; i < s.length; ++i) {
        T* const to_inputs = inputs + (s.place + i) * column_pitch_;
        for (i64 line = 0; line < packing_.lines; line += together) {
          T* to = copied + line * column_pitch_;
          i64 pitch = column_pitch_;
          if (packing_.last_leading < 0) std::tie(to, pitch) = destination(to_inputs, line, 1);
          const T* from = read(s, i, line, together, group, border, rows ? nullptr : to);
          if (rows)
            kernels_.transform_sets[4](from, from == border ? column_pitch_ : in_channels_, kernels_.lanes,
                                       column_pitch_ / kernels_.lanes, to, pitch, kernels_.lanes);
        }
        transform_leading(kernels_, packing_, copied, column_pitch_, layer_.cols,
                          [&](i64 line, i64 inner) { return destination(to_inputs, line, inner); });
      }
  }

  // Where a line belongs in the inputs of a position, and how far from it the one `inner` lines on.
  std::pair<T*, i64> destination(T* inputs, i64 line, i64 inner) const {
    const i64 place = packing_.line_place(line), next = packing_.line_place(line + inner);
    return {inputs + place * plane_pitch(), (next - place) * plane_pitch()};
  }

  // The inputs at `count` lines, next to each other along the last axis, of position i of a segment: where they lie, if
  // whole vectors of them can be read there; otherwise a copy, with zeros for what is outside.
  const T* read(const Segment& s, i64 i, i64 line, i64 count, i64 group, T* border, T* copy_to) const {
    const AxisPlan* axis = s_.axis;
    const Size& offset = s_.window.offsets[static_cast<std::size_t>(line)];
    const i64 z = s.at[0] * axis[0].in_step + offset[0], y = s.at[1] * axis[1].in_step + offset[1];
    const i64 first = (s.at[2] + i) * axis[2].in_step + offset[2];
    const bool exists = z >= 0 && z < axis[0].in && y >= 0 && y < axis[1].in;
    const T* const row =
        x_ + ((s.batch * axis[0].in + (exists ? z : 0)) * axis[1].in + (exists ? y : 0)) * axis[2].in * in_channels_ +
        group * layer_.cols;
    T* to = copy_to ? copy_to : border;
    if (!copy_to && exists && first >= 0 && first + count <= axis[2].in &&
        x_end_ - row >= (first + count - 1) * in_channels_ + column_pitch_)
      return row + first * in_channels_;
    for (i64 k = 0; k < count; ++k) {
      const bool inside = exists && first + k >= 0 && first + k < axis[2].in;
      if (inside) std::copy_n(row + (first + k) * in_channels_, layer_.cols, to + k * column_pitch_);
      std::fill(to + k * column_pitch_ + (inside ? layer_.cols : 0), to + (k + 1) * column_pitch_, T(0));
    }
    return to;
  }

  // products[point][position][row of the chunk], of one phase
  void multiply(i64 phase, i64 group, i64 row, i64 rows, i64 count, const T* inputs, T* products) const {
    const i64 lanes = kernels_.lanes, most_rows = piece(rows / lanes, kMaxRowVectors) * lanes;
    const i64 fit = fitting_positions(most_rows / lanes, kernels_.registers);
    const i64 positions = piece(count, fit);
    i64 w_offset[kMostLines], x_tap[kMostLines];
    for (i64 tap = 0; tap < packing_.taps; ++tap) {
      w_offset[tap] = tap * layer_.cols * lanes;
      x_tap[tap] = tap * plane_pitch();
    }
    const T* x;
    i64 c_offset[kMaxPositions];
    ChannelProduct<T> p;
    p.w_tile_stride = depth_ * lanes;
    p.w_offset = w_offset;
    p.x = &x;
    p.x_pitch = column_pitch_;
    p.x_tap = x_tap;
    p.taps = packing_.taps;
    p.c_offset = c_offset;
    p.bias = nullptr;
    for (i64 point = 0; point < packing_.points; ++point) {
      const i64 place = place_of(point, phase);
      if (place < 0) continue;
      for (i64 r = 0; r < rows; r += most_rows) {
        const i64 here = std::min(most_rows, rows - r);
        const T* weights = packed_ + ((group * packing_.before.back() + place) * layer_.rows + row + r) * depth_;
        p.c = products + point * s_.width * rows + r;
        for (i64 c = 0; c < layer_.cols; c += s_.columns) {
          p.w = weights + c * lanes;
          p.columns = std::min(s_.columns, layer_.cols - c);
          p.accumulate = c > 0;
          for (i64 first = 0; first < count; first += positions) {
            const i64 now = std::min(positions, count - first);
            x = inputs + point * packing_.taps * plane_pitch() + first * column_pitch_ + c;
            for (i64 q = 0; q < now; ++q) c_offset[q] = (first + q) * rows;
            kernels_.line_product[here / lanes][now](p);
          }
        }
      }
    }
  }

  i64 place_of(i64 point, i64 phase) const {
    return packing_.place[static_cast<std::size_t>(point * packing_.phases + phase)];
  }

  // The products of the positions [i, i + count) of a segment to their outputs, where they belong. Along all axes but
  // the last one they are transformed together.
  void transform_back(i64 phase, const Segment& s, i64 i, i64 count, i64 channel, i64 rows, const T* products,
                      const T* zeros, T* spare) const {
    const T* from[kMostLines];
    for (i64 point = 0; point < packing_.points; ++point)
      from[point] = place_of(point, phase) < 0 ? zeros : products + (point * s_.width + s.place + i) * rows;
    const i64 outer = transform_back_leading(kernels_, packing_, packing_.filtered.back(), count * rows, spare, from);
    const i64 outputs = packing_.axis[packing_.filtered.back()].outputs();
    const T* const bias = bias_ ? bias_ + channel : nullptr;
    for (i64 o = 0; o < outer; ++o) {
      Outputs all[3];
      Range whole{0, count};  // of positions that have all outputs that any has
      for (i64 k = 0; k < outputs; ++k) {
        all[k] = outputs_of(s, i, count, phase, o * outputs + k, channel);
        if (!all[k].first) continue;
        whole = {std::max(whole.first, all[k].exist.first), std::min(whole.last, all[k].exist.last)};
      }
      whole.last = std::max(whole.first, whole.last);
      for (i64 q = 0; q < count;) {
        const i64 together = q == whole.first && whole.first < whole.last ? whole.last - q : 1;
        const T* four[4];
        T* dst[3] = {};
        for (i64 k = 0; k < 4; ++k) four[k] = from[o * 4 + k] + q * rows;
        for (i64 k = 0; k < outputs; ++k)
          if (q >= all[k].exist.first && q < all[k].exist.last) dst[k] = all[k].first + q * output_step_;
        kernels_.transform_outputs(four, rows, together, rows, static_cast<int>(outputs), bias, dst, output_step_,
                                   past_caches_);
        q += together;
      }
    }
  }

  struct Range {
    i64 first, last;
  };
  // The outputs of one number of a set and phase: where that of position 0 would be, and of which positions they exist;
  // nowhere, and of none, where their rows are cropped.
  struct Outputs {
    T* first;
    Range exist;
  };

  // Of the positions [i, i + count) of a segment.
  Outputs outputs_of(const Segment& s, i64 i, i64 count, i64 phase, i64 number, i64 channel) const {
    const AxisPlan* axis = s_.axis;
    const Size& shift = shift_[static_cast<std::size_t>(phase * outputs_ + number)];
    i64 index = s.batch;
    for (std::size_t a = 0; a < 2; ++a) {
      const i64 y = axis[a].base + s.at[a] * axis[a].out_step + shift[a];
      if (y < 0 || y >= axis[a].out) return {nullptr, {0, 0}};
      index = index * axis[a].out + y;
    }
    const i64 step = axis[2].out_step, x = axis[2].base + (s.at[2] + i) * step + shift[2];
    const i64 first = std::clamp<i64>(ceil_div(-x, step), 0, count);
    return {y_ + (index * axis[2].out + x) * out_channels_ + channel,
            {first, std::clamp<i64>(ceil_div(axis[2].out - x, step), first, count)}};
  }

  const Layer& layer_;
  const Call& call_;
  const MinimalPacking& packing_;
  const MinimalSchedule& s_;
  const Kernels<T>& kernels_;
  const T *packed_, *bias_, *x_, *x_end_;
  T* y_;
  const i64 in_channels_, out_channels_, column_pitch_, depth_, output_step_;
  i64 outputs_ = 1;          // of a set
  std::vector<Size> shift_;  // per phase and output of a set, from the first output of phase 0
  bool past_caches_ = false;
};

}  // namespace

template <typename T>
void execute_minimal_last(const Layer& layer, const Call& call, const MinimalPacking& packing,
                          const MinimalSchedule& schedule, const Kernels<T>& kernels, const T* packed, const T* bias,
                          const T* x, T* y) {
  Execution<T>(layer, call, packing, schedule, kernels, packed, bias, x, y).run();
}

#define UPSCORE_INSTANTIATE(T)                                                                                    \
  template void execute_minimal_last<T>(const Layer&, const Call&, const MinimalPacking&, const MinimalSchedule&, \
                                        const Kernels<T>&, const T*, const T*, const T*, T*);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
