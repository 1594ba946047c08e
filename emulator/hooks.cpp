// The functions that -fsanitize=thread calls before every load and store; nothing of the thread sanitizer is linked.
#include <fmt/format.h>

#include "emulator/runtime.hpp"

using namespace fulmen::emulator;

namespace {
inline bool unobserved(uintptr_t address) { return current == nullptr || address - current_stack < kStackBytes; }
inline void plain(const void* p, uint32_t size, bool write, uintptr_t pc) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (unobserved(address)) return;
  if ((address & (size - 1)) != 0) {
    Unobserved hidden;
    check_aligned(address, size, pc, write ? "write" : "read");
  }
  observe(address, size, write, pc);
}
inline void range(const void* p, size_t size, bool write, uintptr_t pc) {
  auto address = reinterpret_cast<uintptr_t>(p);
  if (size == 0 || unobserved(address)) return;
  observe(address, static_cast<uint32_t>(size), write, pc);
}
inline void strong(const void* p, uint32_t size, bool write, uintptr_t pc) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (unobserved(address)) return;
  Unobserved hidden;
  Thread& t = *running;
  if (!write) give_turn(t);
  check_aligned(address, size, pc, write ? "volatile write" : "volatile read");
  if (in_arena(*t.block, address)) {
    observe_shared(t, *t.block, static_cast<uint32_t>(address - reinterpret_cast<uintptr_t>(t.block->arena)), size, write, pc, true);
  } else {
    observe_global(t, address, size, write, pc, true);
  }
}
}  // namespace

extern "C" {
#define HOOKS(n)                                                                                                     \
  void __tsan_read##n(void* p) { plain(p, n, false, CALLER); }                                                      \
  void __tsan_write##n(void* p) { plain(p, n, true, CALLER); }                                                      \
  void __tsan_volatile_read##n(void* p) { strong(p, n, false, CALLER); }                                            \
  void __tsan_volatile_write##n(void* p) { strong(p, n, true, CALLER); }                                            \
  void __tsan_unaligned_read##n(void* p) { range(p, n, false, CALLER); }                                            \
  void __tsan_unaligned_write##n(void* p) { range(p, n, true, CALLER); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
#undef HOOKS
void __tsan_read_range(void* p, size_t size) { range(p, size, false, CALLER); }
void __tsan_write_range(void* p, size_t size) { range(p, size, true, CALLER); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// And those of -fsanitize=bounds: the index of an array that is a local or a member.
[[noreturn]] void __ubsan_handle_out_of_bounds_abort(void*, void* index) {
  if (running == nullptr) __builtin_trap();
  fault(FaultKind::out_of_bounds, fmt::format("index {} of a local array", static_cast<int>(reinterpret_cast<intptr_t>(index))), CALLER);
}

// Host code of a test's unit may use std::atomic; kernels may not.
static void only_host(uintptr_t pc) {
  if (current == nullptr) return;
  Unobserved hidden;
  fault(FaultKind::limit, "a host atomic in a kernel: use the device's atomics", pc);
}
#define ATOMICS(bits, T)                                                                                             \
  T __tsan_atomic##bits##_load(const volatile T* p, int) {                                                           \
    only_host(CALLER);                                                                                              \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                                     \
  }                                                                                                                  \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) {                                                        \
    only_host(CALLER);                                                                                              \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                                        \
  }                                                                                                                  \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }  \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }  \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }  \
  T __tsan_atomic##bits##_fetch_and(volatile T* p, T v, int) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }  \
  T __tsan_atomic##bits##_fetch_or(volatile T* p, T v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }    \
  T __tsan_atomic##bits##_fetch_xor(volatile T* p, T v, int) { return __atomic_fetch_xor(p, v, __ATOMIC_SEQ_CST); }  \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T v, int, int) {                     \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                   \
  }                                                                                                                  \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* expected, T v, int, int) {                       \
    return __atomic_compare_exchange_n(p, expected, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                    \
  }
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
#undef ATOMICS
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}
}