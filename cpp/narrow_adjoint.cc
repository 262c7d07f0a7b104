#include "narrow_adjoint.h"

#include <algorithm>
#include <string>
#include <vector>

#include "buffer.h"
#include "image.h"
#include "plan.h"
#include "rectangles.h"
#include "scratch.h"
#include "threads.h"
#include "turn.h"

namespace upscore {
namespace {

constexpr i64 kMostColumns = 4;          // input channels of a group
constexpr i64 kInputBytes = 256 << 10;   // of a task, with zeros around them
constexpr i64 kOutputBytes = 256 << 10;  // of a task
constexpr double kSerialWork = 6e6;      // multiplications below which waking another thread costs more
constexpr i64 kSerialPacking = 1 << 18;  // numbers below which one thread packs
constexpr i64 kShortRow = 32;
constexpr double kTerms = 600, kShortTerms = 8;  // times the kernel's length
constexpr i64 kTasks = 4;                        // of a thread

// Measured: long kernels pay for turning the outputs, short rows of outputs for less copying. Most lanes are to have
// work.
bool worth(const Layer& layer, const Call& call, i64 lanes) {
  const double terms = static_cast<double>(layer.cols) * static_cast<double>(layer.taps());
  return 4 * layer.rows >= 3 * round_up(layer.rows, lanes) &&
         terms * static_cast<double>(layer.kernel[2]) >= (call.out[2] < kShortRow ? kShortTerms : kTerms);
}

template <typename T>
class NarrowAdjoint final : public Way<T> {
 public:
  NarrowAdjoint(const Layer& layer, const Kernels<T>& kernels)
      : layer_(layer),
        kernels_(kernels),
        lanes_(kernels.lanes),
        padded_(round_up(layer.rows, kernels.lanes)),
        lines_(layer.cols * layer.kernel[0] * layer.kernel[1]) {}

  // weights[group][vector of rows][input channel][tap of the leading axes][tap of the last axis][lane]
  void pack(const T* w, int threads) {
    const i64 terms = layer_.cols * layer_.taps(), vectors = padded_ / lanes_;
    weights_.allocate(static_cast<std::size_t>(layer_.groups * padded_ * terms));
    const T* const end = w + layer_.groups * layer_.rows * terms;
    parallel_for(layer_.groups * vectors, padded_ * terms < kSerialPacking ? 1 : threads, [&](i64 task) {
      const i64 row = task % vectors * lanes_, first = task / vectors * layer_.rows + row;
      kernels_.transpose(w + first * terms, end, terms, std::min(lanes_, layer_.rows - row), terms, nullptr,
                         weights_.data() + task * lanes_ * terms, lanes_);
    });
  }

  bool takes(const Call&) const override { return true; }
  std::size_t size() const override { return weights_.size(); }

  std::string why(const Call& call, const Team& team) const override {
    return "convolution of few channels: lanes run along output channels, terms along the kernel's rows, "
           "which are read as they lie; " +
           say_threads(useful_threads(call, team));
  }

  void execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const override {
    const int threads = useful_threads(call, team);
    const Cut cut = cut_of(call, threads);
    const std::vector<T> biases = whole_vectors(bias, layer_.groups, layer_.rows, padded_);
    const Rectangles tasks = tasks_of(call, cut);
    parallel_for(tasks.count(), threads, [&](i64 task) {
      const Rectangle outputs = tasks[task];
      const i64 first = outputs.part * cut.wide;
      const Part p{outputs, first, std::min(cut.wide, padded_ - first)};
      compute(call, p, bias ? biases.data() + p.group * padded_ + p.first : nullptr, x, y);
    });
  }

 private:
  // Outputs of a task, and channels of a group.
  struct Cut {
    i64 across, down, wide;
  };
  struct Part : Rectangle {
    i64 first, wide;
  };

  int useful_threads(const Call& call, const Team& team) const {
    const double outputs =
        static_cast<double>(call.batch * call.out[0]) * static_cast<double>(call.out[1] * call.out[2]);
    const double work = outputs * static_cast<double>(layer_.groups * padded_ * layer_.cols * layer_.taps());
    return team.share(work / kSerialWork);
  }

  i64 extent(std::size_t a) const { return (layer_.kernel[a] - 1) * layer_.dilation[a] + 1; }
  i64 input_rows(i64 down) const { return (down - 1) * layer_.stride[1] + extent(1); }
  i64 input_width(i64 across) const { return (across - 1) * layer_.stride[2] + layer_.kernel[2]; }

  Rectangles tasks_of(const Call& call, const Cut& cut) const {
    return {call, cut.across, cut.down, layer_.groups, ceil_div(padded_, cut.wide)};
  }

  // Long rows, then several, then all channels, while they fit and threads have work.
  Cut cut_of(const Call& call, int threads) const {
    const i64 bytes = sizeof(T), room = kInputBytes / (bytes * layer_.cols * layer_.kernel[0]);
    const i64 vectors = padded_ / lanes_;
    Cut cut{1, 1, std::min(vectors, i64{2 * kMaxRowVectors}) * lanes_};
    const i64 outputs = kOutputBytes / (bytes * (cut.wide + lanes_));
    const i64 wide = std::max<i64>((room / extent(1) - layer_.kernel[2]) / layer_.stride[2] + 1, 1);
    cut.across = piece(call.out[2], std::min({call.out[2], wide, outputs}));
    const i64 high = (room / input_width(cut.across) - extent(1)) / layer_.stride[1] + 1;
    cut.down = piece(call.out[1], std::clamp<i64>(std::min(high, outputs / cut.across), 1, call.out[1]));
    auto tasks = [&] { return tasks_of(call, cut).count(); };
    const i64 enough = threads == 1 ? 1 : kTasks * threads;
    while (cut.down > 1 && tasks() < enough) cut.down = ceil_div(cut.down, 2);
    while (cut.across > 2 * kMaxPositions && tasks() < enough) cut.across = ceil_div(cut.across, 2);
    return cut;
  }

  void compute(const Call& call, const Part& part, const T* bias, const T* x, T* y) const {
    const i64 rows = input_rows(part.down), width = input_width(part.across);
    const i64 inputs = layer_.cols * layer_.kernel[0] * rows * width;
    const i64 channels = layer_.groups * layer_.rows, plane = call.out[0] * call.out[1] * call.out[2];
    const bool in_place = call.writes_last && layer_.rows % lanes_ == 0;  // whole vectors are written
    const i64 pitch = in_place ? channels : part.wide + lanes_;
    const i64 outputs = in_place ? 0 : part.down * part.across * pitch;
    T* const copied = scratch<T>(static_cast<std::size_t>(inputs + outputs));
    copy(call, part, rows, width, x, copied);
    const i64 channel = part.group * layer_.rows + part.first;
    const i64 first = (part.at[0] * call.out[1] + part.at[1]) * call.out[2] + part.at[2];
    T* const last = y + (part.image * plane + first) * channels + channel;
    T* const to = in_place ? last : copied + inputs;
    multiply(part, rows, width, copied, bias, to, (in_place ? call.out[2] : part.across) * pitch, pitch);
    if (in_place) return;
    const i64 here = std::min(part.wide, layer_.rows - part.first);
    if (call.writes_last) {
      for (i64 i = 0; i < part.down * part.across; ++i)
        std::copy_n(to + i * pitch, here, last + (i / part.across * call.out[2] + i % part.across) * channels);
      return;
    }
    T* const out = y + (part.image * channels + channel) * plane + first;
    const i64 lines = part.across == call.out[2] ? 1 : part.down;
    const i64 length = part.down * part.across / lines;  // whole rows lie one behind the other
    for (i64 line = 0; line < lines; ++line)
      turn_outputs(kernels_, to + line * length * pitch, to + outputs, pitch, length, here, out + line * call.out[2],
                   plane);
  }

  // copied[input channel][tap of the first axis][row][column], zeros outside.
  void copy(const Call& call, const Part& part, i64 rows, i64 width, const T* x, T* copied) const {
    const Size& in = call.in;
    const i64 left = part.at[2] * layer_.stride[2] - call.lo[2];
    const i64 skip = std::clamp<i64>(-left, 0, width), stop = std::clamp<i64>(in[2] - left, skip, width);
    for (i64 c = 0; c < layer_.cols; ++c) {
      const Image<T> from = image_of(x, call.batch, layer_.groups * layer_.cols, in, call.reads_last, part.image,
                                     part.group * layer_.cols + c);
      const i64 pixel = from.step();
      for (i64 tap = 0; tap < layer_.kernel[0]; ++tap)
        for (i64 row = 0; row < rows; ++row, copied += width) {
          const i64 z = part.at[0] * layer_.stride[0] + tap * layer_.dilation[0] - call.lo[0];
          const i64 r = part.at[1] * layer_.stride[1] + row - call.lo[1];
          const bool exists = z >= 0 && z < in[0] && r >= 0 && r < in[1];
          const T* const line = from.first + (exists ? (z * in[1] + r) * in[2] + left : 0) * pixel;
          const i64 begin = exists ? skip : width, end = exists ? stop : width;
          std::fill(copied, copied + begin, T(0));
          if (pixel == 1)
            std::copy(line + begin, line + end, copied + begin);
          else
            for (i64 i = begin; i < end; ++i) copied[i] = line[i * pixel];
          std::fill(copied + end, copied + width, T(0));
        }
    }
  }

  // to[row * row_pitch + column * pitch][channel]
  void multiply(const Part& part, i64 rows, i64 width, const T* copied, const T* bias, T* to, i64 row_pitch,
                i64 pitch) const {
    const i64 kernel = layer_.kernel[2], terms = layer_.cols * layer_.taps();
    const i64 most_rows = piece(part.wide / lanes_, kMaxRowVectors) * lanes_;
    const i64 positions = piece(part.across, fitting_positions(most_rows / lanes_, kernels_.registers));
    const i64 columns = std::min(kernel, Limits::terms), most_lines = std::max<i64>(Limits::terms / kernel, 1);
    i64 w_offset[Limits::terms], x_tap[Limits::terms], c_offset[kMaxPositions];
    for (i64 q = 0; q < kMaxPositions; ++q) c_offset[q] = q * pitch;
    const T* from;
    ChannelProduct<T> p;
    p.w_offset = w_offset;
    p.x = &from;
    p.x_pitch = layer_.stride[2];
    p.x_tap = x_tap;
    p.c_offset = c_offset;
    p.w_tile_stride = terms * lanes_;
    const T* const weights = weights_.data() + (part.group * padded_ + part.first) * terms;
    for (i64 r = 0; r < part.wide; r += most_rows) {
      const i64 vectors = std::min(most_rows, part.wide - r) / lanes_;
      for (i64 line = 0; line < lines_; line += most_lines) {
        p.taps = std::min(most_lines, lines_ - line);
        for (i64 tap = 0; tap < p.taps; ++tap) {
          const i64 down = (line + tap) % layer_.kernel[1], above = (line + tap) / layer_.kernel[1];
          w_offset[tap] = tap * kernel * lanes_;
          x_tap[tap] = (above * rows + down * layer_.dilation[1]) * width;
        }
        for (i64 column = 0; column < kernel; column += columns) {
          p.columns = std::min(columns, kernel - column);
          p.w = weights + (r * terms + (line * kernel + column) * lanes_);
          p.accumulate = line + column > 0;
          const bool last = line + p.taps == lines_ && column + p.columns == kernel;
          p.bias = last && bias ? bias + r : nullptr;
          for (i64 y = 0; y < part.down; ++y)
            for (i64 first = 0; first < part.across; first += positions) {
              from = copied + y * layer_.stride[1] * width + first * layer_.stride[2] + column;
              p.c = to + y * row_pitch + first * pitch + r;
              kernels_.line_product[vectors][std::min(positions, part.across - first)](p);
            }
        }
      }
    }
  }

  const Layer layer_;
  const Kernels<T>& kernels_;
  const i64 lanes_, padded_, lines_;  // rows of whole vectors; rows of all kernels of an output channel
  Buffer<T> weights_;
};

}  // namespace

template <typename T>
std::unique_ptr<Way<T>> narrow_adjoint(const Layer& layer, const Call& call, const Kernels<T>& kernels, const T* w,
                                       int threads) {
  if (layer.transposed || layer.cols > kMostColumns || layer.dilation[2] != 1 || call.batch == 0) return nullptr;
  const i64 room = kInputBytes / (static_cast<i64>(sizeof(T)) * layer.cols);
  if (layer.kernel[0] > room || layer.kernel[2] > room / layer.kernel[0]) return nullptr;
  if (layer.dilation[1] > room || (layer.kernel[1] - 1) > room / layer.dilation[1] ||
      (layer.kernel[1] - 1) * layer.dilation[1] + 1 > room / (layer.kernel[0] * layer.kernel[2]))
    return nullptr;
  if (!worth(layer, call, kernels.lanes)) return nullptr;
  auto way = std::make_unique<NarrowAdjoint<T>>(layer, kernels);
  way->pack(w, threads);
  return way;
}

#define UPSCORE_INSTANTIATE(T) \
  template std::unique_ptr<Way<T>> narrow_adjoint<T>(const Layer&, const Call&, const Kernels<T>&, const T*, int);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
