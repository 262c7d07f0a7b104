#include "cpu.h"

#include <atomic>
#include <stdexcept>

#if defined(UPSCORE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace upscore {
namespace {

#if defined(UPSCORE_AMX)
// Whether there is a matrix unit for bfloat16, and the system keeps its registers for this process (Linux 5.16).
bool can_use_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned bf16 = 1u << 22, tiles = 1u << 24;
  if ((d & bf16) == 0 || (d & tiles) == 0) return false;
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
}
#endif

std::vector<const IsaKernels*> usable() {
  std::vector<const IsaKernels*> found{&isa_baseline::kernels()};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&isa_avx2::kernels());
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(&isa_avx512::kernels());
#if defined(UPSCORE_AMX)
  if (found.back() == &isa_avx512::kernels() && can_use_amx()) found.push_back(&isa_avx512::amx_kernels());
#endif
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
