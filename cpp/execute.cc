#include "execute.h"

#include <algorithm>
#include <optional>

#include "channel_lanes.h"
#include "panel.h"
#include "positions.h"
#include "scratch.h"
#include "tasks.h"
#include "threads.h"
#include "write.h"

namespace upscore {

template <typename T>
Target target_of(const Kernels<T>& kernels) {
  return {kernels.lanes, kernels.tile_rows, kernels.registers, static_cast<int>(sizeof(T)), kernels.bf16 != nullptr};
}

namespace {

constexpr i64 kNearWeights = 256 << 10;  // bytes that stay in a core's caches: there is nothing to fetch of them

template <typename T>
class Execution {
 public:
  Execution(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
            const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y)
      : layer_(layer),
        call_(call),
        packing_(packing),
        schedule_(schedule),
        kernels_(kernels),
        target_(target_of(kernels)),
        packed_(packed),
        bias_(bias),
        x_(x),
        y_(y) {
    if (call.writes_last) biases_ = bias_of_phases(bias, layer.rows, schedule.axis[2].out_step);
    if (takes_products()) find_rows();
  }

  void run() {
    const Parts parts(layer_, call_, packing_, schedule_);
    parallel_for(parts.count(), schedule_.threads, [&](i64 index) { compute(parts.tile(index), parts[index]); });
  }

 private:
  // What this thread will copy next: fetched while products are computed, a cache line of every channel for each tap.
  struct Ahead {
    std::vector<const T*> lines;
    i64 next = 0;

    const T* const* take(i64 count) {
      if (next + count > static_cast<i64>(lines.size())) return nullptr;
      next += count;
      return lines.data() + next - count;
    }
  };

  // The places that a panel was copied from lie as far from those of the next one, as good as always.
  void look_ahead(const std::vector<Run>& runs, i64 tile, const Part& part, std::size_t reduction, Ahead& ahead) const {
    ahead.lines.clear();
    ahead.next = 0;
    const i64 plane = call_.in[0] * call_.in[1] * call_.in[2];
    const i64 weights = packing_.per_column * layer_.cols * i64{sizeof(T)};
    if (packing_.bf16 || call_.reads_last || !reads_far(layer_, call_, sizeof(T)) || weights > kNearWeights) return;
    const i64 column = schedule_.reductions[reduction].column_first;
    i64 away;
    if (reduction + 1 < schedule_.reductions.size()) {
      away = (schedule_.reductions[reduction + 1].column_first - column) * plane;
    } else {
      if (part.first_row + part.rows < layer_.rows || tile + 1 == schedule_.tile.count) return;
      away = first_input(tile + 1) - first_input(tile) - column * plane;
      if (part.group + 1 < layer_.groups) away = layer_.cols * plane - column * plane;
    }
    if (away == 0) return;
    const T* x = x_ + (part.group * layer_.cols + column) * plane + away;
    constexpr i64 line = 64 / i64{sizeof(T)};
    for (const Run& run : runs)
      if (run.source >= 0)
        for (i64 i = 0, all = (run.length - 1) * schedule_.axis[2].in_step + 1; i < all + line - 1; i += line)
          ahead.lines.push_back(x + run.source + std::min(i, all - 1));
  }

  // Where a tile's first position is, counted in inputs of a channel.
  i64 first_input(i64 tile) const {
    const AxisPlan* axis = schedule_.axis;
    const Tile& t = schedule_.tile;
    i64 x, y, rest;
    if (schedule_.window.by_rows) {
      x = tile % t.per_row * t.positions;
      y = tile / t.per_row % t.per_column * t.rows;
      rest = tile / (t.per_row * t.per_column);
    } else {
      const i64 first = tile * t.positions;
      x = first % axis[2].positions;
      y = first / axis[2].positions % axis[1].positions;
      rest = first / (axis[2].positions * axis[1].positions);
    }
    const i64 z = rest % axis[0].positions, n = rest / axis[0].positions;
    const i64 image = layer_.groups * layer_.cols * call_.in[0] * call_.in[1] * call_.in[2];
    return n * image + ((z * axis[0].in_step * call_.in[1]) + y * axis[1].in_step) * call_.in[2] + x * axis[2].in_step;
  }

  void compute(i64 tile, const Part& part) {
    // In a last tile, which may be smaller, the reductions, and with them the bits, stay the same.
    const auto [segments, rows, row] = split_task(schedule_, tile, target_.lanes);
    const i64 width = rows * row;
    const i64 plane = call_.in[0] * call_.in[1] * call_.in[2];
    PanelSource<T> source = source_of(layer_, call_, schedule_, kernels_, {segments, rows, row});
    T* panel = scratch<T>(static_cast<std::size_t>(schedule_.panel + schedule_.sums + schedule_.writing.staging));
    T* sums = panel + schedule_.panel;

    const i64 step = packing_.fused ? 1 : schedule_.axis[2].out_step;
    const i64 first_phase = packing_.fused ? 0 : part.first_strip * step;
    const i64 phases = packing_.fused ? 1 : part.strips * step;
    thread_local std::vector<T*> outputs;
    const bool direct = find_outputs(segments, outputs);
    const bool pairs = !direct && !pairs_.empty();
    if (pairs) {
      outputs.clear();
      for (i64 i = 0; i < width; i += target_.lanes) outputs.push_back(sums + 2 * i);
    }
    const OutputRows<T> taken{outputs.data(), direct ? rows_.data() : pairs_.data(),
                              direct && schedule_.writing.stream};
    const i64 sums_width = pairs ? schedule_.tile.width : width;
    std::optional<Writer<T>> writer;
    if (!direct)
      writer.emplace(kernels_, schedule_.writing, schedule_.axis, segments, part.first_strip, part.strips, sums_width,
                     layer_.groups * layer_.rows * call_.out[0] * call_.out[1] * call_.out[2], sums + schedule_.sums,
                     call_.writes_last ? layer_.rows : 1, pairs);
    const i64 pitch = width * (call_.writes_last ? part.rows : 1);
    for (Part one = part; one.group < part.group + part.groups; ++one.group) {
      for (std::size_t i = 0; i < schedule_.reductions.size(); ++i) {
        const Reduction& r = schedule_.reductions[i];
        if (i == 0 || !r.same_inputs(schedule_.reductions[i - 1]))
          fill(source, x_ + one.group * layer_.cols * (call_.reads_last ? 1 : plane), plane, r, panel);
        thread_local Ahead ahead;
        look_ahead(source.runs(), tile, one, i, ahead);
        const OutputRows<T>* const to = (direct || pairs) && i + 1 == schedule_.reductions.size() ? &taken : nullptr;
        for (i64 phase = 0; phase < phases; ++phase)
          multiply(source, first_phase + phase, one, r, i > 0, row, rows, panel, sums + phase * pitch, ahead, to);
      }
      if (writer) write(*writer, one, sums_width, sums);
    }
    if constexpr (std::is_same_v<T, float>)
      if (packing_.bf16) kernels_.bf16->use(0);
  }

  void fill(PanelSource<T>& source, const T* x, i64 plane, const Reduction& r, T* panel) const {
    const T* const x_end = x_ + call_.batch * layer_.groups * layer_.cols * plane;
    if (!packing_.bf16) return source.fill(x, x_end, plane, r, panel);
    if constexpr (std::is_same_v<T, float>) {
      const i64 length = (r.line_last - r.line_first) * source.line(), pitch = bf16_pitch(length);
      auto* to = reinterpret_cast<std::uint32_t*>(panel + schedule_.parts);
      Reduction tile = r;
      for (i64 c = r.column_first; c < r.column_last; c += kBf16Terms, to += kBf16Parts * kBf16Terms / 2 * pitch) {
        tile.column_first = c;
        tile.column_last = std::min(c + kBf16Terms, r.column_last);
        source.fill(x, x_end, plane, tile, panel);
        kernels_.bf16->cut(panel, length, tile.column_last - c, length, to, pitch);
      }
    }
  }

  // Whether rows of products, or pairs of them, are rows of the output.
  bool takes_products() const {
    const i64 step = schedule_.axis[2].out_step;
    if (call_.writes_last) return false;
    return step == 1 ? packing_.phases == 1 : step == 2 && packing_.fused && packing_.tile_rows % 2 == 0;
  }

  // Whole vectors of them need not wait in memory until they are put together: where each vector of a tile's positions
  // goes, for the first channel and phase.
  bool find_outputs(const std::vector<Segment>& segments, std::vector<T*>& outputs) const {
    const AxisPlan* axis = schedule_.axis;
    const i64 lanes = target_.lanes, step = axis[2].out_step, plane = axis[0].out * axis[1].out * axis[2].out;
    if (rows_.empty() || (schedule_.writing.stream && !on_vectors(axis[2]))) return false;
    outputs.clear();
    i64 filled = 0;  // places
    const T* next = nullptr;
    for (const Segment& s : segments) {
      Size first;
      for (std::size_t a = 0; a < kAxes; ++a) {
        first[a] = axis[a].base + s.at[a] * axis[a].out_step;
        if (first[a] < 0 || first[a] + (a == 2 ? s.length : 1) * axis[a].out_step > axis[a].out) return false;
      }
      T* row = y_ + s.batch * layer_.groups * layer_.rows * plane + (first[0] * axis[1].out + first[1]) * axis[2].out +
               first[2];
      // A vector may run on in a row that lies behind this one.
      if (s.place != filled || (filled % lanes != 0 && (step != 1 || row != next))) return false;
      for (i64 i = ceil_div(filled, lanes) * lanes - filled; i < s.length; i += lanes)
        outputs.push_back(row + step * i);
      filled += s.length;
      next = row + s.length;
    }
    return filled % lanes == 0;
  }

  // Whether rows of the output begin where vectors do.
  bool on_vectors(const AxisPlan& axis) const {
    return axis.out % target_.lanes == 0 && axis.base % target_.lanes == 0 && lies_on_vector(y_, kernels_);
  }

  // What of a reduction a phase adds up, and where: taps and columns of a panel, whose lines are so long; the rows of
  // the class that a task has; rows * width sums of each, `pitch` from one to the next, that are there already or not.
  // With `outputs` they are written there instead.
  struct Terms {
    const Reduction& reduction;
    const PhaseClass& of;
    const Part& part;
    const i64 total, from, to;  // rows of the class: all, and those of the task
    const T* panel;
    i64 line;
    T* sums;
    i64 rows, width, pitch;
    bool accumulate;
    const OutputRows<T>* outputs;
    const ReducedTaps& taps;

    i64 columns() const { return reduction.column_last - reduction.column_first; }
    i64 lines() const { return reduction.line_last - reduction.line_first; }
  };

  // sums[channel][phase][position] (+)= weights * panel for one phase (or all of them, fused);
  // [phase][channel][position] if they are written channels last.
  void multiply(const PanelSource<T>& source, i64 phase_index, const Part& part, const Reduction& r, bool accumulate,
                i64 width, i64 rows, const T* panel, T* sums, Ahead& ahead, const OutputRows<T>* outputs) {
    const PhaseTaps& phase = schedule_.phases[static_cast<std::size_t>(phase_index)];
    const PhaseClass& c = packing_.classes[static_cast<std::size_t>(phase.packed_class)];
    const ReducedTaps taps = reduced_taps(schedule_.window, phase, r, source.line());
    const bool hollow = !schedule_.writing.hollow.empty() &&
                        schedule_.writing.hollow[static_cast<std::size_t>(phase_index / schedule_.axis[2].out_step)];
    if (taps.count == 0 && (accumulate || hollow)) return;
    // Rows that lie behind each other in the panel, too, are one.
    const bool one = source.line() == width;
    const i64 pitch = rows * width * pitch_of_rows(part);
    const Terms terms{r,
                      c,
                      part,
                      layer_.rows * c.phases,
                      part.first_row * c.phases,
                      (part.first_row + part.rows) * c.phases,
                      panel,
                      source.line(),
                      sums,
                      one ? 1 : rows,
                      one ? rows * width : width,
                      pitch,
                      accumulate,
                      outputs,
                      taps};
    if constexpr (std::is_same_v<T, float>)
      if (packing_.bf16) return multiply_parts(terms);
    multiply_numbers(terms, ahead);
  }

  // Rows of one vector are taken several at a time.
  bool across(const Terms& t) const { return t.width == target_.lanes && t.rows > 1; }

  // Where the products from a row of the class on go, and a vector of its positions.
  OutputRows<T> outputs_of(const Terms& t, i64 row, i64 vector) const {
    OutputRows<T> out = *t.outputs;
    out.vector += vector;
    out.row += (t.part.group * t.total + row) / schedule_.axis[2].out_step;
    return out;
  }

  void multiply_numbers(const Terms& t, Ahead& ahead) const {
    const i64 columns = t.columns(), vectors = t.width / target_.lanes;
    const T* weights = packed_ + (t.part.group * layer_.cols + t.reduction.column_first) * packing_.per_column +
                       t.of.weights * columns;
    for (i64 row = t.from; row < t.to; row += packing_.tile_rows) {
      const int height = static_cast<int>(std::min<i64>(packing_.tile_rows, t.total - row));
      const i64 widest = target_.vectors(height);
      Product<T> p;
      p.w = weights + (row * t.of.taps + t.taps.first * height) * columns;
      p.w_tap_stride = columns * height;
      p.w_step = height;
      p.x_offset = t.taps.place;
      p.x_stride = t.lines() * t.line;
      p.x_vector = across(t) ? t.line : target_.lanes;
      p.taps = t.taps.count;
      p.columns = columns;
      p.c_stride = t.pitch;
      p.accumulate = t.accumulate;
      p.ahead_stride = call_.in[0] * call_.in[1] * call_.in[2];
      T* const sums = t.sums + (row - t.from) * t.pitch;
      // Longer rows are taken in pieces.
      for (i64 r = 0; r < (across(t) ? 1 : t.rows); ++r)
        for (i64 v = 0, all = across(t) ? t.rows : vectors; v < all;) {
          const i64 n = next_vectors(all - v, widest);
          p.x = t.panel + r * t.line + v * p.x_vector;
          p.c = sums + r * t.width + v * target_.lanes;
          p.ahead = ahead.take(t.taps.count);
          if (t.outputs) {
            const bool pairs = schedule_.axis[2].out_step == 2;
            (pairs ? kernels_.product_pairs : kernels_.product_rows)[height][n](p, outputs_of(t, row, r * vectors + v));
          } else {
            kernels_.product[height][n](p);
          }
          v += n;
        }
    }
  }

  // By the matrix unit: bfloat16 parts of both.
  void multiply_parts(const Terms& t) const {
    const i64 padded = round_up(t.columns(), kBf16Terms), vectors = t.width / target_.lanes, none = 0;
    i64 w_tap[Limits::offsets];
    Bf16Product p{};
    p.w_tap = w_tap;
    p.x_tap = t.taps.place;
    p.x_row = bf16_pitch(t.lines() * t.line);
    p.x_part = kBf16Terms / 2 * p.x_row;
    p.x_block = kBf16Parts * p.x_part;
    p.x_vector = across(t) ? t.line : target_.lanes;
    p.taps = t.taps.count;
    p.blocks = padded / kBf16Terms;
    p.vectors = across(t) ? t.rows : vectors;
    p.c_stride = t.pitch;
    p.accumulate = t.accumulate;
    p.products = 1;
    p.w_offset = p.c_offset = &none;
    p.pairs = schedule_.axis[2].out_step == 2;
    const i64 columns = t.part.group * round_up(layer_.cols, kBf16Terms) + t.reduction.column_first;  // before these
    const auto* x = reinterpret_cast<const std::uint32_t*>(t.panel + schedule_.parts);
    const auto* w = reinterpret_cast<const std::uint16_t*>(packed_) +
                    (columns * packing_.per_column + t.of.weights * padded) * kBf16Parts;
    for (i64 row = t.from; row < t.to; row += 2 * kBf16Rows) {
      const i64 tiles = std::min<i64>(2, (packing_.rows * t.of.phases - row) / kBf16Rows);  // packed
      p.rows = static_cast<int>(std::min<i64>(2 * kBf16Rows, t.total - row));
      p.w = w + (row * t.of.taps * padded + t.taps.first * tiles * kBf16Tile) * kBf16Parts;
      p.w_row = kBf16Terms;
      p.w_tile = kBf16Tile;
      p.w_part = tiles * kBf16Tile;
      for (i64 tap = 0; tap < t.taps.count; ++tap) w_tap[tap] = tap * kBf16Parts * p.w_part;
      p.w_block = t.of.taps * kBf16Parts * p.w_part;
      p.w_next = p.w + p.blocks * p.w_block;
      kernels_.bf16->use(p.rows);
      for (i64 r = 0; r < (across(t) ? 1 : t.rows); ++r) {
        p.x = x + r * t.line;
        p.c = t.sums + (row - t.from) * t.pitch + r * t.width;
        OutputRows<float> out{};
        if (t.outputs) {
          out = outputs_of(t, row, r * vectors);
          p.out = &out;
        }
        kernels_.bf16->product(p);
      }
    }
  }

  // In rows of sums: unless they lie behind each other, a channel's phases do.
  i64 pitch_of_rows(const Part& part) const {
    return packing_.fused || call_.writes_last ? 1 : part.strips * schedule_.axis[2].out_step;
  }

  // Where the rows of all products belong, or their pairs, and what is added to them. Pairs that cannot be written to
  // the output alternate in the sums of a task, if there are no sums of other terms there.
  void find_rows() {
    const AxisPlan* axis = schedule_.axis;
    const i64 plane = axis[0].out * axis[1].out * axis[2].out, strips = axis[0].out_step * axis[1].out_step;
    const bool pairs = axis[2].out_step == 2 && schedule_.reductions.size() == 1 && schedule_.writing.staged;
    for (i64 channel = 0; channel < layer_.groups * layer_.rows; ++channel)
      for (i64 strip = 0; strip < strips; ++strip) {
        const i64 row = strip / axis[1].out_step * axis[1].out + strip % axis[1].out_step;
        const T bias = bias_ ? bias_[channel] : T(0);
        rows_.push_back({channel * plane + row * axis[2].out, bias});
        const i64 of_task = channel % layer_.rows % schedule_.chunk * strips + strip;
        if (pairs) pairs_.push_back({of_task * 2 * schedule_.tile.width, bias});
      }
  }

  void write(Writer<T>& writer, const Part& part, i64 width, const T* sums) {
    if (call_.writes_last) return writer.write(sums, biases_.data(), 1, y_);
    const i64 plane = call_.out[0] * call_.out[1] * call_.out[2], step = schedule_.axis[2].out_step;
    for (i64 row = 0; row < part.rows; ++row) {
      const i64 channel = part.group * layer_.rows + part.first_row + row;
      writer.write(sums + row * part.strips * step * width, bias_ ? bias_ + channel : nullptr, 0, y_ + channel * plane);
    }
  }

  const Layer& layer_;
  const Call& call_;
  const Packing& packing_;
  const Schedule& schedule_;
  const Kernels<T>& kernels_;
  const Target target_;
  const T *packed_, *bias_, *x_;
  T* y_;
  std::vector<T> biases_;  // per phase of the last axis and channel, channels last
  // Per channel and phase of the leading axes, if products are rows of outputs, or pairs of rows.
  std::vector<OutputRow<T>> rows_, pairs_;
};

}  // namespace

template <typename T>
void execute(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
             const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y) {
  if (schedule.channel_lanes) return execute_channel_lanes(layer, call, packing, schedule, kernels, packed, bias, x, y);
  if constexpr (std::is_same_v<T, float>)
    if (packing.positions) return execute_positions(layer, call, packing, schedule, kernels, packed, bias, x, y);
  Execution<T>(layer, call, packing, schedule, kernels, packed, bias, x, y).run();
}

#define UPSCORE_INSTANTIATE(T)                                                                                      \
  template Target target_of<T>(const Kernels<T>&);                                                                  \
  template void execute<T>(const Layer&, const Call&, const Packing&, const Schedule&, const Kernels<T>&, const T*, \
                           const T*, const T*, T*);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
