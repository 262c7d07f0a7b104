#include "scatter.h"

#include <algorithm>

#include "buffer.h"
#include "scratch.h"

namespace upscore {
namespace {

constexpr i64 kMostPhases = 16384;

template <typename T>
class Scatter final : public Way<T> {
 public:
  Scatter(const Layer& layer, const T* w) : layer_(layer) {
    weights_.allocate(static_cast<std::size_t>(layer.groups * layer.cols * layer.rows * layer.taps()));
    std::copy_n(w, weights_.size(), weights_.data());
  }

  void execute(const Call& call, const Team&, const T* bias, const T* x, T* y) const override {
    const Size &in = call.in, &out = call.out;
    const i64 in_plane = in[0] * in[1] * in[2], out_plane = out[0] * out[1] * out[2];
    for (i64 n = 0; n < call.batch; ++n)
      for (i64 channel = 0; channel < layer_.groups * layer_.rows; ++channel) {
        T* image = y + (n * layer_.groups * layer_.rows + channel) * out_plane;
        std::fill_n(image, out_plane, bias ? bias[channel] : T(0));
        const i64 group = channel / layer_.rows, row = channel % layer_.rows;
        for (i64 column = group * layer_.cols; column < (group + 1) * layer_.cols; ++column) {
          const T* from = x + (n * layer_.groups * layer_.cols + column) * in_plane;
          const T* kernel = weights_.data() + (column * layer_.rows + row) * layer_.taps();
          for (i64 i = 0; i < in_plane; ++i) {
            const Size at{i / (in[1] * in[2]), i / in[2] % in[1], i % in[2]};
            for (i64 t = 0; t < layer_.taps(); ++t) {
              const Size tap{t / (layer_.kernel[1] * layer_.kernel[2]), t / layer_.kernel[2] % layer_.kernel[1],
                             t % layer_.kernel[2]};
              Size to;
              bool inside = true;
              for (std::size_t a = 0; a < kAxes; ++a) {
                to[a] = at[a] * layer_.stride[a] + tap[a] * layer_.dilation[a] - call.lo[a];
                inside = inside && to[a] >= 0 && to[a] < out[a];
              }
              if (inside) image[(to[0] * out[1] + to[1]) * out[2] + to[2]] += from[i] * kernel[t];
            }
          }
        }
      }
  }
  std::string why(const Call&, const Team&) const override {
    return "strides too large for phases: stamped input by input";
  }
  std::size_t size() const override { return weights_.size(); }

 private:
  const Layer layer_;
  Buffer<T> weights_;
};

}  // namespace

template <typename T>
std::unique_ptr<Way<T>> scatter(const Layer& layer, const T* w) {
  i64 phases = 1;
  for (i64 stride : layer.stride)
    phases = stride > kMostPhases ? kMostPhases + 1 : std::min(phases * stride, kMostPhases + 1);
  if (!layer.transposed || phases <= kMostPhases) return nullptr;
  return std::make_unique<Scatter<T>>(layer, w);
}

template std::unique_ptr<Way<float>> scatter<float>(const Layer&, const float*);
template std::unique_ptr<Way<double>> scatter<double>(const Layer&, const double*);

}  // namespace upscore
