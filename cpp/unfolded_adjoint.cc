#include "unfolded_adjoint.h"

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "parts.h"
#include "plan.h"
#include "rectangles.h"
#include "schedule.h"
#include "scratch.h"
#include "turn.h"

namespace upscore {
namespace {

constexpr i64 kMostColumns = 8;          // input channels of a group
constexpr i64 kFewestOutputs = 24;       // of a row
constexpr i64 kMostAcross = 1024;        // outputs of a row, of a task,
constexpr i64 kMostDown = 64;            // and rows
constexpr i64 kLineBytes = 384 << 10;    // of a task's inputs
constexpr i64 kSumBytes = 384 << 10;     // and outputs
constexpr double kSerialWork = 6e6;      // multiplications below which waking another thread costs more
constexpr i64 kSerialPacking = 1 << 18;  // numbers below which one thread packs
constexpr i64 kTasks = 4;                // of a thread
constexpr double kTurnedSooner = 0.76;   // of what vectors take, channels last: inputs are turned then

class UnfoldedAdjoint final : public Way<float> {
 public:
  UnfoldedAdjoint(const Layer& layer, const Kernels<float>& kernels)
      : layer_(layer),
        kernels_(kernels),
        lanes_(kernels.lanes),
        terms_(layer.cols * layer.taps()),
        vectors_(ceil_div(layer.rows, i64{kernels.lanes})),
        reach_((layer.kernel[2] - 1) * layer.dilation[2] / layer.stride[2] + 1) {
    for (i64 tap = 0; tap < layer.kernel[2]; ++tap) {
      const i64 residue = tap * layer.dilation[2] % layer.stride[2];
      const auto known = std::find(residues_.begin(), residues_.end(), residue);
      line_of_.push_back(known - residues_.begin());
      if (known == residues_.end()) residues_.push_back(residue);
    }
  }

  // Whether it should take less than vectors do, of which enough fit.
  bool worth(const Call& call, bool last) const {
    const double rows = static_cast<double>(layer_.rows), terms = static_cast<double>(terms_);
    const double tiles = static_cast<double>(vectors_ * lanes_ * round_up(terms_, kBf16Terms));
    return layer_.cols <= kMostColumns && terms_ <= kMostPartsColumns && call.out[2] >= kFewestOutputs &&
           cut_of(call, 1).down > 0 &&
           Cycles::bf16_product * tiles + Cycles::cut * terms <
               (last && layer_.groups * layer_.cols > 1 ? kTurnedSooner : 1) * Cycles::product * rows * terms;
  }

  void pack(const float* w, int threads) {
    weights_.allocate(static_cast<std::size_t>(layer_.groups * vectors_ * parts_of_vector(terms_)));
    const float* const end = w + layer_.groups * layer_.rows * terms_;
    const bool serial = layer_.groups * vectors_ * lanes_ * terms_ < kSerialPacking;
    parallel_for(layer_.groups * vectors_, serial ? 1 : threads, [&](i64 task) {
      const i64 row = task % vectors_ * lanes_, first = task / vectors_ * layer_.rows + row;
      float* const plain = scratch<float>(static_cast<std::size_t>(terms_ * lanes_));
      kernels_.transpose(w + first * terms_, end, terms_, std::min(lanes_, layer_.rows - row), terms_, nullptr, plain,
                         lanes_);
      round_vector(*kernels_.bf16, plain, terms_, weights_.data() + task * parts_of_vector(terms_));
    });
  }

  bool takes(const Call& call) const override { return !call.reads_last || layer_.groups * layer_.cols == 1; }
  std::size_t size() const override { return weights_.size() / 2; }

  std::string why(const Call& call, const Team& team) const override {
    return "convolution of few channels: six products of bfloat16 parts by the matrix unit, whose terms are the " +
           std::to_string(terms_) + " taps; " + say_threads(useful_threads(call, team));
  }

  void execute(const Call& call, const Team& team, const float* bias, const float* x, float* y) const override {
    const int threads = useful_threads(call, team);
    const Cut cut = cut_of(call, threads);
    const Rectangles tasks = tasks_of(call, cut);
    parallel_for(tasks.count(), threads, [&](i64 task) { compute(call, tasks[task], bias, x, y); });
  }

 private:
  // Outputs of a task: so many rows of so many.
  struct Cut {
    i64 across, down;
  };
  // Inputs of a task: [channel][tap of the first axis][row][residue of the stride][place].
  struct Lines {
    i64 rows, length, row, channel;  // numbers of a line, and from one row, and channel, to the next
  };

  int useful_threads(const Call& call, const Team& team) const {
    const double outputs =
        static_cast<double>(call.batch * call.out[0]) * static_cast<double>(call.out[1] * call.out[2]);
    return team.share(outputs * static_cast<double>(layer_.groups * layer_.rows * terms_) / kSerialWork);
  }

  Lines lines_of(i64 across, i64 down) const {
    Lines lines{};
    lines.rows = (down - 1) * layer_.stride[1] + (layer_.kernel[1] - 1) * layer_.dilation[1] + 1;
    lines.length = round_up(across, lanes_) + reach_;
    lines.row = static_cast<i64>(residues_.size()) * lines.length;
    lines.channel = layer_.kernel[0] * lines.rows * lines.row;
    return lines;
  }
  // Of a row of the outputs of all channels: from one channel to the next, in other sets of a cache.
  i64 sums_pitch(i64 across, i64 down) const { return (down * ceil_div(across, lanes_) | 1) * lanes_; }

  Rectangles tasks_of(const Call& call, const Cut& cut) const { return {call, cut.across, cut.down, layer_.groups}; }

  // No rows, if not one fits.
  Cut cut_of(const Call& call, int threads) const {
    const i64 bytes = sizeof(float);
    Cut cut{call.out[2], std::min(call.out[1], kMostDown)};
    if (cut.across > kMostAcross) cut.across = round_up(piece(cut.across, kMostAcross), kBf16Terms);
    auto fits = [&](i64 down) {
      return layer_.cols * lines_of(cut.across, down).channel * bytes <= kLineBytes &&
             vectors_ * lanes_ * sums_pitch(cut.across, down) * bytes <= kSumBytes;
    };
    while (cut.down > 0 && !fits(cut.down)) cut.down /= 2;
    const i64 enough = threads == 1 ? 1 : kTasks * threads;
    while (cut.down > 1 && tasks_of(call, cut).count() < enough) cut.down = ceil_div(cut.down, 2);
    return cut;
  }

  void compute(const Call& call, const Rectangle& part, const float* bias, const float* x, float* y) const {
    const Lines lines = lines_of(part.across, part.down);
    const i64 pitch = sums_pitch(part.across, part.down), panels = 2 * parts_panel(terms_);
    const i64 inputs = round_up(layer_.cols * lines.channel, lanes_) + 2 * lanes_, sums = vectors_ * lanes_ * pitch;
    float* const memory = scratch<float>(static_cast<std::size_t>(panels + sums + inputs));
    float *const out = memory + panels, *const in = out + sums;
    pick(call, part, lines, x, in);
    multiply(part, lines, in, pitch, reinterpret_cast<std::uint32_t*>(memory), out);
    if (bias)
      for (i64 c = 0; c < layer_.rows; ++c)
        for (i64 i = 0; i < pitch; ++i) out[c * pitch + i] += bias[part.group * layer_.rows + c];
    write(call, part, out, pitch, y);
  }

  void pick(const Call& call, const Rectangle& part, const Lines& lines, const float* x, float* to) const {
    thread_local std::vector<Run> runs;
    runs.clear();
    const Size& in = call.in;
    const i64 plane = in[0] * in[1] * in[2], channels = layer_.groups * layer_.cols, step = layer_.stride[2];
    i64 place = 0;
    for (i64 tap = 0; tap < layer_.kernel[0]; ++tap)
      for (i64 row = 0; row < lines.rows; ++row)
        for (const i64 residue : residues_) {
          const i64 z = part.at[0] * layer_.stride[0] + tap * layer_.dilation[0] - call.lo[0];
          const i64 r = part.at[1] * layer_.stride[1] + row - call.lo[1];
          const i64 first = part.at[2] * step - call.lo[2] + residue;
          const bool exists = z >= 0 && z < in[0] && r >= 0 && r < in[1];
          const i64 skip =
              exists ? std::clamp<i64>(ceil_div(std::max<i64>(-first, 0), step), 0, lines.length) : lines.length;
          const i64 stop = std::clamp<i64>(ceil_div(std::max<i64>(in[2] - first, 0), step), skip, lines.length);
          add_line(place, lines.length, skip, stop, (z * in[1] + r) * in[2] + first + skip * step, runs);
          place += lines.length;
        }
    const float* const from = x + (part.image * channels + part.group * layer_.cols) * plane;
    kernels_.copy_runs(from, x + call.batch * channels * plane, plane, layer_.cols, step, runs.data(),
                       static_cast<i64>(runs.size()), lines.channel, to);
  }

  // out[channel][row of outputs][place], these in whole vectors.
  void multiply(const Rectangle& part, const Lines& lines, const float* in, i64 pitch, std::uint32_t* panels,
                float* out) const {
    thread_local std::vector<i64> offsets;
    thread_local std::vector<PartsLine> rows;
    offsets.clear();
    rows.clear();
    for (i64 c = 0; c < layer_.cols; ++c)
      for (i64 z = 0; z < layer_.kernel[0]; ++z)
        for (i64 y = 0; y < layer_.kernel[1]; ++y)
          for (i64 tap = 0; tap < layer_.kernel[2]; ++tap)
            offsets.push_back(c * lines.channel + (z * lines.rows + y * layer_.dilation[1]) * lines.row +
                              line_of_[static_cast<std::size_t>(tap)] * lines.length +
                              tap * layer_.dilation[2] / layer_.stride[2]);
    for (i64 row = 0; row < part.down; ++row)
      rows.push_back({in + row * layer_.stride[1] * lines.row, out + row * round_up(part.across, lanes_)});
    multiply_in_parts({*kernels_.bf16, terms_, 0, false, offsets.data(), pitch},
                      weights_.data() + part.group * vectors_ * parts_of_vector(terms_), vectors_, rows, part.across,
                      panels);
  }

  void write(const Call& call, const Rectangle& part, const float* out, i64 pitch, float* y) const {
    const i64 plane = call.out[0] * call.out[1] * call.out[2], channels = layer_.groups * layer_.rows;
    const i64 first = (part.at[0] * call.out[1] + part.at[1]) * call.out[2] + part.at[2];
    const i64 channel = part.group * layer_.rows, width = round_up(part.across, lanes_);
    if (call.writes_last) {
      for (i64 row = 0; row < part.down; ++row)
        turn_outputs(kernels_, out + row * width, out + vectors_ * lanes_ * pitch, pitch, layer_.rows, part.across,
                     y + (part.image * plane + first + row * call.out[2]) * channels + channel, channels);
      return;
    }
    const bool far = call.batch * channels * plane * i64{sizeof(float)} > Limits::stream_bytes;
    const bool in_line = part.across == call.out[2] && width == part.across;
    const i64 rows = in_line ? 1 : part.down, length = in_line ? part.down * width : part.across;
    for (i64 c = 0; c < layer_.rows; ++c)
      for (i64 row = 0; row < rows; ++row) {
        const float* const from = out + c * pitch + row * width;
        float* const to = y + (part.image * channels + channel + c) * plane + first + row * call.out[2];
        if (far)
          kernels_.stream(from, length, to);
        else
          std::copy_n(from, length, to);
      }
  }

  const Layer layer_;
  const Kernels<float>& kernels_;
  const i64 lanes_, terms_, vectors_, reach_;
  std::vector<i64> residues_, line_of_;  // those of the taps of a row, and of each tap which one it is
  Buffer<std::uint16_t> weights_;
};

}  // namespace

template <typename T>
std::unique_ptr<Way<T>> unfolded_adjoint(const Layer& layer, const Call& call, const Kernels<T>& kernels, const T* w,
                                         int threads, bool last) {
  if constexpr (std::is_same_v<T, float>) {
    constexpr i64 most = 4096;  // taps of an axis; so nothing is too large to be counted
    if (layer.transposed || !kernels.bf16 || call.batch == 0) return nullptr;
    for (std::size_t a = 0; a < kAxes; ++a)
      if (layer.kernel[a] > most || layer.dilation[a] > most || layer.stride[a] > most) return nullptr;
    if (layer.taps() > most) return nullptr;
    auto way = std::make_unique<UnfoldedAdjoint>(layer, kernels);
    if (!way->worth(call, last)) return nullptr;
    way->pack(w, threads);
    return way;
  } else {
    return nullptr;
  }
}

#define UPSCORE_INSTANTIATE(T)                                                                                      \
  template std::unique_ptr<Way<T>> unfolded_adjoint<T>(const Layer&, const Call&, const Kernels<T>&, const T*, int, \
                                                       bool);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
