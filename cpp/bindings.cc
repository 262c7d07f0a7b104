// Conversion, releasing the GIL, mapping errors; nothing else. Shapes are checked here once more, because
// nothing that a caller passes may reach foreign memory.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "bias_gradient.h"
#include "buffer.h"
#include "cpu.h"
#include "packed_layer.h"
#include "require.h"
#include "threads.h"
#include "turn.h"
#include "weight_gradient.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace upscore {
namespace {

template <typename T>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <typename T>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
template <typename T>
using New = nb::ndarray<nb::numpy, T, nb::device::cpu>;
using Shape = std::vector<std::size_t>;

// Shapes are (first, second, *axes); fewer than three axes are filled with leading ones.
// With channels last they are (first, *axes, second).
template <typename Array>
Size axes_of(const Array& array, bool last = false) {
  require(array.ndim() >= 3 && array.ndim() <= 5, "arrays have one to three axes after the first two");
  Size size{1, 1, 1};
  for (std::size_t d = 2; d < array.ndim(); ++d)
    size[kAxes - (array.ndim() - d)] = static_cast<i64>(array.shape(last ? d - 1 : d));
  return size;
}
Size axes_of(const Shape& shape) {
  require(shape.size() >= 3 && shape.size() <= 5, "arrays have one to three axes after the first two");
  Size size{1, 1, 1};
  for (std::size_t d = 2; d < shape.size(); ++d) size[kAxes - (shape.size() - d)] = static_cast<i64>(shape[d]);
  return size;
}
template <typename Array>
i64 dim(const Array& array, std::size_t d) {
  return static_cast<i64>(array.shape(d));
}

Layer layer_of(const Size& kernel, const Size& stride, const Size& dilation, i64 groups, i64 first, i64 second,
               bool transposed) {
  for (std::size_t a = 0; a < kAxes; ++a)
    require(kernel[a] >= 1 && stride[a] >= 1 && dilation[a] >= 1, "kernel, stride and dilation are at least 1");
  require(groups >= 1 && first >= 1 && second >= 1 && first % groups == 0, "groups divide the channels");
  Layer layer;
  layer.kernel = kernel;
  layer.stride = stride;
  layer.dilation = dilation;
  layer.groups = groups;
  layer.rows = transposed ? second : first / groups;
  layer.cols = transposed ? first / groups : second;
  layer.transposed = transposed;
  return layer;
}

// An uninitialised array (first, second, *axes), which with channels last lies as (first, *axes, second) does.
template <typename T>
New<T> empty(const Shape& shape, bool last) {
  struct Block {
    void* memory;
    std::size_t bytes;
  };
  const bool none = std::find(shape.begin(), shape.end(), std::size_t{0}) != shape.end();
  std::size_t bytes = none ? 0 : sizeof(T);
  std::vector<i64> strides(shape.size());
  for (std::size_t i = shape.size(); i-- > 0;) {
    // The axis that is i-th in memory.
    const std::size_t axis = !last || i == 0 ? i : i + 1 < shape.size() ? i + 1 : 1;
    strides[axis] = static_cast<i64>(bytes / sizeof(T));
    if (__builtin_mul_overflow(bytes, shape[axis], &bytes)) throw std::bad_alloc();
  }
  auto block = std::make_unique<Block>(Block{acquire_buffer(bytes), bytes});
  Block* owned = block.release();
  nb::capsule owner(owned, [](void* p) noexcept {
    Block* b = static_cast<Block*>(p);
    release_buffer(b->memory, b->bytes);
    delete b;
  });
  return New<T>(static_cast<T*>(owned->memory), shape.size(), shape.data(), owner, strides.data());
}

// Of the only call that weights are packed for, if there is to be one: batch, input, output, crop, threads.
using Sizes = std::optional<std::tuple<i64, Size, Size, Size, int>>;

std::optional<OnlyCall> only_call(const Sizes& sizes) {
  if (!sizes) return {};
  const auto& [batch, in, out, lo, threads] = *sizes;
  return OnlyCall{{batch, in, out, lo}, threads};
}

template <typename T>
class Plan {
 public:
  Plan(In<T> w, std::optional<In<T>> bias, Size stride, Size dilation, i64 groups, bool transposed, Method method,
       bool last, const Sizes& once) {
    const Layer layer = layer_of(axes_of(w), stride, dilation, groups, dim(w, 0), dim(w, 1), transposed);
    require(!bias || (bias->ndim() == 1 && dim(*bias, 0) == layer.groups * layer.rows), "one bias per output channel");
    if (once) plain_ = w;
    nb::gil_scoped_release release;
    packed_.emplace(layer, w.data(), bias ? bias->data() : nullptr, method, last, only_call(once));
  }

  void run(In<T> x, Out<T> y, Size lo, int threads, bool reads_last, bool writes_last) {
    require(dim(x, 0) == dim(y, 0), "input and output have the same batch");
    run_call({dim(x, 0), axes_of(x, reads_last), axes_of(y, writes_last), lo, reads_last, writes_last},
             dim(x, reads_last ? x.ndim() - 1 : 1), dim(y, writes_last ? y.ndim() - 1 : 1), threads, x.data(),
             y.data());
  }

  // Of as many images as the output has, of so many channels and numbers along each axis, that lie at an address. The
  // output is (N, C, *axes), whatever its numbers lie like; a DLPack capsule, of which a tensor is sooner made than of
  // an array.
  nb::object run_at(std::uintptr_t x, i64 channels, Size in, const Shape& shape, Size lo, int threads, bool reads_last,
                    bool writes_last) {
    nb::ndarray<T, nb::device::cpu> y(empty<T>(shape, writes_last));
    run_call({dim(y, 0), in, axes_of(y), lo, reads_last, writes_last}, channels, dim(y, 1), threads,
             reinterpret_cast<const T*>(x), y.data());
    return nb::cast(std::move(y));
  }

  // Whether this call can read, and whether it can write, channels last, and nothing has to be turned for it.
  std::pair<bool, bool> channels_last(i64 batch, Size in, Size out, Size lo, int threads) const {
    const Call call = packed_->as_computed({batch, in, out, lo, true, true}, threads);
    return {call.reads_last, call.writes_last};
  }

  std::string why(i64 batch, Size in, Size out, Size lo, int threads) const {
    return packed_->why({batch, in, out, lo}, threads);
  }
  std::size_t packed_bytes() const { return packed_->packed_bytes(); }
  std::string isa() const { return packed_->isa(); }

 private:
  void run_call(const Call& call, i64 inputs, i64 outputs, int threads, const T* x, T* y) {
    require(inputs == packed_->channels_in(), "the input has the layer's channels");
    require(outputs == packed_->channels_out(), "the output has the layer's channels");
    nb::gil_scoped_release release;
    packed_->run(call, threads, x, y);
  }

  std::optional<PackedLayer<T>> packed_;
  std::optional<In<T>> plain_;  // weights that may be read where they lie
};

template <typename T>
void gradient_of_weights(In<T> x, In<T> grad_y, Out<T> grad_w, Size stride, Size dilation, Size lo, i64 groups,
                         Method method, int threads, bool x_last, bool grad_last) {
  const Layer layer = layer_of(axes_of(grad_w), stride, dilation, groups, dim(grad_w, 0), dim(grad_w, 1), true);
  const Call call{dim(x, 0), axes_of(x, x_last), axes_of(grad_y, grad_last), lo, x_last, grad_last};
  require(dim(x, 0) == dim(grad_y, 0), "input and gradient have the same batch");
  require(dim(x, x_last ? x.ndim() - 1 : 1) == dim(grad_w, 0), "the input has the weights' channels");
  require(dim(grad_y, grad_last ? grad_y.ndim() - 1 : 1) == layer.groups * layer.rows,
          "the gradient has the layer's channels");
  nb::gil_scoped_release release;
  weight_gradient(layer, call, active_table<T>(), method, team_of(threads), x.data(), grad_y.data(), grad_w.data());
  if (threads > 1) end_call();
}

template <typename T>
void gradient_of_bias(In<T> grad_y, Out<T> grad_bias, int threads) {
  require(grad_y.ndim() >= 2 && grad_bias.ndim() == 1 && dim(grad_y, 1) == dim(grad_bias, 0),
          "the gradient of the bias has the channels of the output's");
  i64 plane = 1;
  for (std::size_t d = 2; d < grad_y.ndim(); ++d) plane *= dim(grad_y, d);
  nb::gil_scoped_release release;
  bias_gradient(threads, dim(grad_y, 0), dim(grad_y, 1), plane, false, grad_y.data(), grad_bias.data());
}

// Numbers at an address: an array (first, second, *axes), whose numbers lie channels last or first.
using Lying = std::tuple<std::uintptr_t, Shape, bool>;

template <typename T>
using Gradients = std::tuple<std::optional<New<T>>, std::optional<New<T>>, std::optional<New<T>>>;

// The gradients of a transposed layer's input, weights and bias, of those that are wanted; that of the input lies
// channels `last` or first. The bias comes first: to sum it fetches, in order, what the others read.
template <typename T>
Gradients<T> gradients(const Lying& x_lying, const Lying& y_lying, const Lying& w_lying, Size stride, Size dilation,
                       Size lo, i64 groups, bool last, std::array<bool, 3> wanted, int threads) {
  const auto& [x_at, x_shape, x_last] = x_lying;
  const auto& [y_at, y_shape, y_last] = y_lying;
  const auto& [w_at, w_shape, w_last] = w_lying;
  const Size in = axes_of(x_shape), out = axes_of(y_shape), kernel = axes_of(w_shape);
  const auto size = [](const Shape& shape, std::size_t d) { return static_cast<i64>(shape[d]); };
  const i64 batch = size(x_shape, 0), inputs = size(w_shape, 0), outputs = size(y_shape, 1);
  const Layer layer = layer_of(kernel, stride, dilation, groups, inputs, size(w_shape, 1), true);
  require(batch == size(y_shape, 0), "input and gradient have the same batch");
  require(size(x_shape, 1) == inputs, "the input has the weights' channels");
  require(outputs == layer.groups * layer.rows, "the gradient has the layer's channels");
  const auto *x = reinterpret_cast<const T*>(x_at), *grad_y = reinterpret_cast<const T*>(y_at);
  const auto* w = reinterpret_cast<const T*>(w_at);
  // Each is made just before it is computed, in memory that the one before may have given back.
  std::optional<New<T>> grad_x, grad_w, grad_bias;
  if (wanted[2]) {
    grad_bias = empty<T>({y_shape[1]}, false);
    nb::gil_scoped_release release;
    bias_gradient(threads, batch, outputs, out[0] * out[1] * out[2], y_last, grad_y, grad_bias->data());
  }
  if (wanted[0]) {
    grad_x = empty<T>(x_shape, last);
    nb::gil_scoped_release release;
    Buffer<T> w_first;
    if (w_last) w = turned(active_table<T>(), threads, inputs, layer.taps(), layer.rows, w, w_first);
    Layer adjoint = layer;
    std::swap(adjoint.rows, adjoint.cols);
    adjoint.transposed = false;
    const Call call{batch, out, in, lo, y_last, last};
    PackedLayer<T>(adjoint, w, nullptr, Method::kFastest, y_last, OnlyCall{{batch, out, in, lo}, threads})
        .run(call, threads, grad_y, grad_x->data());
  }
  if (wanted[1]) {
    grad_w = empty<T>(w_shape, false);
    nb::gil_scoped_release release;
    weight_gradient(layer, {batch, in, out, lo, x_last, y_last}, active_table<T>(), Method::kFastest, team_of(threads),
                    x, grad_y, grad_w->data());
  }
  if (threads > 1) end_call();
  return {std::move(grad_x), std::move(grad_w), std::move(grad_bias)};
}

template <typename T>
void turn_array(In<T> src, Out<T> dst, int threads) {
  require(src.ndim() == 3 && dst.ndim() == 3 && dim(src, 0) == dim(dst, 0) && dim(src, 1) == dim(dst, 2) &&
              dim(src, 2) == dim(dst, 1),
          "an array (batch, rows, columns) is turned into one (batch, columns, rows)");
  nb::gil_scoped_release release;
  turn(active_table<T>(), threads, dim(src, 0), dim(src, 1), dim(src, 2), src.data(), dst.data());
}

template <typename T>
void bind(nb::module_& m, const char* plan, const char* all_gradients, const char* make_empty) {
  nb::class_<Plan<T>>(m, plan)
      .def(nb::init<In<T>, std::optional<In<T>>, Size, Size, i64, bool, Method, bool, Sizes>(), "w"_a, "bias"_a.none(),
           "stride"_a, "dilation"_a, "groups"_a, "transposed"_a, "method"_a, "last"_a, "once"_a.none())
      .def("run", &Plan<T>::run, "x"_a, "y"_a.noconvert(), "lo"_a, "threads"_a, "reads_last"_a = false,
           "writes_last"_a = false)
      .def("run_at", &Plan<T>::run_at, "x"_a, "channels"_a, "input"_a, "shape"_a, "lo"_a, "threads"_a, "reads_last"_a,
           "writes_last"_a)
      .def("channels_last", &Plan<T>::channels_last, "batch"_a, "input"_a, "output"_a, "lo"_a, "threads"_a)
      .def("why", &Plan<T>::why, "batch"_a, "input"_a, "output"_a, "lo"_a, "threads"_a)
      .def_prop_ro("packed_bytes", &Plan<T>::packed_bytes)
      .def_prop_ro("isa", &Plan<T>::isa);
  m.def(all_gradients, &gradients<T>, "x"_a, "grad_y"_a, "w"_a, "stride"_a, "dilation"_a, "lo"_a, "groups"_a, "last"_a,
        "wanted"_a, "threads"_a);
  m.def("weight_gradient", &gradient_of_weights<T>, "x"_a, "grad_y"_a, "grad_w"_a.noconvert(), "stride"_a, "dilation"_a,
        "lo"_a, "groups"_a, "method"_a, "threads"_a, "x_last"_a = false, "grad_last"_a = false);
  m.def("bias_gradient", &gradient_of_bias<T>, "grad_y"_a, "grad_bias"_a.noconvert(), "threads"_a);
  m.def("turn", &turn_array<T>, "src"_a.noconvert(), "dst"_a.noconvert(), "threads"_a);
  m.def(make_empty, [](const Shape& shape) { return empty<T>(shape, false); }, "shape"_a);
}

}  // namespace
}  // namespace upscore

NB_MODULE(_engine, m) {
  using namespace upscore;
  nb::set_leak_warnings(false);  // plans that a cache still holds when the interpreter ends are no fault
  m.doc() = "The engine: plan, pack, execute. Use upscore's functions; these check shapes and no more.";
  nb::enum_<Method>(m, "Method")
      .value("DIRECT", Method::kDirect)
      .value("FASTEST", Method::kFastest)
      .value("FILTERED", Method::kFiltered)
      .value("FOLDED", Method::kFolded)
      .value("BF16", Method::kBf16)
      .value("POSITIONS", Method::kPositions);
  bind<float>(m, "PlanF32", "gradients_f32", "empty_f32");
  bind<double>(m, "PlanF64", "gradients_f64", "empty_f64");
  m.def("available_isas", &available_isas);
  m.def("active_isa", &active_isa);
  m.def("force_isa", &force_isa, "name"_a);
  m.def("thread_count", &thread_count);
  m.def("set_thread_count", &set_thread_count, "count"_a);
}
