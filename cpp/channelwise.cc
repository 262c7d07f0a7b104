#include "channelwise.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "plan.h"
#include "scratch.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kCopyBytes = 64 << 10;      // of inputs
constexpr i64 kNearCopyBytes = 24 << 10;  // of those that stay in the first-level cache beside weights,
constexpr i64 kShortest = 2048;           // unless that were fewer numbers of a row
constexpr i64 kRowBytes = 512 << 10;      // of the copies of the fewest outputs
constexpr i64 kFewest = 4;                // inputs whose outputs are computed at once
constexpr i64 kFewestRows = 4;            // that read an input row, if it is worth to be multiplied once
constexpr i64 kMostTaps = 12;             // of an output, where phases could be interleaved
constexpr double kSerialWork = 1 << 19;   // outputs below which waking another thread costs more

// Numbers [0, count) recur up to `end`.
template <typename T>
void recur(i64 count, i64 end, T* numbers) {
  for (; count < end; count *= 2) std::copy_n(numbers, std::min(count, end - count), numbers + count);
}

// Factors of a kernel's taps, of the leading axes and of the last one, whose products are the taps: to the bit, as
// bilinear ones are. The row with the smallest taps is the one that others are multiples of.
template <typename T>
bool separate(const T* w, i64 leading, i64 last, T* of_leading, T* of_last) {
  const auto largest = [&](i64 row) {
    return *std::max_element(w + row * last, w + (row + 1) * last, [](T a, T b) { return std::abs(a) < std::abs(b); });
  };
  i64 least = -1;
  T pivot = 0;
  for (i64 row = 0; row < leading; ++row)
    if (const T here = largest(row); std::abs(here) > 0 && (least < 0 || std::abs(here) < std::abs(pivot))) {
      least = row;
      pivot = here;
    }
  if (least >= 0) std::copy_n(w + least * last, last, of_last);
  const i64 at = least < 0 ? 0 : std::find(of_last, of_last + last, pivot) - of_last;
  for (i64 row = 0; row < leading; ++row, w += last) {
    of_leading[row] = least < 0 ? T(0) : w[at] / pivot;
    for (i64 i = 0; i < last; ++i)
      if (of_leading[row] * of_last[i] != w[i]) return false;
  }
  return true;
}

// Output rows are numbers in a line: of one channel, or, channels last, of all of them. Weights in the order in which
// rows meet them: [channel][phase of the leading axes][their taps][shift][residue], or, channels last, without the
// first and with the channel behind; of the residues the first recur behind the last.
//
// Channels last these weights come from memory, for each output. If kernels are separable, each input row is
// multiplied by the last axis's factors once, for all output rows that read it: these are [shift][residue][channel],
// and the weights of the leading axes have no shifts.
template <typename T>
class Channelwise final : public Way<T> {
 public:
  static std::unique_ptr<Way<T>> pack(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last,
                                      bool fastest);

  bool takes(const Call& call) const override {
    return call.reads_last == last_ && call.writes_last == last_ && (alone_ || worth_rows(call));
  }
  bool alone() const override { return alone_; }
  void execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const override;
  std::string why(const Call& call, const Team& team) const override;
  std::size_t size() const override { return weights_.size() + across_.size(); }

 private:
  struct RowTap {
    i64 z, y;  // offsets of the input row
  };
  struct RowPhase {
    std::vector<RowTap> taps;
    i64 first;  // of a plane's taps and shifts
  };
  class Rows;

  bool worth_rows(const Call& call) const;
  int useful_threads(const Call& call, const Team& team) const;
  i64 image_of(const Call& call) const {  // its outputs
    return layer_.groups * call.out[0] * call.out[1] * call.out[2];
  }
  // Numbers [begin, end) of the output rows [first, last), counted over both leading axes, of one plane.
  struct Stretch {
    i64 plane, first, last, begin, end;
  };
  bool past_caches(const Call& call) const {
    return call.batch * image_of(call) * i64{sizeof(T)} > Limits::stream_bytes;
  }
  i64 longest(const Call& call) const;
  void rows(const Call& call, const Stretch& part, const T* bias, const T* x, T* y) const;
  void repeat(const T* src, const T* end, i64 count, T* dst) const;

  Layer layer_;  // one group a channel
  bool last_ = false, alone_ = false;
  const Kernels<T>* kernels_ = nullptr;
  i64 planes_ = 1, channels_ = 1;           // of an image, and next to each other in each of them
  i64 step_ = 1;                            // numbers of an output row from one input on to the next one
  i64 row_taps_ = 0;                        // most input rows of an output row
  i64 plane_taps_ = 0, pitch_ = 0;          // taps and shifts of a plane, and numbers of each of them
  bool separable_ = false, alike_ = false;  // the leading axes' factors are the same for all channels
  std::vector<i64> shift_;                  // the largest first
  std::vector<RowPhase> phases_;            // by residue of the leading axes
  Buffer<T> weights_;                       // on vectors
  Buffer<T> across_;                        // of separable kernels, with a shift of zeros behind
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
  c.last_ = last;
  (last ? c.channels_ : c.planes_) = layer.groups;
  c.step_ = step * c.channels_;
  c.alone_ = step % lanes == 0 || (last && 2 * layer.groups >= lanes);
  if (!c.alone_ && (last || !fastest || step == 1)) return nullptr;
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
  const i64 shifts = static_cast<i64>(c.shift_.size()), reach = c.shift_.front() - c.shift_.back();
  if (!c.alone_ && c.row_taps_ * shifts > kMostTaps) return nullptr;
  if (c.row_taps_ * (reach + 3) * c.step_ * i64{sizeof(T)} > kRowBytes) return nullptr;
  const i64 leading = layer.kernel[0] * layer.kernel[1];
  std::vector<T> of_leading(static_cast<std::size_t>(layer.groups * leading));
  std::vector<T> of_last(static_cast<std::size_t>(layer.groups * layer.kernel[2]));
  c.separable_ = last && shifts > 1 && layer.stride[1] >= kFewestRows;
  for (i64 group = 0; c.separable_ && group < layer.groups; ++group)
    c.separable_ = separate(w + group * layer.taps(), leading, layer.kernel[2], of_leading.data() + group * leading,
                            of_last.data() + group * layer.kernel[2]);
  c.alike_ = c.separable_ && std::equal(of_leading.begin() + leading, of_leading.end(), of_leading.begin());
  c.plane_taps_ = leading * (c.separable_ ? 1 : shifts);
  c.pitch_ = round_up(c.step_, lanes) + lanes;
  c.weights_.allocate(static_cast<std::size_t>(c.planes_ * c.plane_taps_ * c.pitch_));
  T* to = c.weights_.data();
  const auto put = [&](auto&& number_of) {  // of each channel and phase of the last axis
    for (i64 e = 0; e < c.step_; ++e) to[e] = number_of(e % c.channels_, static_cast<std::size_t>(e / c.channels_));
    recur(c.step_, c.pitch_, to);
    to += c.pitch_;
  };
  for (i64 plane = 0; plane < c.planes_; ++plane, w += layer.taps()) {
    i64 begin = 0;
    for (const AxisPhase& z : deep)
      for (const AxisPhase& y : down) {
        RowPhase phase{{}, begin};
        for (std::size_t iz = 0; iz < z.tap.size(); ++iz)
          for (std::size_t iy = 0; iy < y.tap.size(); ++iy) {
            phase.taps.push_back({z.offset[iz], y.offset[iy]});
            const i64 tap = z.tap[iz] * layer.kernel[1] + y.tap[iy];
            if (c.separable_) {
              ++begin;
              put([&](i64 group, std::size_t) { return of_leading[static_cast<std::size_t>(group * leading + tap)]; });
              continue;
            }
            const T* row = w + tap * layer.kernel[2];
            for (std::size_t j = 0; j < c.shift_.size(); ++j, ++begin)
              put([&](i64 group, std::size_t residue) {
                return across[residue].tap[j] < 0 ? T(0) : row[group * layer.taps() + across[residue].tap[j]];
              });
          }
        if (plane == 0) c.phases_.push_back(std::move(phase));
      }
  }
  if (!c.separable_) return way;
  c.across_.allocate(static_cast<std::size_t>((shifts + 1) * c.pitch_));
  to = c.across_.data();
  for (std::size_t j = 0; j < c.shift_.size(); ++j)
    put([&](i64 group, std::size_t residue) {
      const i64 tap = across[residue].tap[j];
      return tap < 0 ? T(0) : of_last[static_cast<std::size_t>(group * layer.kernel[2] + tap)];
    });
  put([](i64, std::size_t) { return T(0); });
  return way;
}

template <typename T>
void Channelwise<T>::execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const {
  const i64 all_rows = call.out[0] * call.out[1], row = call.out[2] * channels_;
  const int threads = useful_threads(call, team);
  const i64 planes = call.batch * planes_, length = round_up(piece(row, longest(call)), kernels_->lanes),
            stretches = ceil_div(row, length);
  const i64 blocks = std::clamp<i64>(threads == 1 ? 1 : ceil_div(4 * threads, planes * stretches), 1, all_rows);
  parallel_for(planes * stretches * blocks, threads, [&](i64 task) {
    const i64 block = task % blocks, begin = task / blocks % stretches * length;
    rows(call,
         {task / blocks / stretches, block * all_rows / blocks, (block + 1) * all_rows / blocks, begin,
          std::min(begin + length, row)},
         bias, x, y);
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

// Numbers of a row that are computed at once. Those that go past the caches do not wait for more of it than the first.
template <typename T>
i64 Channelwise<T>::longest(const Call& call) const {
  const i64 all = row_taps_ * i64{sizeof(T)};
  return std::max(past_caches(call) ? std::max(kNearCopyBytes / all, kShortest) : kCopyBytes / all, kFewest * step_);
}

// Inputs are copied as often as they have phases, so that outputs, inputs and weights of a tap lie in lines; a copy
// stays for all output rows that read it. Past the caches only whole vectors are written: what is behind the last one
// of a row waits for the next row, which goes on there.
template <typename T>
void Channelwise<T>::rows(const Call& call, const Stretch& part, const T* bias, const T* x, T* y) const {
  const i64 lanes = kernels_->lanes, lead = call.lo[2] * channels_;
  // Inputs that are read: whole vectors of outputs may begin before the first one, and end behind the last.
  const i64 from = floor_div(part.begin - lanes + lead, step_) + shift_.back();
  const i64 count = floor_div(part.end + lanes + lead, step_) + shift_.front() + 1 - from;
  const i64 skip = std::clamp<i64>(-from, 0, count), stop = std::clamp<i64>(call.in[2] - from, skip, count);
  const i64 out_row = call.out[2] * channels_, in_row = call.in[2] * channels_;

  const i64 pitch = count * step_ + lanes, channel = part.plane % planes_;
  T* const rest = scratch<T>(static_cast<std::size_t>(lanes + pitch_ + (row_taps_ + 1) * pitch));
  T *const biases = rest + lanes, *const copies = biases + pitch_, *const repeated = copies + row_taps_ * pitch;
  for (i64 c = 0; c < channels_; ++c) biases[c] = bias ? bias[channel + c] : T(0);
  recur(channels_, pitch_, biases);
  std::vector<i64> held(static_cast<std::size_t>(row_taps_), -2);  // which input row a copy holds
  std::vector<std::size_t> copy_of;                                // of each tap of a row
  std::vector<const T*> inputs;                                    // of the first output

  Stencil<T> s{};
  s.step = step_;
  s.turn = lanes % step_;
  s.w_pitch = pitch_;
  s.bias = biases;
  s.rest = rest;
  s.past_caches = past_caches(call) && reinterpret_cast<std::uintptr_t>(y) % sizeof(T) == 0;
  const bool in_a_line = s.past_caches && part.end - part.begin == out_row;
  const auto phase_of = [&](i64 o) { return o + lead - floor_div(o + lead, step_) * step_; };
  std::vector<const T*> shifted;  // separable: of the repeated inputs, and sums of them from this number of a row on
  const i64 summed = part.begin - lanes;
  Stencil<T> of_last = s;
  if (separable_) {
    for (const i64 shift : shift_) shifted.push_back(repeated + lead + (shift - from) * step_);
    of_last.w = across_.data();
    of_last.bias = across_.data() + static_cast<i64>(shift_.size()) * pitch_;
    of_last.x = shifted.data();
    of_last.taps = static_cast<i64>(shift_.size());
    of_last.first = summed;
    of_last.phase = phase_of(summed);
    of_last.length = round_up(part.end + lanes - summed, lanes);
    of_last.past_caches = false;
    s.alike = alike_;
  }
  const i64 begin_phase = phase_of(part.begin);
  i64 waiting = 0;
  T* out = y + (part.plane * call.out[0] * call.out[1] + part.first) * out_row;
  Rows row(*this, call, part.first);
  for (i64 left = part.last - part.first; left > 0; --left, out += out_row, row.next()) {
    if (row.changed()) {
      find_copies(row.inputs(), held, copy_of, [&](std::size_t copy, i64 number) {
        T* const sums = copies + static_cast<i64>(copy) * pitch;
        T* const to = separable_ ? repeated : sums;
        const i64 first = number < 0 ? count : skip, last = number < 0 ? count : stop;
        std::fill_n(to, first * step_, T(0));
        repeat(x + (part.plane * call.in[0] * call.in[1] + number) * in_row + (from + first) * channels_,
               x + call.batch * planes_ * call.in[0] * call.in[1] * in_row, last - first, to + first * step_);
        std::fill_n(to + last * step_, (count - last) * step_, T(0));
        if (!separable_) return;
        of_last.out = sums;
        kernels_->stencil(of_last);
      });
      inputs.clear();
      for (const std::size_t copy : copy_of) {
        const T* const sums = copies + static_cast<i64>(copy) * pitch;
        if (separable_) {
          inputs.push_back(sums - summed);
          continue;
        }
        for (const i64 shift : shift_) inputs.push_back(sums + lead + (shift - from) * step_);
      }
      s.x = inputs.data();
    }
    s.taps = static_cast<i64>(inputs.size());
    s.w = weights_.data() + (channel * plane_taps_ + row.phase().first) * pitch_;
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

// Every input, of one number or of all channels, as often as it has phases. Up to a vector more is written, and read,
// but not behind the end.
template <typename T>
void Channelwise<T>::repeat(const T* src, const T* end, i64 count, T* dst) const {
  if (channels_ == 1) return kernels_->repeat(src, count, step_, dst);
  const i64 more = round_up(channels_, kernels_->lanes) - channels_, times = layer_.stride[2];
  const i64 inside = std::min(count, (end - src - more) / channels_);
  if (inside > 0) kernels_->repeat_pixels(src, inside, channels_, times, dst);
  for (i64 i = std::max<i64>(inside, 0); i < count; ++i) {
    std::copy_n(src + i * channels_, channels_, dst + i * step_);
    recur(channels_, step_, dst + i * step_);
  }
}

// Against interleaved phases, for an image: what beginning a row takes, and what each of its vectors saves. As
// measured.
template <typename T>
bool Channelwise<T>::worth_rows(const Call& call) const {
  const double taps = static_cast<double>(row_taps_ * static_cast<i64>(shift_.size())),
               vectors = static_cast<double>(call.out[2]) / kernels_->lanes;
  const bool far = image_of(call) * i64{sizeof(T)} > Limits::stream_bytes;
  return vectors * (8 - 0.5 * taps + (far ? 4 : 0) + (layer_.stride[2] > 3 ? 3 : 0)) > 30 + 5 * taps;
}

template <typename T>
int Channelwise<T>::useful_threads(const Call& call, const Team& team) const {
  return team.share(static_cast<double>(call.batch * image_of(call)) / kSerialWork);
}

template <typename T>
std::string Channelwise<T>::why(const Call& call, const Team& team) const {
  return std::string("transposed convolution: channels do not mix, so every output row is computed along its lanes, ") +
         std::to_string(shift_.size()) +
         (separable_ ? " shifted inputs of each input row multiplied once for all output rows; "
                     : " shifted inputs for each tap row, and written once; ") +
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
