#include "minimal.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "execute.h"
#include "panel.h"
#include "scratch.h"
#include "tasks.h"
#include "threads.h"
#include "write.h"

namespace upscore {
namespace {

constexpr i64 kAhead = 4;  // input channels that are fetched ahead

template <typename T>
void transform_weights(const MinimalPacking& p, T* at) {
  // In place, an axis at a time; `at` is [window z][window y][window x] and becomes [lines z][lines y][lines x].
  i64 size[kAxes] = {p.axis[0].window, p.axis[1].window, p.axis[2].window};
  T in[kMostLines];
  for (std::size_t a = 0; a < kAxes; ++a) {
    if (!p.axis[a].filtered) continue;
    i64 outer = 1, inner = 1;
    for (std::size_t b = 0; b < a; ++b) outer *= size[b];
    for (std::size_t b = a + 1; b < kAxes; ++b) inner *= size[b];
    const i64 window = size[a];
    std::copy_n(at, outer * window * inner, in);
    for (i64 o = 0; o < outer; ++o)
      for (i64 i = 0; i < inner; ++i) {
        const T* g = in + o * window * inner + i;
        T* u = at + o * 4 * inner + i;
        const T g0 = g[0], middle = window == 3 ? g[inner] : T(0), last = g[(window - 1) * inner];
        // At 1 and -1: (g0 + g1 + g2)/2 and (g0 - g1 + g2)/2; with two taps (g0 + g1)/2 and (g0 - g1)/2.
        const T even = window == 3 ? g0 + last : g0, odd = window == 3 ? middle : last;
        u[0] = g0;
        u[inner] = (even + odd) / 2;
        u[2 * inner] = (even - odd) / 2;
        u[3 * inner] = last;
      }
    size[a] = 4;
  }
}

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
        target_(target_of(kernels)),
        packed_(packed),
        bias_(bias),
        x_(x),
        y_(y) {
    const AxisPlan* axis = schedule.axis;
    if (call.writes_last && packing.strips) {
      strip_phases_ = layer.stride[2];
      for (i64 point = 0; point <= packing.points; ++point) before_.push_back(point * strip_phases_);
      phase_row_ = {0, 0, 1};
      output_row_ = {packing.axis[1].outputs() * axis[2].out_step, axis[2].out_step, layer.stride[2]};
    } else {
      strip_phases_ = packing.phases;
      before_ = packing.before;
      phase_row_ = {axis[1].out_step * axis[2].out_step, axis[2].out_step, 1};
      for (std::size_t a = 0; a < kAxes; ++a) output_row_[a] = layer.stride[a] * phase_row_[a];
    }
    for (std::size_t a = 0; a < packing.filtered.back(); ++a) {
      std::vector<i64> next;
      for (i64 row : outputs_before_)
        for (i64 k = 0; k < packing.axis[a].outputs(); ++k) next.push_back(row + k * output_row_[a]);
      outputs_before_ = std::move(next);
    }
    if (call.writes_last) biases_ = bias_of_phases(bias, layer.rows, axis[2].out_step);
  }

  void run() {
    const Tasks tasks(layer_, call_, s_.tiles, layer_.groups, s_.parts);
    parallel_for(tasks.count(), s_.threads, [&](i64 index) {
      const auto [tile, group, part] = tasks[index];
      compute(tile, group, part * s_.part, std::min((part + 1) * s_.part, layer_.rows));
    });
  }

 private:
  void compute(i64 tile, i64 group, i64 first_row, i64 last_row) {
    thread_local std::vector<Segment> segments;
    const i64 first = tile * s_.width, last = std::min(first + s_.width, s_.positions);
    split_tile(s_.axis, first, last, segments);
    const i64 width = ceil_div(last - first, target_.lanes) * target_.lanes;
    const i64 copies = 2 * packing_.lines * (s_.width + target_.lanes);
    const i64 turned = s_.line * target_.lanes;
    T* inputs = scratch<T>(
        static_cast<std::size_t>(s_.inputs + s_.products + s_.sums + s_.width + copies + turned + s_.writing.staging));
    T* products = inputs + s_.inputs;
    T* sums = products + s_.products;
    T* zeros = sums + s_.sums;
    T* copied = zeros + s_.width;
    std::fill_n(zeros, width, T(0));
    transform(segments, group, width, copied, copied + copies, inputs);
    const bool few = call_.writes_last;
    const i64 plane = call_.out[0] * call_.out[1] * call_.out[2], together = few ? layer_.rows : 1;
    auto writer = [&](i64 first_strip, i64 strips) {
      return Writer<T>(kernels_, s_.writing, s_.axis, segments, first_strip, strips, width,
                       layer_.groups * layer_.rows * plane, copied + copies + turned, together);
    };
    const i64 z_steps = s_.axis[0].out_step, y_steps = s_.axis[1].out_step;
    std::optional<Writer<T>> whole;  // of all phases
    if (strip_phases_ == packing_.phases) whole.emplace(writer(0, z_steps * y_steps));
    for (i64 strip = 0; strip < packing_.phases; strip += strip_phases_) {
      for (i64 row = first_row; row < last_row; row += s_.chunk) {
        const i64 rows = std::min(s_.chunk, last_row - row);
        multiply(group, row, rows, strip, width, inputs, products);
        for (i64 r = 0; r < rows; ++r) {
          T* const to = few ? sums + (row + r) * width : sums;
          transform_back(r, rows, strip, width, together, products, zeros, copied, to);
          const i64 channel = group * layer_.rows + row + r;
          if (!few) whole->write(to, bias_ ? bias_ + channel : nullptr, 0, y_ + channel * plane);
        }
      }
      if (!few) continue;
      if (whole) {
        whole->write(sums, biases_.data(), 1, y_);
        continue;
      }
      const T* from = sums;
      const i64 leading = strip / strip_phases_;
      for (i64 z = leading / layer_.stride[1]; z < z_steps; z += layer_.stride[0])
        for (i64 y = leading % layer_.stride[1]; y < y_steps; y += layer_.stride[1]) {
          writer(z * y_steps + y, 1).write(from, biases_.data(), 1, y_);
          from += output_row_[1] * layer_.rows * width;
        }
    }
  }

  // inputs[point][tap][column][position]
  void transform(const std::vector<Segment>& segments, i64 group, i64 width, T* copied, T* turned, T* inputs) {
    const i64 channels = layer_.groups * layer_.cols, image = call_.in[0] * call_.in[1] * call_.in[2] * channels;
    const i64 plane = image / channels;
    const bool far = !s_.line && reads_far(layer_, call_, sizeof(T));
    const T *x_begin = x_, *x_end = x_ + call_.batch * image, *x = x_ + group * layer_.cols * plane;
    const bool rows = packing_.axis[2].filtered;  // the last axis is transformed as its inputs are fetched
    PanelSource<T> source(s_.axis, s_.window, kernels_, segments, image, width);
    const i64 line_pitch = rows ? width + target_.lanes : width;  // rows are written in whole vectors
    std::vector<TileRun> runs;
    std::vector<TurnedRow> turned_rows;
    if (rows) find_runs(segments, s_.line ? plane : image, runs, turned_rows);
    if (s_.line) x_begin = turned, x_end = turned + target_.lanes * s_.line;
    for (i64 c = 0; c < layer_.cols; ++c) {
      const T* line_x = x + c * plane;
      if (s_.line) {
        const i64 lane = c % target_.lanes;
        if (lane == 0)
          turn(turned_rows, group * layer_.cols + c, std::min<i64>(target_.lanes, layer_.cols - c), turned);
        line_x = turned + lane * s_.line;
      }
      if (rows) {
        const i64 count = static_cast<i64>(segments.size());
        for (i64 line = 0; line < packing_.lines; line += 4) {
          T* to = copied + line * line_pitch;
          i64 pitch = line_pitch;
          if (packing_.last_leading < 0) std::tie(to, pitch) = destination(inputs, c, line, 1, width);
          kernels_.transform_rows(x_begin, line_x, x_end, s_.line ? 0 : kAhead * plane, far, s_.axis[2].in_step,
                                  &runs[static_cast<std::size_t>(line / 4 * count)], count, to, pitch);
        }
      } else {
        source.fill(x, x_end, plane, {0, packing_.lines, c, c + 1, 0, packing_.lines}, copied);
      }
      transform_leading(kernels_, packing_, copied, line_pitch, width,
                        [&](i64 line, i64 inner) { return destination(inputs, c, line, inner, width); });
    }
  }

  // From one point and tap to the next; rows are written in whole vectors.
  i64 plane_pitch(i64 width) const { return layer_.cols * width + target_.lanes; }

  // Where a line of a column belongs in the inputs, and how far from it the one `inner` lines on.
  std::pair<T*, i64> destination(T* inputs, i64 column, i64 line, i64 inner, i64 width) const {
    const i64 place = packing_.line_place(line), next = packing_.line_place(line + inner);
    return {inputs + place * plane_pitch(width) + column * width, (next - place) * plane_pitch(width)};
  }

  // Inputs next to each other along a row, counted over the batch, and their place where they are turned.
  struct TurnedRow {
    i64 first, count, place;
  };

  // Per row of the window and segment, the inputs of its tiles; what is turned, for those that lie channels last.
  void find_runs(const std::vector<Segment>& segments, i64 batch_stride, std::vector<TileRun>& runs,
                 std::vector<TurnedRow>& turned) const {
    const AxisPlan* axis = s_.axis;
    const auto count = segments.size(), rows = static_cast<std::size_t>(packing_.lines / 4);
    runs.resize(rows * count);
    for (std::size_t i = 0; i < count; ++i)
      for (std::size_t row = 0; row < rows; ++row) {
        const Segment& s = segments[i];
        const Size& offset = s_.window.offsets[4 * row];
        const i64 z = s.at[0] * axis[0].in_step + offset[0], y = s.at[1] * axis[1].in_step + offset[1];
        const i64 first = s.at[2] * axis[2].in_step + offset[2], length = (s.length - 1) * axis[2].in_step + 4;
        TileRun& run = runs[row * count + i];
        run = {s.place, s.length, 0, 0, 0};
        if (z < 0 || z >= axis[0].in || y < 0 || y >= axis[1].in) continue;
        run.before = std::clamp<i64>(-first, 0, length);
        run.inside = std::clamp<i64>(axis[2].in - first, run.before, length) - run.before;
        if (run.inside == 0) continue;
        run.source = s.batch * batch_stride + (z * axis[1].in + y) * axis[2].in + first + run.before;
        if (s_.line) run.source = place_of({run.source, run.inside, 0}, 2 * rows, turned);
      }
  }

  // Where these inputs are turned to: neighbouring segments read the same ones, so they may be among the last `most`.
  i64 place_of(TurnedRow row, std::size_t most, std::vector<TurnedRow>& turned) const {
    for (auto at = turned.rbegin(); at != turned.rend() && most-- > 0; ++at)
      if (row.first >= at->first && row.first + row.count <= at->first + at->count)
        return at->place + row.first - at->first;
    if (!turned.empty()) row.place = turned.back().place + round_up(turned.back().count, target_.lanes);
    turned.push_back(row);
    return row.place;
  }

  // to[column][place], of some columns.
  void turn(const std::vector<TurnedRow>& rows, i64 column, i64 columns, T* to) const {
    const i64 pixel = layer_.groups * layer_.cols;
    const T* const end = x_ + call_.batch * call_.in[0] * call_.in[1] * call_.in[2] * pixel;
    for (const TurnedRow& row : rows)
      kernels_.transpose(x_ + row.first * pixel + column, end, pixel, row.count, columns, nullptr, to + row.place,
                         s_.line);
  }

  // products[point][row of the chunk][position], of the phases of a strip
  void multiply(i64 group, i64 row, i64 rows, i64 strip, i64 width, const T* inputs, T* products) {
    const i64 depth = packing_.taps * layer_.cols;
    i64 x_offset[kMostLines];
    for (i64 tap = 0; tap < packing_.taps; ++tap) x_offset[tap] = tap * plane_pitch(width);
    for (i64 point = 0; point < packing_.points; ++point) {
      const auto at = static_cast<std::size_t>(point);
      const i64 before = packing_.before[at], phases = packing_.before[at + 1] - before;
      const T* weights =
          packed_ + ((group * packing_.before.back() + before) * layer_.rows + row * phases + strip) * depth;
      // The phases of a channel lie together, as channels do; a strip is some of each.
      const bool all = strip_phases_ == packing_.phases;
      const i64 runs = all ? 1 : rows, length = all ? rows * phases : strip_phases_;
      for (i64 run = 0; run < runs; ++run, weights += phases * depth)
        for (i64 first = 0; first < length; first += target_.tile_rows) {
          const int height = static_cast<int>(std::min<i64>(target_.tile_rows, length - first));
          tile(point, height, width, x_offset, weights + first * depth, inputs, products);
          products += height * width;
        }
    }
  }

  void tile(i64 point, int height, i64 width, const i64* x_offset, const T* weights, const T* inputs, T* to) {
    for (i64 c = 0; c < layer_.cols; c += s_.columns) {
      Product<T> p;
      p.w = weights + c * height;
      p.w_tap_stride = layer_.cols * height;
      p.w_step = height;
      p.x_offset = x_offset;
      p.x_stride = width;
      p.x_vector = target_.lanes;
      p.taps = packing_.taps;
      p.columns = std::min(s_.columns, layer_.cols - c);
      p.c_stride = width;
      p.accumulate = c > 0;
      p.x = inputs + point * packing_.taps * plane_pitch(width) + c * width;
      p.c = to;
      multiply_vectors(kernels_, p, height, width / target_.lanes);
    }
  }

  // The products of one channel and strip to its outputs: sums[phase of the stretched stride][position], `apart` rows
  // of positions between one phase and the next.
  void transform_back(i64 r, i64 rows, i64 strip, i64 width, i64 apart, const T* products, const T* zeros, T* spare,
                      T* sums) const {
    for (i64 phase = strip; phase < strip + strip_phases_; ++phase) {
      const T* from[kMostLines];
      for (i64 point = 0; point < packing_.points; ++point) {
        const auto at = static_cast<std::size_t>(point);
        const i64 rank = packing_.rank[static_cast<std::size_t>(point * packing_.phases + phase)];
        const i64 before = before_[at], phases = before_[at + 1] - before;
        from[point] = rank < 0 ? zeros : products + (before * rows + r * phases + rank - strip) * width;
      }
      const i64 px = phase % layer_.stride[2], py = phase / layer_.stride[2] % layer_.stride[1];
      const i64 pz = phase / (layer_.stride[2] * layer_.stride[1]);
      T* to = sums + (pz * phase_row_[0] + py * phase_row_[1] + px * phase_row_[2]) * apart * width;
      const std::size_t last = packing_.filtered.back();
      const i64 outer = transform_back_leading(kernels_, packing_, last, width, spare, from);
      for (i64 o = 0; o < outer; ++o)
        kernels_.transform_sums(from + 4 * o, width, static_cast<int>(packing_.axis[last].outputs()),
                                to + outputs_before_[static_cast<std::size_t>(o)] * apart * width,
                                output_row_[last] * apart * width);
    }
  }

  const Layer& layer_;
  const Call& call_;
  const MinimalPacking& packing_;
  const MinimalSchedule& s_;
  const Kernels<T>& kernels_;
  const Target target_;
  const T *packed_, *bias_, *x_;
  T* y_;
  Size phase_row_, output_row_;            // rows of sums from one phase of an axis, or output of a set, to the next
  i64 strip_phases_;                       // that are computed together;
  std::vector<i64> before_;                // per point, those of the points before it
  std::vector<T> biases_;                  // per phase of the last axis and channel, channels last
  std::vector<i64> outputs_before_ = {0};  // rows of sums of the outputs of the axes before the last filtered one
};

}  // namespace

template <typename T>
void pack_minimal(const Layer& layer, const MinimalPacking& p, const Target& target, int threads, const T* w,
                  T* packed) {
  const i64 blocks = ceil_div(layer.rows, p.block), kernel = layer.taps();
  const i64 window = static_cast<i64>(p.tap.size()) / p.phases, depth = p.taps * layer.cols;
  parallel_for(layer.groups * blocks, threads, [&](i64 task) {
    const i64 group = task / blocks, block = task % blocks * p.block;
    const i64 last = std::min(block + p.block, layer.rows);
    for (i64 column = 0; column < layer.cols; ++column)
      for (i64 channel = block; channel < last; ++channel)
        for (i64 phase = 0; phase < p.phases; ++phase) {
          const T* from = w + ((group * layer.cols + column) * layer.rows + channel) * kernel;
          T u[kMostLines];
          for (i64 i = 0; i < window; ++i) {
            const i64 tap = p.tap[static_cast<std::size_t>(phase * window + i)];
            u[i] = tap < 0 ? T(0) : from[tap];
          }
          transform_weights(p, u);
          for (i64 l = 0; l < p.lines; ++l) {
            const auto [point, tap] = p.line[static_cast<std::size_t>(l)];
            const i64 rank = p.rank[static_cast<std::size_t>(point * p.phases + phase)];
            if (rank < 0) continue;
            const i64 before = p.before[static_cast<std::size_t>(point)];
            const i64 phases = p.before[static_cast<std::size_t>(point + 1)] - before;
            if (p.last) {
              const i64 place = p.place[static_cast<std::size_t>(point * p.phases + phase)];
              const i64 tile = channel / target.lanes * target.lanes;
              packed[((group * p.before.back() + place) * layer.rows + tile) * depth +
                     (tap * layer.cols + column) * target.lanes + channel - tile] = u[l];
              continue;
            }
            const i64 row = channel * phases + rank, tile = row / target.tile_rows * target.tile_rows;
            const i64 height = std::min<i64>(target.tile_rows, layer.rows * phases - tile);
            packed[((group * p.before.back() + before) * layer.rows + tile) * depth +
                   (tap * layer.cols + column) * height + row - tile] = u[l];
          }
        }
  });
}

template <typename T>
void execute_minimal(const Layer& layer, const Call& call, const MinimalPacking& packing,
                     const MinimalSchedule& schedule, const Kernels<T>& kernels, const T* packed, const T* bias,
                     const T* x, T* y) {
  Execution<T>(layer, call, packing, schedule, kernels, packed, bias, x, y).run();
}

#define UPSCORE_INSTANTIATE(T)                                                                               \
  template void pack_minimal<T>(const Layer&, const MinimalPacking&, const Target&, int, const T*, T*);      \
  template void execute_minimal<T>(const Layer&, const Call&, const MinimalPacking&, const MinimalSchedule&, \
                                   const Kernels<T>&, const T*, const T*, const T*, T*);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
