// What the device's builtins and the instructions of kernels/ptx do: called by the names of emulator/device.hpp and by kernels/ptx.
// Declarations and thin templates only: the emulator itself is not instrumented, and an address of the caller's code is how it knows
// where it was called from.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <kernels/prelude/prelude.hpp>

#define FULMEN_INLINED inline __attribute__((always_inline))

namespace fulmen::emulator {

struct Index3 {
  unsigned x, y, z;
};
__attribute__((const)) Index3 thread_index();
__attribute__((const)) Index3 block_index();
__attribute__((const)) Index3 block_size();
__attribute__((const)) Index3 grid_size();

__attribute__((const)) void* dynamic_shared_base();
void* static_shared_base(const void* key, size_t bytes, size_t alignment);
uint32_t shared_address(const void* pointer);

// ---- warps
// An instruction that a whole warp executes together (.sync.aligned). Each lane brings its operands; the last to come runs the
// meaning once, on all of them.
using LaneMeaning = void (*)(void* const* lanes, void* context);
void warp_arrive(const char* name, void* operands, LaneMeaning meaning, void* context);

template <class Operands, class Meaning>
FULMEN_INLINED void warp_instruction(const char* name, Operands& operands, Meaning meaning) {
  warp_arrive(
      name, &operands,
      [](void* const* lanes, void* context) {
        (*static_cast<Meaning*>(context))(reinterpret_cast<Operands* const*>(lanes));
      },
      &meaning);
}
// Inside a meaning: a lane's access to shared memory, checked and counted as that lane's.
void lane_reads_shared(int lane, uint32_t address, int bytes, void* to);
void lane_writes_shared(int lane, uint32_t address, int bytes, const void* from);

enum class Shuffle { index, up, down, exclusive_or };
uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, uint32_t operand, int width);
enum class Vote { ballot, any, all, add, minimum, maximum, minimum_signed, maximum_signed, bit_and, bit_or, bit_xor, match };
uint32_t vote(Vote kind, uint32_t mask, uint32_t value);
uint32_t active_mask();
void warp_sync(uint32_t mask);

// ---- blocks
void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);
enum class BlockVote { none, count, any, all };
int block_sync(BlockVote kind, int predicate);

// ---- clusters
__attribute__((const)) uint32_t cluster_rank();
void cluster_sync();
void* cluster_peer(const void* shared, uint32_t rank);

// ---- memory
enum class Order { relaxed, acquire, release, acq_rel };
enum class Scope { block, gpu };
enum class Rmw { add, exchange, minimum, maximum, bit_and, bit_or, bit_xor, compare_exchange };
enum class Number { u32, s32, u64, s64, f32, f64, u16 };
uint64_t atomic(void* p, Rmw operation, Number type, uint64_t operand, uint64_t compare, Order order, Scope scope);
uint32_t atomic_add_u32(uint32_t* p, uint32_t v, Order order, Scope scope);
uint32_t atomic_load_u32(const uint32_t* p, Order order, Scope scope);
void atomic_store_u32(uint32_t* p, uint32_t v, Order order, Scope scope);
void fence(Scope scope);
void store_vector(void* p, const void* value, int bytes);  // one access, which a plain store of a struct may not be
void load_vector(const void* p, void* value, int bytes);
void prefetch(const void* p);

void copy_async(uint32_t shared, const void* global, int bytes, int source_bytes);
void copy_async_commit();
void copy_async_wait(int pending);

void griddep_wait();
void griddep_launch_dependents();

// ---- arithmetic
// c[m, n] += a[m, k] b[n, k]^T as the matrix unit adds; a and b hold k values of `type` in each row.
void matrix_multiply_add(DType type, int m, int n, int k, const uint16_t* a, const uint16_t* b, float* c);
enum class Approximation { ex2, lg2, rcp, rsqrt, tanh };
float approximate(Approximation function, float x);

long long clock_now();
void sleep_hint();
[[noreturn]] void trap();

template <class To, class From> FULMEN_INLINED To bit_cast_to(From from) {
  return __builtin_bit_cast(To, from);
}
template <class T> FULMEN_INLINED uint64_t widen(T value) {
  if constexpr (sizeof(T) == 8) {
    return __builtin_bit_cast(uint64_t, value);
  } else if constexpr (sizeof(T) == 4) {
    return __builtin_bit_cast(uint32_t, value);
  } else if constexpr (sizeof(T) == 2) {
    return __builtin_bit_cast(uint16_t, value);
  } else {
    return __builtin_bit_cast(uint8_t, value);
  }
}
template <class T> FULMEN_INLINED T narrow(uint64_t bits) {
  if constexpr (sizeof(T) == 8) {
    return __builtin_bit_cast(T, bits);
  } else if constexpr (sizeof(T) == 4) {
    return __builtin_bit_cast(T, static_cast<uint32_t>(bits));
  } else if constexpr (sizeof(T) == 2) {
    return __builtin_bit_cast(T, static_cast<uint16_t>(bits));
  } else {
    return __builtin_bit_cast(T, static_cast<uint8_t>(bits));
  }
}

}  // namespace fulmen::emulator
