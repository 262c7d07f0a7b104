#include "cpu.h"

#include <atomic>
#include <stdexcept>

namespace upscore {
namespace {

std::vector<const IsaKernels*> usable() {
  std::vector<const IsaKernels*> found{&isa_baseline::kernels()};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&isa_avx2::kernels());
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(&isa_avx512::kernels());
#endif
  return found;
}

const std::vector<const IsaKernels*>& all() {
  static const std::vector<const IsaKernels*> found = usable();
  return found;
}

std::atomic<const IsaKernels*> chosen{nullptr};

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const IsaKernels* k : all()) names.emplace_back(k->name);
  return names;
}

const IsaKernels& active_kernels() {
  const IsaKernels* k = chosen.load(std::memory_order_relaxed);
  return k ? *k : *all().back();
}

std::string active_isa() { return active_kernels().name; }

void force_isa(const std::string& name) {
  for (const IsaKernels* k : all())
    if (name == k->name) {
      chosen.store(k, std::memory_order_relaxed);
      return;
    }
  throw std::invalid_argument("no such instruction set here: " + name);
}

template <>
const Kernels<float>& active_table<float>() {
  return active_kernels().f32;
}
template <>
const Kernels<double>& active_table<double>() {
  return active_kernels().f64;
}

}  // namespace upscore
