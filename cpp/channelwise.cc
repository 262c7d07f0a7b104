#include "channelwise.h"

#include <algorithm>
#include <cstdint>

#include "plan.h"
#include "scratch.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kCopyBytes = 256 << 10;    // of inputs
constexpr i64 kRowBytes = 1 << 20;       // of the copies of a row of few outputs
constexpr i64 kShortest = 256;           // outputs of a row that are computed at once, at least
constexpr double kMostTaps = 12;         // of an output, where phases could be interleaved
constexpr double kSerialWork = 1 << 19;  // outputs below which waking another thread costs more

// Weights in the order in which output rows meet them: [channel][phase of the leading axes][their
// taps][shift][residue], of which the first recur behind the last, and for channels last [phase of the leading
// axes][their taps][shift][residue][channel].
template <typename T>
class Channelwise final : public Way<T> {
 public:
  static std::unique_ptr<Way<T>> pack(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last,
                                      bool fastest);

  bool takes(const Call& call) const override {
    if (call.reads_last != call.writes_last) return false;
    return call.reads_last ? pixels_ : any_row_ || (rows_ && worth_rows(call));
  }
  bool alone() const override { return any_row_ || pixels_; }
  void execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const override;
  std::string why(const Call& call, const Team& team) const override;
  std::size_t size() const override { return weights_.size() + pixel_weights_.size(); }

 private:
  struct RowTap {
    i64 z, y;  // offsets of the input row
  };
  struct RowPhase {
    std::vector<RowTap> taps;
    i64 first;  // of a channel's taps and shifts
  };
  class Rows;

  bool worth_rows(const Call& call) const;
  int useful_threads(const Call& call, const Team& team) const;
  // Outputs [begin, end) of the rows [first, last), counted over both leading axes, of one image.
  struct Stretch {
    i64 image, channel, first, last, begin, end;
  };
  i64 longest() const;
  void rows(const Call& call, const Stretch& part, T bias, const T* x, T* y) const;
  void pixel_rows(const Call& call, i64 image, i64 first, i64 last, const T* bias, const T* x, T* y) const;

  Layer layer_;                         // one group a channel
  bool rows_ = false, pixels_ = false;  // channels first, last
  bool any_row_ = false;                // however short
  const Kernels<T>* kernels_ = nullptr;
  i64 row_taps_ = 0;                  // most input rows of an output row
  i64 channel_taps_ = 0, pitch_ = 0;  // taps and shifts of a channel, and numbers of each of them
  std::vector<i64> shift_;
  std::vector<RowPhase> phases_;  // by residue of the leading axes
  Buffer<T> weights_;             // on vectors
  std::vector<T> pixel_weights_;
};

template <typename T>
std::unique_ptr<Way<T>> Channelwise<T>::pack(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last,
                                             bool fastest) {
  if (!layer.transposed || layer.rows != 1 || layer.cols != 1) return nullptr;
  const i64 lanes = kernels.lanes, step = layer.stride[2];
  auto way = std::make_unique<Channelwise>();
  Channelwise& c = *way;
  c.layer_ = layer;
  c.kernels_ = &kernels;
  c.pixels_ = last && 2 * layer.groups >= lanes;
  // All taps of an output are summed in one go, as in other layers.
  i64 window = 1;
  for (std::size_t a = 0; a < kAxes; ++a) {
    const i64 extent = (layer.kernel[a] - 1) * layer.dilation[a] + 1;
    window *= layer.stride[a] == 1 ? layer.kernel[a] : ceil_div(extent, layer.stride[a]) + 1;
    if (window > Limits::offsets) return nullptr;
  }
  const std::vector<AxisPhase> across = axis_residues(layer.kernel[2], step, layer.dilation[2], true);
  c.shift_ = across[0].offset;
  const auto down = axis_residues(layer.kernel[1], layer.stride[1], layer.dilation[1], false);
  const auto deep = axis_residues(layer.kernel[0], layer.stride[0], layer.dilation[0], false);
  const auto most = [](const std::vector<AxisPhase>& phases) {
    std::size_t taps = 0;
    for (const AxisPhase& phase : phases) taps = std::max(taps, phase.tap.size());
    return static_cast<i64>(taps);
  };
  c.row_taps_ = most(deep) * most(down);
  const i64 reach = c.shift_.front() - c.shift_.back();
  const bool fits = c.row_taps_ * (std::abs(reach) + 3) * step * i64{sizeof(T)} <= kRowBytes;
  c.any_row_ = fits && step % lanes == 0;
  c.rows_ = c.any_row_ || (fits && fastest && !last && step > 1);
  if (!c.rows_ && !c.pixels_) return nullptr;
  c.channel_taps_ = layer.kernel[0] * layer.kernel[1] * static_cast<i64>(c.shift_.size());
  c.pitch_ = round_up(step, lanes) + lanes;
  const i64 taps = layer.groups * c.channel_taps_;
  if (c.rows_) c.weights_.allocate(static_cast<std::size_t>(taps * c.pitch_));
  if (c.pixels_) c.pixel_weights_.resize(static_cast<std::size_t>(taps * step + lanes));
  for (i64 channel = 0; channel < layer.groups; ++channel, w += layer.taps()) {
    i64 begin = 0;
    for (const AxisPhase& z : deep)
      for (const AxisPhase& y : down) {
        RowPhase phase{{}, begin};
        for (std::size_t iz = 0; iz < z.tap.size(); ++iz)
          for (std::size_t iy = 0; iy < y.tap.size(); ++iy) {
            phase.taps.push_back({z.offset[iz], y.offset[iy]});
            const T* row = w + (z.tap[iz] * layer.kernel[1] + y.tap[iy]) * layer.kernel[2];
            for (std::size_t j = 0; j < c.shift_.size(); ++j, ++begin)
              for (i64 e = 0; e < c.pitch_; ++e) {
                const i64 tap = across[static_cast<std::size_t>(e % step)].tap[j];
                const T weight = tap < 0 ? T(0) : row[tap];
                if (c.rows_) c.weights_.data()[(channel * c.channel_taps_ + begin) * c.pitch_ + e] = weight;
                if (c.pixels_ && e < step)
                  c.pixel_weights_[static_cast<std::size_t>((begin * step + e) * layer.groups + channel)] = weight;
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
  const i64 images = call.batch * layer_.groups, length = piece(call.out[2], longest());
  const i64 stretches = ceil_div(call.out[2], length);
  const i64 blocks = std::clamp<i64>(threads == 1 ? 1 : ceil_div(4 * threads, images * stretches), 1, all_rows);
  parallel_for(images * stretches * blocks, threads, [&](i64 task) {
    const i64 block = task % blocks, begin = task / blocks % stretches * length;
    const i64 image = task / blocks / stretches, channel = image % layer_.groups;
    rows(call,
         {image, channel, block * all_rows / blocks, (block + 1) * all_rows / blocks, begin,
          std::min(begin + length, call.out[2])},
         bias ? bias[channel] : T(0), x, y);
  });
}

// Output rows one after the other, counted over both leading axes.
template <typename T>
class Channelwise<T>::Rows {
 public:
  Rows(const Channelwise& way, const Call& call, i64 first)
      : way_(way), call_(call), z_(way, call, 0, first / call.out[1]), y_(way, call, 1, first % call.out[1]) {
    find();
  }
  void next() {
    if (!y_.next()) z_.next();
    find();
  }
  const RowPhase& phase() const { return *phase_; }
  // Per tap of the phase, the number of an input row, or -1 where there is none.
  const std::vector<i64>& inputs() const { return inputs_; }
  bool changed() const { return changed_; }  // they are not those of the row before

 private:
  struct Axis {
    Axis(const Channelwise& way, const Call& call, std::size_t axis, i64 at)
        : stride(way.layer_.stride[axis]), out(call.out[axis]), lo(call.lo[axis]), at(at) {
      find();
    }
    void find() {
      q = floor_div(at + lo, stride);
      residue = at + lo - q * stride;
    }
    bool next() {  // or back at the first
      if (++residue == stride) {
        residue = 0;
        ++q;
      }
      if (++at < out) return true;
      at = 0;
      find();
      return false;
    }
    i64 stride, out, lo, at, q = 0, residue = 0;
  };
  void find() {
    phase_ = &way_.phases_[static_cast<std::size_t>(z_.residue * y_.stride + y_.residue)];
    changed_ = inputs_.size() != phase_->taps.size();
    inputs_.resize(phase_->taps.size());
    i64* input = inputs_.data();
    for (const RowTap& tap : phase_->taps) {
      const i64 z = z_.q + tap.z, y = y_.q + tap.y;
      const bool inside = z >= 0 && z < call_.in[0] && y >= 0 && y < call_.in[1];
      const i64 number = inside ? z * call_.in[1] + y : -1;
      changed_ |= number != *input;
      *input++ = number;
    }
  }
  const Channelwise& way_;
  const Call& call_;
  Axis z_, y_;
  const RowPhase* phase_ = nullptr;
  std::vector<i64> inputs_;
  bool changed_ = true;
};

// For each input row, which copy holds it; those that none holds are copied where one is no longer needed.
template <typename Copy>
void find_copies(const std::vector<i64>& rows, std::vector<i64>& held, std::vector<std::size_t>& copy_of, Copy&& copy) {
  copy_of.clear();
  for (const i64 row : rows)
    copy_of.push_back(static_cast<std::size_t>(std::find(held.begin(), held.end(), row) - held.begin()));
  std::size_t free = 0;
  for (std::size_t t = 0; t < rows.size(); ++t) {
    if (copy_of[t] < held.size()) continue;
    while (std::find(copy_of.begin(), copy_of.end(), free) != copy_of.end()) ++free;
    copy(free, rows[t]);
    held[free] = rows[t];
    for (std::size_t same = t; same < rows.size(); ++same)
      if (rows[same] == rows[t]) copy_of[same] = free;
  }
}

// Outputs of a row that are computed at once.
template <typename T>
i64 Channelwise<T>::longest() const {
  return std::max(kCopyBytes / (row_taps_ * i64{sizeof(T)}), kShortest);
}

// Inputs are copied as often as they have phases, so that outputs, inputs and weights of a tap lie in lines; a copy
// stays for all output rows that read it. Past the caches only whole vectors are written: what is behind the last one
// of a row waits for the next row, which goes on there.
template <typename T>
void Channelwise<T>::rows(const Call& call, const Stretch& part, T bias, const T* x, T* y) const {
  const i64 lanes = kernels_->lanes, step = layer_.stride[2];
  const auto [low, high] = std::minmax_element(shift_.begin(), shift_.end());
  // Inputs that are read: whole vectors of outputs may begin before the first one, and end behind the last.
  const i64 from = floor_div(part.begin - lanes + call.lo[2], step) + *low;
  const i64 count = floor_div(part.end + lanes + call.lo[2], step) + *high + 1 - from;
  const i64 skip = std::clamp<i64>(-from, 0, count), stop = std::clamp<i64>(call.in[2] - from, skip, count);

  const i64 pitch = count * step + lanes;
  T *const rest = scratch<T>(static_cast<std::size_t>(lanes + row_taps_ * pitch)), *const copies = rest + lanes;
  std::vector<i64> held(static_cast<std::size_t>(row_taps_), -2);  // which input row a copy holds
  std::vector<std::size_t> copy_of;                                // of each tap of a row
  std::vector<const T*> inputs;                                    // of the first output
  const i64 all = call.batch * layer_.groups * call.out[0] * call.out[1] * call.out[2];

  Stencil<T> s{};
  s.step = step;
  s.turn = lanes % step;
  s.w_pitch = pitch_;
  s.bias = bias;
  s.rest = rest;
  s.past_caches = all * i64{sizeof(T)} > Limits::stream_bytes && reinterpret_cast<std::uintptr_t>(y) % sizeof(T) == 0;
  const bool in_a_line = s.past_caches && part.end - part.begin == call.out[2];
  const auto phase_of = [&](i64 o) { return o + call.lo[2] - floor_div(o + call.lo[2], step) * step; };
  const i64 begin_phase = phase_of(part.begin);
  i64 waiting = 0;
  T* out = y + (part.image * call.out[0] * call.out[1] + part.first) * call.out[2];
  Rows row(*this, call, part.first);
  for (i64 left = part.last - part.first; left > 0; --left, out += call.out[2], row.next()) {
    if (row.changed()) {
      find_copies(row.inputs(), held, copy_of, [&](std::size_t copy, i64 number) {
        T* const to = copies + static_cast<i64>(copy) * pitch;
        const i64 first = number < 0 ? count : skip, last = number < 0 ? count : stop;
        std::fill_n(to, first * step, T(0));
        kernels_->repeat(x + (part.image * call.in[0] * call.in[1] + number) * call.in[2] + from + first, last - first,
                         step, to + first * step);
        std::fill_n(to + last * step, (count - last) * step, T(0));
      });
      inputs.clear();
      for (const std::size_t copy : copy_of)
        for (const i64 shift : shift_)
          inputs.push_back(copies + static_cast<i64>(copy) * pitch + call.lo[2] + (shift - from) * step);
      s.x = inputs.data();
    }
    s.taps = static_cast<i64>(inputs.size());
    s.w = weights_.data() + (part.channel * channel_taps_ + row.phase().first) * pitch_;
    const auto compute = [&](i64 first, i64 last, i64 head) {
      s.first = first;
      s.phase = first == part.begin ? begin_phase : phase_of(first);
      s.length = last - first;
      s.head = head;
      s.out = out + first;
      kernels_->stencil(s);
      return s.length % lanes;
    };
    i64 first = part.begin;
    if (s.past_caches && waiting == 0) {
      const i64 begins = static_cast<i64>(reinterpret_cast<std::uintptr_t>(out + first) / sizeof(T)) % lanes;
      if (begins > 0) {
        const i64 next = std::min(first + lanes - begins, part.end);
        std::copy_n(rest, compute(first, next, 0), out + first);
        first = next;
      }
    }
    if (first == part.end) continue;
    waiting = compute(first - waiting, part.end, waiting);
    if (in_a_line && left > 1) continue;
    std::copy_n(rest, waiting, out + part.end - waiting);
    waiting = 0;
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

  std::vector<i64> held;
  std::vector<const T*> weights, inputs;
  PixelStencil<T> s;
  s.bias = biases;
  s.channels = channels;
  s.x_step = pitch;
  for (i64 from = first_q; from < last_q; from += most) {
    const i64 to = std::min(from + most, last_q), inputs_of_row = to - from + reach;
    held.assign(static_cast<std::size_t>(rows), -2);
    Rows row(*this, call, first);
    for (i64 number = first; number < last; ++number, row.next()) {
      const std::vector<i64>& numbers = row.inputs();
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
      const T* w = pixel_weights_.data() + row.phase().first * step * channels;
      T* out = y + number * length;
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

// Against interleaved phases, for an image: what beginning a row takes, and what each of its vectors saves. As
// measured.
template <typename T>
bool Channelwise<T>::worth_rows(const Call& call) const {
  const double taps = static_cast<double>(row_taps_ * static_cast<i64>(shift_.size())),
               vectors = static_cast<double>(call.out[2]) / kernels_->lanes;
  const bool far = layer_.groups * call.out[0] * call.out[1] * call.out[2] * i64{sizeof(T)} > Limits::stream_bytes;
  return taps <= kMostTaps &&
         vectors * (8 - 0.5 * taps + (far ? 4 : 0) + (layer_.stride[2] > 3 ? 3 : 0)) > 30 + 5 * taps;
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
std::unique_ptr<Way<T>> channelwise(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last,
                                    bool fastest) {
  return Channelwise<T>::pack(layer, kernels, w, last, fastest);
}

#define UPSCORE_INSTANTIATE(T)                                    \
  template std::vector<T> diagonal_of<T>(const Layer&, const T*); \
  template std::unique_ptr<Way<T>> channelwise<T>(const Layer&, const Kernels<T>&, const T*, bool, bool);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
