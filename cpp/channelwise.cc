#include "channelwise.h"

#include <algorithm>

#include "plan.h"
#include "scratch.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kCopyBytes = 256 << 10;    // of inputs, channels last
constexpr double kSerialWork = 1 << 19;  // outputs below which waking another thread costs more

// Weights in the order in which output rows meet them: [channel][phase of the leading axes][their
// taps][shift][residue], and for channels last [phase of the leading axes][their taps][shift][residue][channel].
template <typename T>
class Channelwise final : public Way<T> {
 public:
  static std::unique_ptr<Way<T>> pack(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last);

  bool takes(const Call& call) const override {
    return call.reads_last == call.writes_last && (call.reads_last ? pixels_ : rows_);
  }
  void execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const override;
  std::string why(const Call& call, const Team& team) const override;
  std::size_t size() const override { return weights_.size() + pixel_weights_.size(); }

 private:
  struct RowTap {
    i64 z, y;  // offsets of the input row
  };
  struct RowPhase {
    std::vector<RowTap> taps;
    i64 weights;  // within a channel
  };
  // The inputs of one output row: per tap of its phase, the number of an input row, or -1 where there is none.
  const RowPhase& find_inputs(const Call& call, i64 row, std::vector<i64>& inputs) const;

  int useful_threads(const Call& call, const Team& team) const;
  void rows(const Call& call, i64 image, i64 channel, i64 first, i64 last, T bias, const T* x, T* y) const;
  void pixel_rows(const Call& call, i64 image, i64 first, i64 last, const T* bias, const T* x, T* y) const;

  Layer layer_;                         // one group a channel
  bool rows_ = false, pixels_ = false;  // channels first, last
  const Kernels<T>* kernels_ = nullptr;
  i64 channel_size_ = 0;
  std::vector<i64> shift_;
  std::vector<RowPhase> phases_;  // by residue of the leading axes
  std::vector<T> weights_, pixel_weights_;
};

template <typename T>
std::unique_ptr<Way<T>> Channelwise<T>::pack(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last) {
  if (!layer.transposed || layer.rows != 1 || layer.cols != 1) return nullptr;
  const i64 lanes = kernels.lanes, step = layer.stride[2];
  auto way = std::make_unique<Channelwise>();
  Channelwise& c = *way;
  c.layer_ = layer;
  c.kernels_ = &kernels;
  c.rows_ = step % lanes == 0;
  c.pixels_ = last && 2 * layer.groups >= lanes;
  if (!c.rows_ && !c.pixels_) return nullptr;
  // All taps of an output are summed in one go, as in other layers.
  i64 window = 1;
  for (std::size_t a = 0; a < kAxes; ++a) {
    const i64 extent = (layer.kernel[a] - 1) * layer.dilation[a] + 1;
    window *= layer.stride[a] == 1 ? layer.kernel[a] : ceil_div(extent, layer.stride[a]) + 1;
    if (window > Limits::offsets) return nullptr;
  }
  const std::vector<AxisPhase> across = axis_residues(layer.kernel[2], step, layer.dilation[2], true);
  c.shift_ = across[0].offset;
  const i64 shifts = static_cast<i64>(c.shift_.size());
  c.channel_size_ = layer.kernel[0] * layer.kernel[1] * shifts * step;

  const auto down = axis_residues(layer.kernel[1], layer.stride[1], layer.dilation[1], false);
  const auto deep = axis_residues(layer.kernel[0], layer.stride[0], layer.dilation[0], false);
  if (c.rows_) c.weights_.resize(static_cast<std::size_t>(layer.groups * c.channel_size_));
  if (c.pixels_) c.pixel_weights_.resize(static_cast<std::size_t>(layer.groups * c.channel_size_ + lanes));
  for (i64 channel = 0; channel < layer.groups; ++channel, w += layer.taps()) {
    i64 begin = 0;
    for (const AxisPhase& z : deep)
      for (const AxisPhase& y : down) {
        RowPhase phase{{}, begin};
        for (std::size_t iz = 0; iz < z.tap.size(); ++iz)
          for (std::size_t iy = 0; iy < y.tap.size(); ++iy) {
            phase.taps.push_back({z.offset[iz], y.offset[iy]});
            const T* row = w + (z.tap[iz] * layer.kernel[1] + y.tap[iy]) * layer.kernel[2];
            for (std::size_t j = 0; j < c.shift_.size(); ++j)
              for (i64 e = 0; e < step; ++e, ++begin) {
                const i64 tap = across[static_cast<std::size_t>(e)].tap[j];
                const T weight = tap < 0 ? T(0) : row[tap];
                if (c.rows_) c.weights_[static_cast<std::size_t>(channel * c.channel_size_ + begin)] = weight;
                if (c.pixels_) c.pixel_weights_[static_cast<std::size_t>(begin * layer.groups + channel)] = weight;
              }
          }
        if (channel == 0) c.phases_.push_back(std::move(phase));
      }
  }
  return way;
}

template <typename T>
void Channelwise<T>::execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const {
  const i64 all_rows = call.out[0] * call.out[1];
  const int threads = useful_threads(call, team);
  if (call.reads_last) {
    const i64 blocks = std::clamp<i64>(threads == 1 ? 1 : ceil_div(4 * threads, call.batch), 1, all_rows);
    return parallel_for(call.batch * blocks, threads, [&](i64 task) {
      const i64 block = task % blocks;
      pixel_rows(call, task / blocks, block * all_rows / blocks, (block + 1) * all_rows / blocks, bias, x, y);
    });
  }
  const i64 images = call.batch * layer_.groups;
  const i64 blocks = std::clamp<i64>(threads == 1 ? 1 : ceil_div(4 * threads, images), 1, all_rows);
  parallel_for(images * blocks, threads, [&](i64 task) {
    const i64 image = task / blocks, block = task % blocks, channel = image % layer_.groups;
    rows(call, image, channel, block * all_rows / blocks, (block + 1) * all_rows / blocks, bias ? bias[channel] : T(0),
         x, y);
  });
}

template <typename T>
auto Channelwise<T>::find_inputs(const Call& call, i64 row, std::vector<i64>& inputs) const -> const RowPhase& {
  const i64 z = row / call.out[1] + call.lo[0], y = row % call.out[1] + call.lo[1];
  const i64 qz = floor_div(z, layer_.stride[0]), qy = floor_div(y, layer_.stride[1]);
  const i64 residue = (z - qz * layer_.stride[0]) * layer_.stride[1] + y - qy * layer_.stride[1];
  const RowPhase& phase = phases_[static_cast<std::size_t>(residue)];
  inputs.clear();
  for (const RowTap& tap : phase.taps) {
    const i64 iz = qz + tap.z, iy = qy + tap.y;
    const bool inside = iz >= 0 && iz < call.in[0] && iy >= 0 && iy < call.in[1];
    inputs.push_back(inside ? iz * call.in[1] + iy : -1);
  }
  return phase;
}

// Output rows [first, last), counted over both leading axes, of one image.
template <typename T>
void Channelwise<T>::rows(const Call& call, i64 image, i64 channel, i64 first, i64 last, T bias, const T* x,
                          T* y) const {
  const i64 lanes = kernels_->lanes, step = layer_.stride[2];
  // Along the row, outputs are counted from the last multiple of the stride at or before its first.
  const i64 q = floor_div(call.lo[2], step), lead = call.lo[2] - q * step;
  const i64 vectors = ceil_div(lead + call.out[2], lanes * kStencilVectors) * kStencilVectors;
  const auto [low, high] = std::minmax_element(shift_.begin(), shift_.end());
  const i64 from = q + *low, to = q + *high + (vectors * lanes - 1) / step;  // inputs that are read
  const i64 pitch = to - from + 1;
  const i64 skip = std::clamp<i64>(-from, 0, pitch), stop = std::clamp<i64>(call.in[2] - from, skip, pitch);

  const auto taps = static_cast<std::size_t>(layer_.kernel[0] * layer_.kernel[1]);
  T* out = scratch<T>(static_cast<std::size_t>(vectors * lanes) + taps * static_cast<std::size_t>(pitch));
  T* copies = out + vectors * lanes;
  std::vector<const T*> inputs;
  std::vector<i64> numbers, held(taps, -2);  // which input row a copy holds; rows are found again by their number
  const bool stream =
      call.batch * layer_.groups * call.out[0] * call.out[1] * call.out[2] * static_cast<i64>(sizeof(T)) >
      Limits::stream_bytes;

  Stencil<T> s;
  s.step = step;
  s.vectors = vectors;
  s.bias = bias;
  s.out = out;
  for (i64 row = first; row < last; ++row) {
    const RowPhase& phase = find_inputs(call, row, numbers);
    inputs.clear();
    for (std::size_t t = 0; t < numbers.size(); ++t) {
      const i64 number = numbers[t];
      T* copy = copies + static_cast<i64>(t) * pitch;
      if (held[t] != number) {
        held[t] = number;
        if (number >= 0) {
          const T* source = x + image * call.in[0] * call.in[1] * call.in[2] + number * call.in[2];
          std::fill_n(copy, skip, T(0));
          std::copy(source + from + skip, source + from + stop, copy + skip);
          std::fill_n(copy + stop, pitch - stop, T(0));
        } else {
          std::fill_n(copy, pitch, T(0));
        }
      }
      for (i64 shift : shift_) inputs.push_back(copy + shift - *low);
    }
    s.x = inputs.data();
    s.taps = static_cast<i64>(inputs.size());
    s.w = weights_.data() + channel * channel_size_ + phase.weights;
    kernels_->stencil(s);
    T* dst = y + (image * call.out[0] * call.out[1] + row) * call.out[2];
    if (stream)
      kernels_->stream(out + lead, call.out[2], dst);
    else
      std::copy_n(out + lead, call.out[2], dst);
  }
}

// The same with channels last. Neighbouring outputs between two inputs read the same ones: they are computed as one run
// of numbers, along which the channels recur; inputs are copied with their first channels behind the last ones, so that
// vectors can begin at any channel.
template <typename T>
void Channelwise<T>::pixel_rows(const Call& call, i64 image, i64 first, i64 last, const T* bias, const T* x,
                                T* y) const {
  const i64 channels = layer_.groups, lanes = kernels_->lanes, pitch = channels + lanes;
  const i64 step = layer_.stride[2], shifts = static_cast<i64>(shift_.size()),
            rows = layer_.kernel[0] * layer_.kernel[1];
  const i64 row_size = call.in[2] * channels, length = call.out[2] * channels;
  x += image * call.in[0] * call.in[1] * row_size;
  y += image * call.out[0] * call.out[1] * length;
  const auto [low, high] = std::minmax_element(shift_.begin(), shift_.end());

  // Outputs between the inputs q and q + 1, for a range of q whose inputs fit.
  const i64 first_q = floor_div(call.lo[2], step), last_q = floor_div(call.out[2] - 1 + call.lo[2], step) + 1;
  const i64 reach = *high - *low, fit = kCopyBytes / (rows * pitch * static_cast<i64>(sizeof(T)));
  const i64 most = std::clamp<i64>(fit - reach, 1, last_q - first_q);
  T* copies = scratch<T>(static_cast<std::size_t>((rows * (most + reach) + step + 3) * pitch + lanes));
  T *biases = copies + rows * (most + reach) * pitch, *end = biases + pitch;  // outputs that would reach beyond a row
  auto recur = [&](const T* from, T* to) {
    for (i64 c = 0; c < pitch; c += channels) std::copy_n(from, std::min(channels, pitch - c), to + c);
  };
  std::fill_n(biases, pitch, T(0));
  if (bias) recur(bias, biases);

  std::vector<i64> numbers, held;
  std::vector<const T*> weights, inputs;
  PixelStencil<T> s;
  s.bias = biases;
  s.channels = channels;
  s.x_step = pitch;
  for (i64 from = first_q; from < last_q; from += most) {
    const i64 to = std::min(from + most, last_q), inputs_of_row = to - from + reach;
    held.assign(static_cast<std::size_t>(rows), -2);
    for (i64 row = first; row < last; ++row) {
      const RowPhase& phase = find_inputs(call, row, numbers);
      for (std::size_t t = 0; t < numbers.size(); ++t) {
        if (held[t] == numbers[t]) continue;
        held[t] = numbers[t];
        T* copy = copies + static_cast<i64>(t) * inputs_of_row * pitch;
        for (i64 ix = from + *low; ix < to + *high; ++ix, copy += pitch)
          if (numbers[t] >= 0 && ix >= 0 && ix < call.in[2])
            recur(x + numbers[t] * row_size + ix * channels, copy);
          else
            std::fill_n(copy, pitch, T(0));
      }
      const T* w = pixel_weights_.data() + phase.weights * channels;
      T* out = y + row * length;
      s.taps = static_cast<i64>(numbers.size()) * shifts;
      for (i64 q = from; q < to; q += s.repeats) {
        const i64 x0 = q * step - call.lo[2], begin = std::max<i64>(x0, 0), stop = std::min(x0 + step, call.out[2]);
        weights.clear();
        inputs.clear();
        for (std::size_t t = 0; t < numbers.size(); ++t)
          for (i64 shift : shift_) {
            weights.push_back(w + (static_cast<i64>(weights.size()) * step + begin - x0) * channels);
            inputs.push_back(copies + (static_cast<i64>(t) * inputs_of_row + q - from + shift - *low) * pitch);
          }
        s.w = weights.data();
        s.x = inputs.data();
        s.length = (stop - begin) * channels;
        const bool fits = begin * channels + round_up(s.length, lanes) <= length;
        s.out = fits ? out + begin * channels : end;
        const bool whole = fits && stop - begin == step;
        s.repeats =
            whole ? std::min(to - q, (length - begin * channels - round_up(s.length, lanes)) / s.length + 1) : 1;
        kernels_->pixel_stencil(s);
        if (!fits) std::copy_n(end, s.length, out + begin * channels);
      }
    }
  }
}

template <typename T>
int Channelwise<T>::useful_threads(const Call& call, const Team& team) const {
  return team.share(static_cast<double>(call.batch * layer_.groups * call.out[0] * call.out[1] * call.out[2]) /
                    kSerialWork);
}

template <typename T>
std::string Channelwise<T>::why(const Call& call, const Team& team) const {
  return std::string("transposed convolution: channels do not mix, so every output row is computed along its lanes, ") +
         std::to_string(shift_.size()) + " shifted inputs for each tap row, and written once; " +
         say_threads(useful_threads(call, team));
}

}  // namespace

template <typename T>
std::vector<T> diagonal_of(const Layer& layer, const T* w) {
  std::vector<T> diagonal;
  if (layer.groups != 1 || layer.rows != layer.cols || layer.rows == 1) return diagonal;
  const i64 taps = layer.taps();
  for (i64 column = 0; column < layer.cols; ++column)
    for (i64 row = 0; row < layer.rows; ++row)
      if (row != column && !std::all_of(w + (column * layer.rows + row) * taps,
                                        w + (column * layer.rows + row + 1) * taps, [](T v) { return v == T(0); }))
        return diagonal;
  for (i64 channel = 0; channel < layer.rows; ++channel) {
    const T* kernel = w + channel * (layer.rows + 1) * taps;
    diagonal.insert(diagonal.end(), kernel, kernel + taps);
  }
  return diagonal;
}

template <typename T>
std::unique_ptr<Way<T>> channelwise(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last) {
  return Channelwise<T>::pack(layer, kernels, w, last);
}

#define UPSCORE_INSTANTIATE(T)                                    \
  template std::vector<T> diagonal_of<T>(const Layer&, const T*); \
  template std::unique_ptr<Way<T>> channelwise<T>(const Layer&, const Kernels<T>&, const T*, bool);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
