// grad_w[ci][co][t] = sum over batch and inputs i of x[ci][i] * grad_y[co][i*stride + t*dilation - lo].
#pragma once

#include <algorithm>

#include "image.h"
#include "kernels/kernels.h"
#include "minimal.h"

namespace upscore {

// grad_w (groups*cols, rows, taps) of a transposed layer with input x (batch, groups*cols, *in) and
// gradient grad_y (batch, groups*rows, *out). Overwrites grad_w. The cut into tasks, tiles and slices depends
// on the sizes alone, so the order of additions, and with it the bits, does not depend on the threads. Where the call
// reads channels last, x lies so, and where it writes so, grad_y does.
template <typename T>
void weight_gradient(const Layer& layer, const Call& call, const Kernels<T>& kernels, Method method, const Team& team,
                     const T* x, const T* grad_y, T* grad_w);

// Where there are few tasks the tiles are shared out as well, each slice into an array of its own, added in order: so
// many, and how much longer than a share of the work that takes of a few threads.
struct Slices {
  i64 count;
  double time;
};
Slices cut_slices(const Layer& layer, const Call& call, i64 number_bytes, i64 tasks, i64 tiles);

// One way to compute it: `tasks` independent parts of grad_w, each a sum over `tiles` of positions.
template <typename T>
class WeightGradient {
 public:
  virtual ~WeightGradient() = default;
  i64 tasks = 1, tiles = 0;
  double cost = 0;  // cycles per position and group
  // Writes the sum over the tiles [first, last) of a task to its part of grad_w, a whole array of weights.
  virtual void compute(i64 task, i64 first, i64 last, T* grad_w) const = 0;
};

template <typename T>
struct GradientInputs {
  const Layer& layer;
  const Call& call;
  const Kernels<T>& kernels;
  const T *x, *grad_y;

  // From a channel of an image on.
  Image<T> input(i64 image, i64 channel) const {
    return image_of(x, call.batch, layer.groups * layer.cols, call.in, call.reads_last, image, channel);
  }
  Image<T> gradient(i64 image, i64 channel) const {
    return image_of(grad_y, call.batch, layer.groups * layer.rows, call.out, call.writes_last, image, channel);
  }

  // How much of the gradient of a group's weights there is for each position.
  double numbers_per_position() const {
    return static_cast<double>(layer.rows * layer.cols * layer.taps()) /
           static_cast<double>(std::max<i64>(call.batch * in_plane(), 1));
  }
  double positions() const { return static_cast<double>(call.batch * layer.groups * in_plane()); }
  i64 in_plane() const { return call.in[0] * call.in[1] * call.in[2]; }
  i64 out_plane() const { return call.out[0] * call.out[1] * call.out[2]; }
};

}  // namespace upscore
