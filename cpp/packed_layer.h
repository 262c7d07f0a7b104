// A layer, or the adjoint of one, with its weights packed for the instruction set that was active when they were.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "choice.h"
#include "kernels/kernels.h"
#include "scratch.h"
#include "threads.h"
#include "way.h"

namespace upscore {

// The only call that weights are packed for, however its arrays lie.
struct OnlyCall {
  Call call;
  int threads;
};

template <typename T>
class PackedLayer {
 public:
  // `bias`, of a number per output channel, may be null. With `last`, for calls channels last. For an only call `w` may
  // be read where it lies, then.
  PackedLayer(const Layer& layer, const T* w, const T* bias, Method method, bool last,
              const std::optional<OnlyCall>& once);

  i64 channels_in() const { return layer_.groups * layer_.cols; }
  i64 channels_out() const { return layer_.groups * layer_.rows; }

  // y = layer(x) + bias, which lie as the call says. Where there is no way to read or write them so, they are turned.
  void run(const Call& call, int threads, const T* x, T* y);
  // This call, as it is computed: with arrays that lie as there is a way for.
  Call as_computed(const Call& call, int threads) const;

  std::string why(const Call& call, int threads) const;
  std::size_t packed_bytes() const;
  const std::string& isa() const { return isa_; }

 private:
  void compute(const Call& call, const Team& team, const T* x, T* y);
  bool can_do(const Call& call, const Team& team) const;

  // Whether weights are packed for the layer's own way alone.
  bool has_no_other() const { return way_ && (way_->alone() || once_); }
  // Whether that takes this call.
  bool has_way(const Call& call) const;
  std::string explain(const Call& call, const Team& team) const;
  Schedules schedules_of(const Call& call, const Team& team) const {
    return plan_call(layer_, target_, packings_, call, team);
  }
  bool lies_as_it_can(const Call& call, const Schedules& plan) const {
    return upscore::lies_as_it_can(layer_, target_, packings_, call, plan);
  }
  bool packed_for(const Call& call, const Schedules& plan) const {
    return (plan.bf16 || plan.positions || weights_.size() > 0) && upscore::packed_for(packings_, call, plan);
  }

  // With the weights packed for it, of the layers that have one.
  std::unique_ptr<Way<T>> way_of(const T* w, const std::optional<OnlyCall>& once) const;
  Call only_call(const OnlyCall& once) const;
  bool pack_once(const T* w, const OnlyCall& once);
  void pack_for(const OnlyCall& once);

  // Made when they are first needed.
  template <typename Pack>
  std::shared_ptr<Buffer<T>> made(std::shared_ptr<Buffer<T>>& kept, i64 size, Pack&& pack);
  std::shared_ptr<Buffer<T>> lanes_weights(int threads);
  std::shared_ptr<Buffer<T>> minimal_weights(int threads);
  std::shared_ptr<Buffer<T>> fold_weights(int threads);
  std::shared_ptr<Buffer<T>> folded_parts(int threads);
  std::shared_ptr<Buffer<T>> parts_of(const T* w, const Packing& packing, int threads) const;
  std::shared_ptr<Buffer<T>> parts_of_weights(std::shared_ptr<Buffer<T>>& kept, const Packing& packing, int threads);
  void make_parts(const Packing& packing, const T* w, T* to, int threads) const;
  i64 bf16_size(const Packing& packing) const;
  static constexpr i64 kPartsOfNumber = sizeof(T) / sizeof(std::uint16_t);  // by memory

  Layer layer_;
  const Kernels<T>* kernels_;
  std::string isa_;
  Method method_;
  bool last_;
  Target target_{};
  bool diagonal_ = false;        // found in dense weights
  std::unique_ptr<Way<T>> way_;  // then nothing of what follows is made
  Packings packings_;
  Buffer<T> weights_;
  std::shared_ptr<Buffer<T>> lanes_weights_;
  std::shared_ptr<Buffer<T>> minimal_weights_;
  std::shared_ptr<Buffer<T>> fold_weights_, folded_parts_;
  std::shared_ptr<Buffer<T>> bf16_weights_, positions_weights_;
  std::vector<T> bias_;
  std::optional<Team> once_;  // of the only call that there will be
};

}  // namespace upscore
