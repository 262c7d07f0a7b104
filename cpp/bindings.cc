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
#include <atomic>
#include <memory>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "bias_gradient.h"
#include "buffer.h"
#include "channelwise.h"
#include "channelwise_adjoint.h"
#include "choice.h"
#include "cpu.h"
#include "execute.h"
#include "fold.h"
#include "minimal.h"
#include "minimal_adjoint.h"
#include "narrow_adjoint.h"
#include "pack.h"
#include "phase_lanes.h"
#include "scatter.h"
#include "scratch.h"
#include "threads.h"
#include "turn.h"
#include "unpacked_adjoint.h"
#include "weight_gradient.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace upscore {
namespace {

constexpr i64 kSlack = 16;  // packed weights and biases are read in whole vectors

template <typename T>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <typename T>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
template <typename T>
using New = nb::ndarray<nb::numpy, T, nb::device::cpu>;

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

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
New<T> empty(const std::vector<std::size_t>& shape, bool last) {
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

// Of the one call that weights are packed for, if there is to be one: batch, input, output, crop, threads.
using Sizes = std::optional<std::tuple<i64, Size, Size, Size, int>>;

// A layer with its weights packed for the instruction set that was active when they were packed.
template <typename T>
class Plan {
 public:
  Plan(In<T> w, std::optional<In<T>> bias, Size stride, Size dilation, i64 groups, bool transposed, Method method,
       bool last, const Sizes& once)
      : layer_(layer_of(axes_of(w), stride, dilation, groups, dim(w, 0), dim(w, 1), transposed)),
        kernels_(&active_table<T>()),
        isa_(active_isa()),
        method_(method),
        last_(last) {
    if (bias) {
      require(bias->ndim() == 1 && dim(*bias, 0) == layer_.groups * layer_.rows, "one bias per output channel");
      bias_.assign(bias->data(), bias->data() + bias->size());
      bias_.resize(bias_.size() + kSlack);
    }
    if (once) plain_ = w;
    nb::gil_scoped_release release;
    if (once) once_ = team_of(std::get<4>(*once));
    const std::vector<T> diagonal = diagonal_of(layer_, w.data());
    const T* const weights = diagonal.empty() ? w.data() : diagonal.data();
    diagonal_ = !diagonal.empty();
    if (diagonal_) {
      layer_.groups = layer_.rows;
      layer_.rows = layer_.cols = 1;
    }
    way_ = way_of(weights, once);
    if (way_ && !way_->alone() && once && !way_->takes(only_call(*once))) way_.reset();
    if (has_no_other()) return;
    target_ = target_of(*kernels_);
    packings_ = plan_packings(layer_, target_, method, last, once.has_value());
    if (once && pack_once(weights, *once)) return;
    weights_.allocate(static_cast<std::size_t>(packings_.direct.per_column * layer_.cols * layer_.groups + kSlack));
    pack_weights(layer_, packings_.direct, *kernels_, thread_count(), weights, weights_.data());
  }

  void run(In<T> x, Out<T> y, Size lo, int threads, bool reads_last, bool writes_last) {
    const Call call = call_of(x, y, lo, reads_last, writes_last);
    run_call(call, dim(y, writes_last ? y.ndim() - 1 : 1), x.data(), y.data(), threads);
  }

  // Of as many images as the output has, of so many channels and numbers along each axis, that lie at an address. The
  // output is (N, C, *axes), whose numbers lie channels last where the input's do.
  New<T> run_at(std::uintptr_t x, i64 channels, Size in, const std::vector<std::size_t>& shape, Size lo, int threads,
                bool last) {
    require_inputs(channels);
    New<T> y = empty<T>(shape, last);
    run_call({dim(y, 0), in, axes_of(y), lo, last, last}, dim(y, 1), reinterpret_cast<const T*>(x), y.data(), threads);
    return y;
  }

  // Whether this call can read, and whether it can write, channels last.
  std::pair<bool, bool> channels_last(i64 batch, Size in, Size out, Size lo, int threads) const {
    if (batch == 0) return {false, false};
    return can_be_last({batch, in, out, lo}, threads);
  }

  std::string why(i64 batch, Size in, Size out, Size lo, int threads) {
    const std::string isa = isa_ + (diagonal_ ? ": all weights between different channels are zero; " : ": ");
    const Call call{batch, in, out, lo, last_, last_};
    const std::string usual = explain(call, {threads});
    const bool more = can_be_awake(threads) && explain(call, {threads, true}) != usual;
    return isa + usual + (more ? ", or " + say_threads(threads) + " right after another call" : "");
  }

  std::size_t packed_bytes() const {
    std::size_t numbers = (way_ ? way_->size() : 0) + weights_.size();
    for (const std::shared_ptr<Buffer<T>>* made :
         {&lanes_weights_, &minimal_weights_, &fold_weights_, &bf16_weights_, &positions_weights_})
      if (const std::shared_ptr<Buffer<T>> one = std::atomic_load(made)) numbers += one->size();
    return numbers * sizeof(T);
  }
  std::string isa() const { return isa_; }

 private:
  void run_call(Call call, i64 channels, const T* x, T* y, int threads) {
    require(channels == layer_.groups * layer_.rows, "the output has the layer's channels");
    if (call.batch * call.out[0] * call.out[1] * call.out[2] == 0) return;
    call.writes_last = call.writes_last && !writes_one();
    nb::gil_scoped_release release;
    const Team team = once_ ? *once_ : team_of(threads);
    compute(call, team, x, y);
    if (threads > 1) end_call();
  }

  void compute(const Call& call, const Team& team, const T* x, T* y) {
    const T* bias = bias_.empty() ? nullptr : bias_.data();
    if (has_way(call)) return way_->execute(call, team, bias, x, y);
    const Schedules plan = schedules_of(call, team);
    require(lies_as_it_can(call, plan), "channels last where channels_last says so");
    require(packed_for(call, plan), "a call such as the weights were packed for");
    if (plan.fold)
      execute_fold(layer_, call, *packings_.fold, *plan.fold, *kernels_, fold_weights(team.threads)->data(), bias, x,
                   y);
    else if (plan.bf16)
      execute(layer_, call, *packings_.bf16, *plan.bf16, *kernels_,
              parts_of_weights(bf16_weights_, *packings_.bf16, team.threads)->data(), bias, x, y);
    else if (plan.positions)
      execute(layer_, call, *packings_.positions, *plan.positions, *kernels_,
              parts_of_weights(positions_weights_, *packings_.positions, team.threads)->data(), bias, x, y);
    else if (plan.minimal)
      (packings_.minimal->last ? execute_minimal_last<T>
                               : execute_minimal<T>)(layer_, call, *packings_.minimal, *plan.minimal, *kernels_,
                                                     minimal_weights(team.threads)->data(), bias, x, y);
    else if (plan.direct->channel_lanes && packings_.lanes)
      execute(layer_, call, *packings_.lanes, *plan.direct, *kernels_, lanes_weights(team.threads)->data(), bias, x, y);
    else
      execute(layer_, call, packings_.direct, *plan.direct, *kernels_, weights_.data(), bias, x, y);
  }

  // Whether the threads are awake or not.
  std::pair<bool, bool> can_be_last(Call call, int threads) const {
    if (has_no_other()) {
      call.reads_last = call.writes_last = true;
      const bool takes = way_->takes(call);
      return {takes, takes};
    }
    for (const auto& [reads, writes] : {std::pair{true, true}, {false, true}, {true, false}}) {
      call.reads_last = reads;
      call.writes_last = writes && !writes_one();
      if (can_do(call, schedules_of(call, {threads, false})) && can_do(call, schedules_of(call, {threads, true})))
        return {reads, writes};
    }
    return {false, false};
  }
  // One channel, which lies the same way first and last.
  bool writes_one() const { return !has_no_other() && layer_.groups * layer_.rows == 1; }

  // Whether weights are packed for the layer's own way alone.
  bool has_no_other() const { return way_ && (way_->alone() || once_); }
  // Whether that takes this call.
  bool has_way(const Call& call) const {
    if (!way_) return false;
    const bool takes = way_->takes(call);
    require(takes || !has_no_other(), "a call such as the weights were packed for");
    return takes;
  }

  std::string explain(const Call& call, const Team& team) const {
    if (has_way(call)) return way_->why(call, team);
    return schedules_of(call, team).why();
  }

  // Of the layers that have one, with the weights packed for it.
  std::unique_ptr<Way<T>> way_of(const T* w, const Sizes& once) const {
    std::unique_ptr<Way<T>> way = scatter(layer_, w);
    const bool fastest = method_ == Method::kFastest;
    if (!way) way = channelwise(layer_, *kernels_, w, last_, fastest);
    if (!way) way = channelwise_adjoint(layer_, *kernels_, w, last_ && fastest);
    if (!way && (fastest || method_ == Method::kDirect)) way = phase_lanes(layer_, *kernels_, w, last_, fastest);
    if (!way && once && method_ != Method::kBf16 && method_ != Method::kPositions) {
      const auto& [batch, in, out, lo, threads] = *once;
      if (!diagonal_) way = unpacked_adjoint(layer_, {batch, in, out, lo}, *kernels_, w);
      if (!way) way = narrow_adjoint(layer_, {batch, in, out, lo}, *kernels_, w, threads);
    }
    return way;
  }

  Call call_of(const In<T>& x, const Out<T>& y, const Size& lo, bool reads_last, bool writes_last) const {
    Call call{dim(x, 0), axes_of(x, reads_last), axes_of(y, writes_last), lo, reads_last, writes_last};
    require(dim(x, 0) == dim(y, 0), "input and output have the same batch");
    require_inputs(dim(x, reads_last ? x.ndim() - 1 : 1));
    return call;
  }
  void require_inputs(i64 channels) const {
    require(channels == layer_.groups * layer_.cols, "the input has the layer's channels");
  }

  Schedules schedules_of(const Call& call, const Team& team) const {
    return plan_call(layer_, target_, packings_, call, team);
  }
  bool lies_as_it_can(const Call& call, const Schedules& plan) const {
    return upscore::lies_as_it_can(layer_, target_, packings_, call, plan);
  }
  bool packed_for(const Call& call, const Schedules& plan) const {
    return (plan.bf16 || plan.positions || weights_.size() > 0) && upscore::packed_for(packings_, call, plan);
  }
  bool can_do(const Call& call, const Schedules& plan) const {
    return lies_as_it_can(call, plan) && packed_for(call, plan);
  }

  Call only_call(const std::tuple<i64, Size, Size, Size, int>& once) const {
    const auto& [batch, in, out, lo, threads] = once;
    return {batch, in, out, lo, last_, last_ && !writes_one()};
  }

  // For the only call, if that is done by minimal filtering of an adjoint, or in bfloat16 parts.
  bool pack_once(const T* w, const std::tuple<i64, Size, Size, Size, int>& once) {
    const auto& [batch, in, out, lo, threads] = once;
    const Call call = only_call(once);
    const Schedules plan = schedules_of(call, *once_);
    const std::shared_ptr<const Schedule>& schedule = plan.bf16 ? plan.bf16 : plan.positions;
    const std::optional<Packing>& packing = plan.bf16 ? packings_.bf16 : packings_.positions;
    constexpr double kSooner = 0.9;  // than it says, against minimal filtering
    double limit = std::numeric_limits<double>::infinity();
    if (schedule) {
      limit =
          static_cast<double>(layer_.groups) * (kSooner * schedule->cycles + bf16_packing(layer_, packings_, *packing));
    }
    way_ = minimal_adjoint(layer_, {batch, in, out, lo, last_, last_}, *kernels_, w, threads, method_, limit);
    if (way_) return true;
    if (schedule) {
      (plan.bf16 ? bf16_weights_ : positions_weights_) = parts_of(w, *packing, thread_count());
      return true;
    }
    packings_.positions.reset();
    packings_.bf16.reset();
    if (!packings_.direct.vectors) pack_for(once);
    return false;
  }

  // Weights in vectors, if that call is faster then; or one of an image alone, whose phases in one product are summed
  // in other blocks: neither batch nor threads change the bits of outputs.
  void pack_for(const std::tuple<i64, Size, Size, Size, int>& once) {
    Call call = only_call(once);
    if (packings_.direct.fused) call.batch = 1;
    const std::shared_ptr<const Schedule> any = schedules_of(call, {}).direct;
    Packing standard = std::exchange(packings_.direct, plan_packing(layer_, target_, Order::kVectors));
    if (any) {
      const std::shared_ptr<const Schedule> lanes = schedules_of(call, {}).direct;
      if (lanes->channel_lanes && lanes->cycles <= any->cycles) return;
    }
    packings_.direct = std::move(standard);
  }

  // Made when they are first needed, without a lock: of two calls that do it at once one wins.
  template <typename Pack>
  std::shared_ptr<Buffer<T>> made(std::shared_ptr<Buffer<T>>& kept, i64 size, Pack&& pack) {
    std::shared_ptr<Buffer<T>> ready = std::atomic_load(&kept);
    if (ready) return ready;
    Buffer<T> plain;
    plain.allocate(static_cast<std::size_t>(layer_.groups * layer_.cols * layer_.rows * layer_.taps()));
    unpack_weights(layer_, packings_.direct, weights_.data(), plain.data());
    auto fresh = std::make_shared<Buffer<T>>();
    fresh->allocate(static_cast<std::size_t>(size));
    pack(plain.data(), fresh->data());
    return std::atomic_compare_exchange_strong(&kept, &ready, fresh) ? fresh : ready;
  }
  std::shared_ptr<Buffer<T>> lanes_weights(int threads) {
    const Packing& p = *packings_.lanes;
    return made(lanes_weights_, p.per_column * layer_.cols * layer_.groups + kSlack,
                [&](const T* w, T* to) { pack_weights(layer_, p, *kernels_, threads, w, to); });
  }
  std::shared_ptr<Buffer<T>> minimal_weights(int threads) {
    const MinimalPacking& p = *packings_.minimal;
    return made(minimal_weights_, layer_.groups * layer_.rows * layer_.cols * p.taps * p.before.back(),
                [&](const T* w, T* to) { pack_minimal(layer_, p, target_, threads, w, to); });
  }
  // In bfloat16 parts, for either way by the matrix unit.
  std::shared_ptr<Buffer<T>> parts_of(const T* w, const Packing& packing, int threads) const {
    auto parts = std::make_shared<Buffer<T>>();
    parts->allocate(static_cast<std::size_t>(bf16_size(packing)));
    make_parts(packing, w, parts->data(), threads);
    return parts;
  }
  std::shared_ptr<Buffer<T>> parts_of_weights(std::shared_ptr<Buffer<T>>& kept, const Packing& packing, int threads) {
    if (once_) return kept;
    return made(kept, bf16_size(packing), [&](const T* w, T* to) { make_parts(packing, w, to, threads); });
  }
  i64 bf16_size(const Packing& packing) const {
    return ceil_div(bf16_weights(layer_, packing), i64{sizeof(T) / sizeof(std::uint16_t)});
  }
  void make_parts(const Packing& packing, const T* w, T* to, int threads) const {
    pack_bf16(layer_, packing, *kernels_, threads, w, reinterpret_cast<std::uint16_t*>(to));
  }
  std::shared_ptr<Buffer<T>> fold_weights(int threads) {
    const FoldPacking& p = *packings_.fold;
    return made(fold_weights_, layer_.groups * p.units * p.vectors * layer_.cols * target_.lanes,
                [&](const T* w, T* to) { pack_fold(layer_, p, target_, threads, w, to); });
  }

  Layer layer_;
  const Kernels<T>* kernels_;
  std::string isa_;
  Method method_;
  bool last_;  // packed to be run channels last
  Target target_{};
  bool diagonal_ = false;        // found in dense weights
  std::unique_ptr<Way<T>> way_;  // then nothing of what follows is made
  Packings packings_;
  Buffer<T> weights_;
  std::shared_ptr<Buffer<T>> lanes_weights_;
  std::shared_ptr<Buffer<T>> minimal_weights_;
  std::shared_ptr<Buffer<T>> fold_weights_;
  std::shared_ptr<Buffer<T>> bf16_weights_, positions_weights_;
  std::vector<T> bias_;
  std::optional<Team> once_;    // of the only call that there will be
  std::optional<In<T>> plain_;  // then a way may read the weights as they lie
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
  bias_gradient(threads, dim(grad_y, 0), dim(grad_y, 1), plane, grad_y.data(), grad_bias.data());
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
void bind(nb::module_& m, const char* plan, const char* make_empty) {
  nb::class_<Plan<T>>(m, plan)
      .def(nb::init<In<T>, std::optional<In<T>>, Size, Size, i64, bool, Method, bool, Sizes>(), "w"_a, "bias"_a.none(),
           "stride"_a, "dilation"_a, "groups"_a, "transposed"_a, "method"_a, "last"_a, "once"_a.none())
      .def("run", &Plan<T>::run, "x"_a, "y"_a.noconvert(), "lo"_a, "threads"_a, "reads_last"_a = false,
           "writes_last"_a = false)
      .def("run_at", &Plan<T>::run_at, "x"_a, "channels"_a, "input"_a, "shape"_a, "lo"_a, "threads"_a, "last"_a)
      .def("channels_last", &Plan<T>::channels_last, "batch"_a, "input"_a, "output"_a, "lo"_a, "threads"_a)
      .def("why", &Plan<T>::why, "batch"_a, "input"_a, "output"_a, "lo"_a, "threads"_a)
      .def_prop_ro("packed_bytes", &Plan<T>::packed_bytes)
      .def_prop_ro("isa", &Plan<T>::isa);
  m.def("weight_gradient", &gradient_of_weights<T>, "x"_a, "grad_y"_a, "grad_w"_a.noconvert(), "stride"_a, "dilation"_a,
        "lo"_a, "groups"_a, "method"_a, "threads"_a, "x_last"_a = false, "grad_last"_a = false);
  m.def("bias_gradient", &gradient_of_bias<T>, "grad_y"_a, "grad_bias"_a.noconvert(), "threads"_a);
  m.def("turn", &turn_array<T>, "src"_a.noconvert(), "dst"_a.noconvert(), "threads"_a);
  m.def(make_empty, [](const std::vector<std::size_t>& shape) { return empty<T>(shape, false); }, "shape"_a);
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
  bind<float>(m, "PlanF32", "empty_f32");
  bind<double>(m, "PlanF64", "empty_f64");
  m.def("available_isas", &available_isas);
  m.def("active_isa", &active_isa);
  m.def("force_isa", &force_isa, "name"_a);
  m.def("thread_count", &thread_count);
  m.def("set_thread_count", &set_thread_count, "count"_a);
}
