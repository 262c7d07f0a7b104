#include "packed_layer.h"

#include <atomic>
#include <limits>

#include "channelwise.h"
#include "channelwise_adjoint.h"
#include "cpu.h"
#include "execute.h"
#include "fold.h"
#include "minimal.h"
#include "minimal_adjoint.h"
#include "narrow_adjoint.h"
#include "pack.h"
#include "parts.h"
#include "phase_lanes.h"
#include "require.h"
#include "scatter.h"
#include "turn.h"
#include "unfolded_adjoint.h"
#include "unpacked_adjoint.h"

namespace upscore {
namespace {

constexpr i64 kSlack = 16;  // packed weights and biases are read in whole vectors
constexpr char kPackedFor[] = "a call such as the weights were packed for";

i64 plane(const Size& size) { return size[0] * size[1] * size[2]; }

}  // namespace

template <typename T>
PackedLayer<T>::PackedLayer(const Layer& layer, const T* w, const T* bias, Method method, bool last,
                            const std::optional<OnlyCall>& once)
    : layer_(layer), kernels_(&active_table<T>()), isa_(active_isa()), method_(method), last_(last) {
  if (bias) {
    bias_.assign(bias, bias + channels_out());
    bias_.resize(bias_.size() + kSlack);
  }
  if (once) once_ = team_of(once->threads);
  const std::vector<T> diagonal = diagonal_of(layer_, w);
  diagonal_ = !diagonal.empty();
  if (diagonal_) {
    w = diagonal.data();
    layer_.groups = layer_.rows;
    layer_.rows = layer_.cols = 1;
  }
  way_ = way_of(w, once);
  if (way_ && !way_->alone() && once && !way_->takes(only_call(*once))) way_.reset();
  if (has_no_other()) return;
  target_ = target_of(*kernels_);
  packings_ = plan_packings(layer_, target_, method, last, once.has_value());
  if (once && pack_once(w, *once)) return;
  weights_.allocate(static_cast<std::size_t>(packings_.direct.per_column * layer_.cols * layer_.groups + kSlack));
  pack_weights(layer_, packings_.direct, *kernels_, thread_count(), w, weights_.data());
}

template <typename T>
void PackedLayer<T>::run(const Call& call, int threads, const T* x, T* y) {
  if (call.batch * plane(call.out) == 0) return;
  const Call done = as_computed(call, threads);
  Buffer<T> inputs, outputs;
  if (done.reads_last != call.reads_last) {
    const i64 rows = call.reads_last ? plane(call.in) : channels_in(),
              columns = call.reads_last ? channels_in() : plane(call.in);
    x = turned(*kernels_, threads, call.batch, rows, columns, x, inputs);
  }
  const i64 rows = done.writes_last ? plane(call.out) : channels_out(),
            columns = done.writes_last ? channels_out() : plane(call.out);
  const bool turns = done.writes_last != call.writes_last && rows > 1 && columns > 1;
  if (turns) outputs.allocate(static_cast<std::size_t>(call.batch * rows * columns));
  compute(done, once_ ? *once_ : team_of(threads), x, turns ? outputs.data() : y);
  if (turns) turn(*kernels_, threads, call.batch, rows, columns, outputs.data(), y);
  if (threads > 1) end_call();
}

template <typename T>
Call PackedLayer<T>::as_computed(const Call& call, int threads) const {
  if (!last_ && !call.reads_last && !call.writes_last) return call;
  // One channel lies the same way first and last.
  const bool one = !has_no_other() && channels_out() == 1;
  std::optional<Call> best;
  i64 fewest = std::numeric_limits<i64>::max();  // numbers to turn
  for (const bool reads : {call.reads_last, !call.reads_last})
    for (const bool writes : {call.writes_last, !call.writes_last}) {
      const i64 numbers = (reads != call.reads_last ? channels_in() * plane(call.in) : 0) +
                          (writes != call.writes_last ? channels_out() * plane(call.out) : 0);
      if (numbers >= fewest) continue;
      const Call other{call.batch, call.in, call.out, call.lo, reads, writes && !one};
      if (!(once_ ? can_do(other, *once_) : can_do(other, {threads, false}) && can_do(other, {threads, true})))
        continue;
      best = other;
      fewest = numbers;
    }
  require(best.has_value(), kPackedFor);
  return *best;
}

template <typename T>
bool PackedLayer<T>::can_do(const Call& call, const Team& team) const {
  if (way_ && way_->takes(call)) return true;
  if (has_no_other()) return false;
  const Schedules plan = schedules_of(call, team);
  return lies_as_it_can(call, plan) && packed_for(call, plan);
}

template <typename T>
bool PackedLayer<T>::has_way(const Call& call) const {
  if (!way_) return false;
  const bool takes = way_->takes(call);
  require(takes || !has_no_other(), kPackedFor);
  return takes;
}

template <typename T>
void PackedLayer<T>::compute(const Call& call, const Team& team, const T* x, T* y) {
  const T* bias = bias_.empty() ? nullptr : bias_.data();
  if (has_way(call)) return way_->execute(call, team, bias, x, y);
  const Schedules plan = schedules_of(call, team);
  require(lies_as_it_can(call, plan) && packed_for(call, plan), kPackedFor);
  if (plan.fold)
    execute_fold(layer_, call, *packings_.fold, *plan.fold, *kernels_,
                 (plan.fold->bf16 ? folded_parts(team.threads) : fold_weights(team.threads))->data(), bias, x, y);
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

template <typename T>
std::string PackedLayer<T>::why(const Call& call, int threads) const {
  const std::string isa = isa_ + (diagonal_ ? ": all weights between different channels are zero; " : ": ");
  const Call lying = as_computed({call.batch, call.in, call.out, call.lo, last_, last_}, threads);
  const std::string usual = explain(lying, {threads});
  const bool more = can_be_awake(threads) && explain(lying, {threads, true}) != usual;
  return isa + usual + (more ? ", or " + say_threads(threads) + " right after another call" : "");
}

template <typename T>
std::string PackedLayer<T>::explain(const Call& call, const Team& team) const {
  if (has_way(call)) return way_->why(call, team);
  return schedules_of(call, team).why();
}

template <typename T>
std::size_t PackedLayer<T>::packed_bytes() const {
  std::size_t numbers = (way_ ? way_->size() : 0) + weights_.size();
  for (const std::shared_ptr<Buffer<T>>* made :
       {&lanes_weights_, &minimal_weights_, &fold_weights_, &folded_parts_, &bf16_weights_, &positions_weights_})
    if (const std::shared_ptr<Buffer<T>> one = std::atomic_load(made)) numbers += one->size();
  return numbers * sizeof(T);
}

template <typename T>
std::unique_ptr<Way<T>> PackedLayer<T>::way_of(const T* w, const std::optional<OnlyCall>& once) const {
  std::unique_ptr<Way<T>> way = scatter(layer_, w);
  const bool fastest = method_ == Method::kFastest;
  if (!way) way = channelwise(layer_, *kernels_, w, last_, fastest);
  if (!way) way = channelwise_adjoint(layer_, *kernels_, w, last_ && fastest);
  if (!way && (fastest || method_ == Method::kDirect)) way = phase_lanes(layer_, *kernels_, w, last_, fastest);
  if (!way && once && method_ != Method::kBf16 && method_ != Method::kPositions) {
    if (!diagonal_) way = unpacked_adjoint(layer_, once->call, *kernels_, w);
    if (!way) way = unfolded_adjoint(layer_, once->call, *kernels_, w, once->threads, last_);
    if (!way) way = narrow_adjoint(layer_, once->call, *kernels_, w, once->threads);
  }
  return way;
}

template <typename T>
Call PackedLayer<T>::only_call(const OnlyCall& once) const {
  Call call = once.call;
  call.reads_last = last_;
  call.writes_last = last_ && (has_no_other() || channels_out() > 1);
  return call;
}

// For the only call, if that is done by minimal filtering of an adjoint, or in bfloat16 parts.
template <typename T>
bool PackedLayer<T>::pack_once(const T* w, const OnlyCall& once) {
  const Call call = only_call(once);
  const Schedules plan = schedules_of(call, *once_);
  const std::shared_ptr<const Schedule>& schedule = plan.bf16 ? plan.bf16 : plan.positions;
  const std::optional<Packing>& packing = plan.bf16 ? packings_.bf16 : packings_.positions;
  constexpr double kSooner = 0.7;  // than it says, against minimal filtering
  double limit = std::numeric_limits<double>::infinity();
  if (schedule) {
    limit =
        static_cast<double>(layer_.groups) * (kSooner * schedule->cycles + bf16_packing(layer_, packings_, *packing));
  }
  Call lying = once.call;
  lying.reads_last = lying.writes_last = last_;
  way_ = minimal_adjoint(layer_, lying, *kernels_, w, once.threads, method_, limit);
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
template <typename T>
void PackedLayer<T>::pack_for(const OnlyCall& once) {
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
template <typename T>
template <typename Pack>
std::shared_ptr<Buffer<T>> PackedLayer<T>::made(std::shared_ptr<Buffer<T>>& kept, i64 size, Pack&& pack) {
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

template <typename T>
std::shared_ptr<Buffer<T>> PackedLayer<T>::lanes_weights(int threads) {
  const Packing& p = *packings_.lanes;
  return made(lanes_weights_, p.per_column * layer_.cols * layer_.groups + kSlack,
              [&](const T* w, T* to) { pack_weights(layer_, p, *kernels_, threads, w, to); });
}

template <typename T>
std::shared_ptr<Buffer<T>> PackedLayer<T>::minimal_weights(int threads) {
  const MinimalPacking& p = *packings_.minimal;
  return made(minimal_weights_, layer_.groups * layer_.rows * layer_.cols * p.taps * p.before.back(),
              [&](const T* w, T* to) { pack_minimal(layer_, p, target_, threads, w, to); });
}

template <typename T>
std::shared_ptr<Buffer<T>> PackedLayer<T>::fold_weights(int threads) {
  const FoldPacking& p = *packings_.fold;
  return made(fold_weights_, layer_.groups * p.units * p.vectors * layer_.cols * target_.lanes,
              [&](const T* w, T* to) { pack_fold(layer_, p, target_, threads, w, to); });
}

template <typename T>
std::shared_ptr<Buffer<T>> PackedLayer<T>::folded_parts(int threads) {
  const FoldPacking& p = *packings_.fold;
  const i64 parts = layer_.groups * p.units * p.vectors * parts_of_vector(layer_.cols);
  return made(folded_parts_, ceil_div(parts, kPartsOfNumber), [&](const T* w, T* to) {
    pack_fold_parts(layer_, p, *kernels_, target_, threads, w, reinterpret_cast<std::uint16_t*>(to));
  });
}

// In bfloat16 parts, for either way by the matrix unit.
template <typename T>
std::shared_ptr<Buffer<T>> PackedLayer<T>::parts_of(const T* w, const Packing& packing, int threads) const {
  auto parts = std::make_shared<Buffer<T>>();
  parts->allocate(static_cast<std::size_t>(bf16_size(packing)));
  make_parts(packing, w, parts->data(), threads);
  return parts;
}

template <typename T>
std::shared_ptr<Buffer<T>> PackedLayer<T>::parts_of_weights(std::shared_ptr<Buffer<T>>& kept, const Packing& packing,
                                                            int threads) {
  if (once_) return kept;
  return made(kept, bf16_size(packing), [&](const T* w, T* to) { make_parts(packing, w, to, threads); });
}

template <typename T>
i64 PackedLayer<T>::bf16_size(const Packing& packing) const {
  return ceil_div(bf16_weights(layer_, packing), kPartsOfNumber);
}

template <typename T>
void PackedLayer<T>::make_parts(const Packing& packing, const T* w, T* to, int threads) const {
  pack_bf16(layer_, packing, *kernels_, threads, w, reinterpret_cast<std::uint16_t*>(to));
}

template class PackedLayer<float>;
template class PackedLayer<double>;

}  // namespace upscore
