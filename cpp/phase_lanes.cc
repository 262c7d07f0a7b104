#include "phase_lanes.h"

#include <algorithm>
#include <limits>
#include <sstream>

#include "execute.h"
#include "minimal.h"
#include "plan.h"
#include "schedule.h"
#include "scratch.h"
#include "threads.h"
#include "turn.h"

namespace upscore {
namespace {

constexpr i64 kMostLanes = 16;
constexpr i64 kFewInputs = 24;   // channels, of which minimal filtering saves less than it costs,
constexpr i64 kManyPhases = 64;  // with more phases than these, and
constexpr i64 kWide = 8;         // vectors of as many numbers
constexpr double kFilled = 0.9;  // of a line's weights: taps that some phases lack are multiplied as zeros

// Weights lie as [group][line][phase of the leading axes][vector][tap][input channel][lane]. A line is what lies
// together in the output at one position of the input: the phases of one output channel, or of all, channels last.
template <typename T>
class PhaseLanes final : public Way<T> {
 public:
  static std::unique_ptr<Way<T>> pack(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last,
                                      bool filtered);

  bool takes(const Call& call) const override { return call.reads_last == last_ && call.writes_last == last_; }
  void execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const override;
  std::string why(const Call& call, const Team& team) const override;
  std::size_t size() const override { return weights_.size(); }

 private:
  struct RowPhase {
    std::vector<Size> taps;  // of the leading axes; of the last one, by how many inputs they reach back
    i64 weights;             // before it, of a line
  };
  // A call's positions along each axis, counted as the layer's inputs, and how they are cut into tasks.
  struct Cut {
    Size first, positions, tile, tiles;
    i64 lines, vectors, across;  // of a register tile: lines, their vectors, and positions
    i64 chunks;                  // of a group's blocks
    int threads;
  };
  class Task;

  Cut cut(const Call& call, const Team& team) const;
  void pack_phase(const T* w, const RowPhase& phase, T* to) const;

  Layer layer_;
  bool last_ = false;
  const Kernels<T>* kernels_ = nullptr;
  i64 together_ = 1;  // channels of a line
  i64 lines_ = 1;     // of a group
  i64 width_ = 0;     // numbers of a line
  i64 line_size_ = 0;
  Size reach_{};                  // inputs that a position reads before its own
  std::vector<RowPhase> phases_;  // by residue of the leading axes
  Buffer<T> weights_;
};

template <typename T>
std::unique_ptr<Way<T>> PhaseLanes<T>::pack(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last,
                                            bool filtered) {
  const i64 lanes = kernels.lanes, step = layer.stride[2], shifts = ceil_div(layer.kernel[2], step);
  const i64 together = last ? layer.rows : 1;
  if (!layer.transposed || layer.dilation[2] != 1 || (last && (layer.groups > 1 || layer.rows % lanes == 0)))
    return nullptr;
  if (step * together % lanes != 0) return nullptr;
  if (static_cast<double>(layer.kernel[2]) < kFilled * static_cast<double>(shifts * step)) return nullptr;
  const i64 all_phases = layer.stride[0] * layer.stride[1] * step;
  const bool few = layer.cols <= kFewInputs && all_phases > kManyPhases && lanes >= kWide;
  if (filtered && !few && plan_minimal_packing(layer, target_of(kernels), last)) return nullptr;
  auto way = std::make_unique<PhaseLanes>();
  PhaseLanes& p = *way;
  p.layer_ = layer;
  p.last_ = last;
  p.kernels_ = &kernels;
  p.together_ = together;
  p.lines_ = layer.rows / together;
  p.width_ = step * together;
  p.reach_ = {(layer.kernel[0] - 1) * layer.dilation[0] / layer.stride[0],
              (layer.kernel[1] - 1) * layer.dilation[1] / layer.stride[1], shifts - 1};
  for (const AxisPhase& z : axis_residues(layer.kernel[0], layer.stride[0], layer.dilation[0], false))
    for (const AxisPhase& y : axis_residues(layer.kernel[1], layer.stride[1], layer.dilation[1], false)) {
      RowPhase phase{{}, p.line_size_};
      for (std::size_t iz = 0; iz < z.tap.size(); ++iz)
        for (std::size_t iy = 0; iy < y.tap.size(); ++iy)
          for (i64 shift = shifts - 1; shift >= 0; --shift) phase.taps.push_back({z.tap[iz], y.tap[iy], shift});
      if (static_cast<i64>(phase.taps.size()) > Limits::offsets) return nullptr;
      p.line_size_ += static_cast<i64>(phase.taps.size()) * layer.cols * p.width_;
      p.phases_.push_back(std::move(phase));
    }
  p.weights_.allocate(static_cast<std::size_t>(layer.groups * p.lines_ * p.line_size_));
  const i64 group = layer.cols * layer.rows * layer.taps(), phases = static_cast<i64>(p.phases_.size());
  const int threads = layer.groups * group < (1 << 16) ? 1 : thread_count();
  parallel_for(layer.groups * p.lines_ * phases, threads, [&](i64 task) {
    const i64 line = task / phases;
    const RowPhase& phase = p.phases_[static_cast<std::size_t>(task % phases)];
    p.pack_phase(w + line / p.lines_ * group + line % p.lines_ * layer.taps(), phase,
                 p.weights_.data() + line * p.line_size_ + phase.weights);
  });
  return way;
}

// `w` is the line's first channel in the first input channel.
template <typename T>
void PhaseLanes<T>::pack_phase(const T* w, const RowPhase& phase, T* to) const {
  const i64 lanes = kernels_->lanes, taps = layer_.taps(), kernel = layer_.kernel[2];
  for (i64 first = 0; first < width_; first += lanes)
    for (const Size& tap : phase.taps) {
      const T* from = w + (tap[0] * layer_.kernel[1] + tap[1]) * kernel;
      const i64 x = tap[2] * layer_.stride[2] + first / together_;
      for (i64 column = 0; column < layer_.cols; ++column, to += lanes, from += layer_.rows * taps) {
        if (!last_) {
          const i64 here = std::clamp<i64>(kernel - x, 0, lanes);
          std::fill(std::copy_n(from + x, here, to), to + lanes, T(0));
          continue;
        }
        for (i64 l = 0, channel = first % together_, place = x; l < lanes; ++l) {
          to[l] = place < kernel ? from[channel * taps + place] : T(0);
          if (++channel < together_) continue;
          channel = 0;
          ++place;
        }
      }
    }
}

template <typename T>
auto PhaseLanes<T>::cut(const Call& call, const Team& team) const -> Cut {
  const i64 lanes = kernels_->lanes, vectors = width_ / lanes;
  Cut c;
  for (std::size_t a = 0; a < kAxes; ++a) {
    c.first[a] = floor_div(call.lo[a], layer_.stride[a]);
    c.positions[a] = floor_div(call.out[a] - 1 + call.lo[a], layer_.stride[a]) - c.first[a] + 1;
  }
  // Inputs of a tile share a core's second-level cache with the weights, and a row of it fits where it is put together.
  c.tile = c.positions;
  c.tile[2] = std::min(c.tile[2], Limits::sum_bytes / (kMaxRowVectors * lanes * static_cast<i64>(sizeof(T))));
  auto panel = [&] {
    i64 numbers = layer_.cols;
    for (std::size_t a = 0; a < kAxes; ++a) numbers *= c.tile[a] + reach_[a];
    return numbers * static_cast<i64>(sizeof(T));
  };
  for (std::size_t a = 0; a < kAxes; ++a)
    while (panel() > Limits::panel_bytes && c.tile[a] > (a == 2 ? kMaxPositions : 1))
      c.tile[a] = ceil_div(c.tile[a], 2);
  i64 tiles = call.batch;
  for (std::size_t a = 0; a < kAxes; ++a) tiles *= c.tiles[a] = ceil_div(c.positions[a], c.tile[a]);

  // A tile of registers, of several vectors of a line or lines of a vector, waits for its loads or for its products.
  const bool narrow = vectors == 1;
  const i64 all = narrow ? lines_ : vectors;
  double best = std::numeric_limits<double>::infinity();
  for (i64 v = 1; v <= std::min<i64>(kMaxRowVectors, all); ++v) {
    const i64 across = piece(c.tile[2], fitting_positions(v, kernels_->registers));
    const double tile = static_cast<double>(std::max(v * across, v + across) + 1);
    const double row = tile * static_cast<double>(ceil_div(all, v) * ceil_div(c.tile[2], across));
    if (row >= best) continue;
    best = row;
    c.lines = narrow ? v : 1;
    c.vectors = narrow ? 1 : v;
    c.across = across;
  }
  double cycles = Cycles::product * static_cast<double>(call.batch * layer_.groups * lines_ * line_size_ / lanes);
  for (std::size_t a = 0; a < kAxes; ++a) cycles *= static_cast<double>(c.positions[a]);
  c.threads = team.share(cycles / Cycles::serial);
  const i64 blocks = ceil_div(lines_, c.lines) * static_cast<i64>(phases_.size()) * ceil_div(vectors, c.vectors);
  c.chunks = c.threads == 1 ? 1 : std::clamp<i64>(ceil_div(8 * c.threads, tiles * layer_.groups), 1, blocks);
  return c;
}

// Some blocks of one tile, in one image and group.
template <typename T>
class PhaseLanes<T>::Task {
 public:
  Task(const PhaseLanes& way, const Call& call, const Cut& cut, const T* bias, const T* x, T* y)
      : way_(way),
        layer_(way.layer_),
        kernels_(*way.kernels_),
        call_(call),
        cut_(cut),
        bias_(bias),
        x_(x),
        y_(y),
        in_plane_(call.in[0] * call.in[1] * call.in[2]),
        row_(call.out[2] * way.together_),
        stream_(call.batch * layer_.groups * way.lines_ * call.out[0] * call.out[1] * row_ *
                    static_cast<i64>(sizeof(T)) >
                Limits::stream_bytes) {}

  void compute(i64 task) {
    const i64 chunk = task % cut_.chunks;
    task /= cut_.chunks;
    group_ = task % layer_.groups;
    task /= layer_.groups;
    for (std::size_t a = kAxes; a-- > 0; task /= cut_.tiles[a]) {
      begin_[a] = task % cut_.tiles[a] * cut_.tile[a];
      size_[a] = std::min(cut_.tile[a], cut_.positions[a] - begin_[a]);
      inputs_[a] = size_[a] + way_.reach_[a];
    }
    image_ = task;
    plane_ = inputs_[0] * inputs_[1] * inputs_[2];
    panel_ = scratch<T>(
        static_cast<std::size_t>(layer_.cols * plane_ + cut_.lines * size_[2] * cut_.vectors * kernels_.lanes));
    apart_ = panel_ + layer_.cols * plane_;
    copy_inputs();
    const i64 pieces = ceil_div(way_.width_, cut_.vectors * kernels_.lanes);
    const i64 phases = static_cast<i64>(way_.phases_.size());
    const i64 blocks = ceil_div(way_.lines_, cut_.lines) * phases * pieces;
    for (i64 b = chunk * blocks / cut_.chunks; b < (chunk + 1) * blocks / cut_.chunks; ++b)
      multiply(b / (phases * pieces) * cut_.lines, b / pieces % phases, b % pieces * cut_.vectors * kernels_.lanes);
  }

 private:
  // panel[column][z][y][x], zeros outside.
  void copy_inputs() {
    Size from;
    for (std::size_t a = 0; a < kAxes; ++a) from[a] = cut_.first[a] + begin_[a] - way_.reach_[a];
    const i64 skip = std::clamp<i64>(-from[2], 0, inputs_[2]);
    const i64 stop = std::clamp<i64>(call_.in[2] - from[2], skip, inputs_[2]);
    for (i64 z = 0; z < inputs_[0]; ++z)
      for (i64 y = 0; y < inputs_[1]; ++y) {
        const i64 in_z = from[0] + z, in_y = from[1] + y;
        const bool inside = in_z >= 0 && in_z < call_.in[0] && in_y >= 0 && in_y < call_.in[1];
        const i64 first = inside ? skip : inputs_[2], last = inside ? stop : inputs_[2];
        T* to = panel_ + (z * inputs_[1] + y) * inputs_[2];
        if (first < last)
          copy_row((in_z * call_.in[1] + in_y) * call_.in[2] + from[2] + first, last - first, to + first);
        for (i64 column = 0; column < layer_.cols; ++column, to += plane_) {
          std::fill_n(to, first, T(0));
          std::fill_n(to + last, inputs_[2] - last, T(0));
        }
      }
  }

  // Inputs that lie next to each other, from a place in a channel on.
  void copy_row(i64 at, i64 count, T* to) {
    const i64 channels = layer_.groups * layer_.cols;
    if (!way_.last_) {
      const T* from = x_ + (image_ * channels + group_ * layer_.cols) * in_plane_ + at;
      for (i64 column = 0; column < layer_.cols; ++column)
        std::copy_n(from + column * in_plane_, count, to + column * plane_);
      return;
    }
    turn_outputs(kernels_, x_ + (image_ * in_plane_ + at) * channels, x_ + call_.batch * in_plane_ * channels, channels,
                 count, layer_.cols, to, plane_);
  }

  // Lines from `line` on, of each the vectors from `first` on, of one phase of the leading axes, at all positions.
  void multiply(i64 line, i64 phase_index, i64 first) {
    const RowPhase& phase = way_.phases_[static_cast<std::size_t>(phase_index)];
    const i64 lanes = kernels_.lanes, taps = static_cast<i64>(phase.taps.size());
    const i64 lines = std::min(cut_.lines, way_.lines_ - line);
    const i64 vectors = lines * std::min(cut_.vectors, (way_.width_ - first) / lanes);
    const i64 length = vectors / lines * lanes, out_plane = call_.out[0] * call_.out[1] * row_;
    i64 x_tap[Limits::offsets], w_offset[Limits::offsets], c_offset[kMaxPositions];
    T bias[kMaxRowVectors * kMostLanes];
    for (i64 i = 0; bias_ && i < vectors * lanes; ++i)
      bias[i] = bias_[way_.last_ ? (first + i) % way_.together_ : group_ * way_.lines_ + line + i / length];
    ChannelProduct<T> p;
    const T* weights = way_.weights_.data() + (group_ * way_.lines_ + line) * way_.line_size_ + phase.weights +
                       first * taps * layer_.cols;
    p.w_tile_stride = lines > 1 ? way_.line_size_ : taps * layer_.cols * lanes;
    p.w_offset = w_offset;
    p.x_step = 0;
    p.x_tap = x_tap;
    p.x_stride = plane_;
    const i64 products = ceil_div(size_[2], cut_.across) * size_[1] * size_[0];
    p.ahead = reinterpret_cast<const char*>(weights + taps * layer_.cols * length);
    p.ahead_step = ceil_div(vectors * lanes * static_cast<i64>(sizeof(T)), products);
    const i64 most = std::clamp<i64>(Limits::terms / std::max<i64>(taps, 1), 1, layer_.cols);
    const bool past_caches = stream_ && most == layer_.cols && lies_on_vector(y_, kernels_) && row_ % lanes == 0;
    const i64 steps = layer_.stride[1], residue_z = phase_index / steps, residue_y = phase_index % steps;
    for (i64 z = 0; z < size_[0]; ++z) {
      const i64 out_z = (cut_.first[0] + begin_[0] + z) * layer_.stride[0] + residue_z - call_.lo[0];
      if (out_z < 0 || out_z >= call_.out[0]) continue;
      for (i64 y = 0; y < size_[1]; ++y) {
        const i64 out_y = (cut_.first[1] + begin_[1] + y) * steps + residue_y - call_.lo[1];
        if (out_y < 0 || out_y >= call_.out[1]) continue;
        p.taps = 0;
        for (i64 t = 0; t < taps; ++t) {
          const Size& tap = phase.taps[static_cast<std::size_t>(t)];
          const i64 before_z = tap[0] * layer_.dilation[0] / layer_.stride[0],
                    before_y = tap[1] * layer_.dilation[1] / steps;
          if (outside(0, z - before_z) || outside(1, y - before_y)) continue;
          w_offset[p.taps] = t * layer_.cols * lanes;
          x_tap[p.taps++] = -((before_z * inputs_[1] + before_y) * inputs_[2] + tap[2]);
        }
        T* const row = y_ + ((image_ * layer_.groups + group_) * way_.lines_ + line) * out_plane +
                       (out_z * call_.out[1] + out_y) * row_;
        const T* inputs =
            panel_ + ((z + way_.reach_[0]) * inputs_[1] + y + way_.reach_[1]) * inputs_[2] + way_.reach_[2];
        const i64 row_start = ((cut_.first[2] + begin_[2]) * layer_.stride[2] - call_.lo[2]) * way_.together_ + first;
        const bool staged = stream_ && length == way_.width_ && !(past_caches && row_start % lanes == 0);
        for (i64 i = 0; i < size_[2]; i += cut_.across) {
          const i64 count = std::min(cut_.across, size_[2] - i), start = row_start + i * way_.width_;
          const bool inside = !staged && start >= 0 && start + (count - 1) * way_.width_ + length <= row_;
          p.c = inside ? row + start : apart_ + i * length;
          p.c_gap = lines == 1 ? 0 : (inside ? out_plane : size_[2] * length) - lanes;
          for (i64 q = 0; q < count; ++q) c_offset[q] = q * (inside ? way_.width_ : length);
          p.c_offset = c_offset;
          const T* x = inputs + i;
          p.past_caches = inside && past_caches && start % lanes == 0;
          for (i64 column = 0; column < layer_.cols; column += most) {
            const T* from = x + column * plane_;
            p.x = &from;
            p.w = weights + column * lanes;
            p.columns = std::min(most, layer_.cols - column);
            p.accumulate = column > 0;
            p.bias = bias_ && column + most >= layer_.cols ? bias : nullptr;
            kernels_.plane_product[vectors][count](p);
            p.ahead += p.taps * p.columns * p.ahead_step;
          }
          for (i64 l = 0; !inside && !staged && l < lines; ++l)
            put(apart_ + (l * size_[2] + i) * length, count, length, start, row + l * out_plane);
        }
        for (i64 l = 0; staged && l < lines; ++l)
          put(apart_ + l * size_[2] * length, 1, size_[2] * length, row_start, row + l * out_plane);
      }
    }
  }

  // Whether a position along a leading axis, counted in this task, reads no input.
  bool outside(std::size_t a, i64 at) const {
    const i64 input = cut_.first[a] + begin_[a] + at;
    return input < 0 || input >= call_.in[a];
  }

  // What of sums that were put apart lies inside of the row: `count` pieces of it, a line from each to the next.
  void put(const T* sums, i64 count, i64 length, i64 start, T* row) const {
    for (i64 i = 0; i < count; ++i, start += way_.width_, sums += length) {
      const i64 from = std::clamp<i64>(-start, 0, length), to = std::clamp<i64>(row_ - start, from, length);
      if (stream_ && length >= way_.width_)
        kernels_.stream(sums + from, to - from, row + start + from);
      else
        std::copy(sums + from, sums + to, row + start + from);
    }
  }

  const PhaseLanes& way_;
  const Layer& layer_;
  const Kernels<T>& kernels_;
  const Call& call_;
  const Cut& cut_;
  const T *const bias_, *const x_;
  T* const y_;
  const i64 in_plane_, row_;
  const bool stream_;
  i64 image_ = 0, group_ = 0, plane_ = 0;
  Size begin_{}, size_{}, inputs_{};
  T *panel_ = nullptr, *apart_ = nullptr;
};

template <typename T>
void PhaseLanes<T>::execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const {
  const Cut c = cut(call, team);
  const i64 tiles = call.batch * c.tiles[0] * c.tiles[1] * c.tiles[2];
  parallel_for(tiles * layer_.groups * c.chunks, c.threads,
               [&](i64 task) { Task(*this, call, c, bias, x, y).compute(task); });
}

template <typename T>
std::string PhaseLanes<T>::why(const Call& call, const Team& team) const {
  const Cut c = cut(call, team);
  std::ostringstream out;
  out << "transposed convolution: lanes along " << (last_ ? "phases and channels" : "phases")
      << ", which lie together in the output; tiles of " << c.vectors << " vectors by " << c.across << " positions; "
      << say_threads(c.threads);
  return out.str();
}

}  // namespace

template <typename T>
std::unique_ptr<Way<T>> phase_lanes(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last,
                                    bool filtered) {
  return PhaseLanes<T>::pack(layer, kernels, w, last, filtered);
}

template std::unique_ptr<Way<float>> phase_lanes<float>(const Layer&, const Kernels<float>&, const float*, bool, bool);
template std::unique_ptr<Way<double>> phase_lanes<double>(const Layer&, const Kernels<double>&, const double*, bool,
                                                          bool);

}  // namespace upscore
