// Faults that public projects have found in their attention, sampling and reduction kernels, rebuilt from the reports (not from their
// code) as the smallest kernel that has the fault. `fixed` takes it out. public_faults_test.cpp runs them in the emulator and says where each
// was reported, tests/gpu/public_faults.py on a GPU.
#pragma once

#include <kernels/math/convert.hpp>
#include <kernels/prelude/device.hpp>
#include <kernels/ptx/cp_async.cuh>
#include <kernels/ptx/ldmatrix.cuh>
#include <kernels/ptx/memory.cuh>

namespace fulmen::faults {

struct Args {
  const float* in;
  float* out;
  float* scratch;
  uint32_t* counter;
  const int* table;
  int n;
  bool fixed;
};

FULMEN_DEVICE int thread() { return static_cast<int>(threadIdx.x); }

FULMEN_DEVICE float warp_sum(float x) {
  for (int mask = 16; mask > 0; mask >>= 1) x += __shfl_xor_sync(kFullMask, x, mask);
  return x;
}

// Scores in shared memory are read by other warps without a barrier.
FULMEN_DEVICE void llama_cpp_13438(const Args& a) {
  float* kq = dynamic_shared<float>();
  kq[thread()] = a.in[thread()];
  if (a.fixed) __syncthreads();
  float sum = 0;
  for (int i = 0; i < 64; ++i) sum += kq[i];
  a.out[thread()] = sum;
}

// __syncthreads inside the branch of the warps that combine.
FULMEN_DEVICE void llama_cpp_27870(const Args& a) {
  float* meta = dynamic_shared<float>();
  meta[thread()] = a.in[thread()];
  __syncthreads();
  float sum = 0;
  if (thread() < 32) {
    sum = meta[thread()] + meta[thread() + 32];
    if (!a.fixed) __syncthreads();
    meta[thread()] = sum;
  } else {
    sum = 1;
    if (!a.fixed) __syncthreads();
  }
  if (a.fixed) __syncthreads();
  a.out[thread()] = sum;
}

// Lanes past the row write their padding onto the scales behind it.
FULMEN_DEVICE void llama_cpp_28358(const Args& a) {
  float* quants = dynamic_shared<float>();  // 16 of them, then two scales
  float* scales = quants + 16;
  if (thread() < 16 || !a.fixed) quants[thread()] = thread() < 16 ? a.in[thread()] : 0.0f;
  if (thread() % 16 == 0) scales[thread() / 16] = a.in[thread()];
  __syncwarp();
  a.out[thread()] = scales[thread() / 16];
}

// Warp 0 clears the partial sums while other warps already store theirs.
FULMEN_DEVICE void llm_c_847(const Args& a) {
  float* partial = dynamic_shared<float>();
  if (thread() < 32) partial[thread()] = 0;
  if (a.fixed) __syncthreads();
  const float sum = warp_sum(a.in[thread()]);
  if (thread() % 32 == 0) partial[thread() / 32] = sum;
  __syncthreads();
  a.out[thread()] = partial[thread() % 32];
}

// The last block of keys reads past the end of the block table.
FULMEN_DEVICE void flash_attention_42(const Args& a) {
  const int key = thread();
  const int page = a.fixed && key >= a.n ? 0 : a.table[key / 16];
  float* tile = dynamic_shared<float>();
  ptx::cp_async_16(ptx::shared_address(tile + 4 * key), a.in + page * 64 + key % 16 * 4, key >= a.n);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  a.out[key] = tile[4 * key];
}

// A block table entry of -1 becomes an address.
FULMEN_DEVICE void sparkinfer_152(const Args& a) {
  const int page = a.table[thread() / 16];
  if (a.fixed && page < 0) {
    a.out[thread()] = 0;
    return;
  }
  a.out[thread()] = a.in[static_cast<size_t>(page * 4096) + thread() % 16];
}

// A page id past the pool is checked against 0 only.
FULMEN_DEVICE void onnxruntime_32391(const Args& a) {
  const int page = a.table[thread() / 16];
  const bool mapped = page >= 0 && (!a.fixed || page < a.n);
  a.out[thread()] = mapped ? a.in[page * 16 + thread() % 16] : 0.0f;
}

// Rows of V past the length aren't zeroed: 0 * NaN.
FULMEN_DEVICE void flashinfer_1029(const Args& a) {
  float sum = 0;
  for (int key = 0; key < 64; ++key) {
    const float p = key < a.n ? 1.0f : 0.0f;
    const float v = a.fixed && key >= a.n ? 0.0f : a.in[key * 8 + thread()];
    sum += p * v;
  }
  a.out[thread()] = sum;
}

// Rows of K past the length keep what shared memory held.
FULMEN_DEVICE void flash_attention_1395(const Args& a) {
  const uint32_t tile = ptx::shared_address(dynamic_shared<float>());
  if (thread() < 8) {
    const bool inside = thread() < a.n;
    if (inside || a.fixed) ptx::cp_async_16(tile + 16 * threadIdx.x, a.in + 4 * thread(), !inside);
  }
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncwarp();
  uint32_t k[1];
  ptx::ldmatrix_x1(k, tile + 16 * (threadIdx.x % 8));
  a.out[thread()] = static_cast<float>(k[0]);
}

// Keys of the page beyond the length take part, NaN and all.
FULMEN_DEVICE void flashinfer_942(const Args& a) {
  float top = -infinity(), sum = 0;
  for (int key = 0; key < 16; ++key) {
    const float logit = a.fixed && key >= a.n ? -infinity() : a.in[key];
    top = logit > top || logit != logit ? logit : top;
  }
  for (int key = 0; key < 16; ++key) {
    if (!a.fixed || key < a.n) sum += a.in[key] == top ? 1.0f : a.in[key] - a.in[key];
  }
  a.out[thread()] = sum / static_cast<float>(a.n);
}

// The commit comes after the wait, which then waits for nothing.
FULMEN_DEVICE void pytorch_2457(const Args& a) {
  float* ring = dynamic_shared<float>();
  const auto issue = [&](int stage) { ptx::cp_async_16(ptx::shared_address(ring + stage * 256 + 4 * thread()), a.in + stage * 256 + 4 * thread(), false); };
  issue(0);
  ptx::cp_async_commit();
  float sum = 0;
  for (int stage = 0; stage < 2; ++stage) {
    if (stage == 0) issue(1);
    if (a.fixed) ptx::cp_async_commit();
    ptx::cp_async_wait<1>();
    if (!a.fixed) ptx::cp_async_commit();
    sum += ring[stage * 256 + 4 * thread()];
  }
  ptx::cp_async_wait<0>();
  a.out[thread()] = sum;
}

// No __threadfence before the semaphore of a split-K sum is released.
FULMEN_DEVICE void fuser_2391(const Args& a) {
  // Each block adds to what the block before left.
  const int b = static_cast<int>(blockIdx.x);
  if (thread() == 0) {
    while (ptx::load_acquire_gpu(a.counter) != blockIdx.x) {
    }
  }
  __syncthreads();
  a.scratch[b * 64 + thread()] = a.in[thread()] + (b > 0 ? a.scratch[(b - 1) * 64 + thread()] : 0.0f);
  if (a.fixed) __threadfence();
  __syncthreads();
  if (thread() == 0) {
    if (a.fixed) __threadfence();
    ptx::atomic_add_relaxed_gpu(a.counter, 1);
  }
}

// The last block reads the others' partial results without acquiring them.
FULMEN_DEVICE void pytorch_193321(const Args& a) {
  a.scratch[blockIdx.x * 64 + threadIdx.x] = a.in[thread()];
  __threadfence();
  __syncthreads();
  uint32_t& ticket = *dynamic_shared<uint32_t>();
  if (thread() == 0) {
    __threadfence();
    ticket = atomicAdd(a.counter, 1u);
    if (a.fixed) __threadfence();
  }
  __syncthreads();
  if (ticket != gridDim.x - 1) return;
  float sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += a.scratch[b * 64 + threadIdx.x];
  a.out[thread()] = sum;
}

// The tile counter in the loop is raised without the fence that its tail has.
FULMEN_DEVICE void flashinfer_4742(const Args& a) {
  if (blockIdx.x == 0) {
    for (int tile = 0; tile < 2; ++tile) {
      a.scratch[tile * 64 + thread()] = a.in[thread()];
      __syncthreads();
      if (thread() == 0) {
        if (a.fixed || tile == 1) __threadfence();
        atomicAdd(a.counter + tile, 1u);
      }
    }
    return;
  }
  float sum = 0;
  for (int tile = 0; tile < 2; ++tile) {
    while (ptx::load_acquire_gpu(a.counter + tile) == 0) {
    }
    sum += a.scratch[tile * 64 + thread()];
  }
  a.out[thread()] = sum;
}

// 16-byte stores to cache rows of 46 elements, where only the source was checked.
FULMEN_DEVICE void vllm_45466(const Args& a) {
  for (int row = 0; row < 4; ++row) {
    float* to = a.out + row * 23;
    if (thread() < 5 && (!a.fixed || reinterpret_cast<uintptr_t>(to) % 16 == 0)) {
      ptx::store_16(to + 4 * thread(), ptx::load_streaming_16(a.in + 4 * thread()));
    } else if (thread() < 5) {
      for (int i = 0; i < 4; ++i) to[4 * thread() + i] = a.in[4 * thread() + i];
    }
  }
}

// Vectors in shared memory begin behind one word per warp.
FULMEN_DEVICE void flashinfer_636(const Args& a) {
  float* vectors = dynamic_shared<float>() + (a.fixed ? round_up(a.n, 4) : a.n);
  ptx::cp_async_16(ptx::shared_address(vectors + 4 * thread()), a.in + 4 * thread(), false);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  a.out[thread()] = vectors[4 * thread()];
}

// 16-byte copies chosen by the shape, though the stride isn't a multiple of 16 bytes.
FULMEN_DEVICE void llama_cpp_17891(const Args& a) {
  const uint32_t tile = ptx::shared_address(dynamic_shared<float>());
  for (int row = 0; row < 2; ++row) {
    const float* from = a.in + row * a.n + 4 * thread();
    const uint32_t to = tile + static_cast<uint32_t>(row * 128 + 16 * thread());
    if (!a.fixed) {
      ptx::cp_async_16(to, from, false);
    } else {
      for (int i = 0; i < 4; ++i) ptx::cp_async_zfill<4>(to + 4 * static_cast<uint32_t>(i), from + i, 4);
    }
  }
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  a.out[thread()] = dynamic_shared<float>()[32 + 4 * thread()];
}

// A sort's results are written over its workspace while lanes still read it.
FULMEN_DEVICE void onnxruntime_genai_2526(const Args& a) {
  float* both = dynamic_shared<float>();
  both[thread()] = a.in[thread()];
  __syncwarp();
  const float mine = both[31 - thread()];  // the merge ends on a read
  if (a.fixed) __syncwarp();
  both[thread()] = mine;
  __syncwarp();
  a.out[thread()] = both[thread()];
}

// The block reduction's storage is used again in the next turn of the loop.
FULMEN_DEVICE void flashinfer_3624(const Args& a) {
  float* storage = dynamic_shared<float>();
  float total = 0;
  for (int turn = 0; turn < 3; ++turn) {
    const float sum = warp_sum(a.in[turn * 64 + thread()]);
    if (thread() % 32 == 0) storage[thread() / 32] = sum;
    __syncthreads();
    total += storage[0] + storage[1];
    if (a.fixed) __syncthreads();
  }
  a.out[thread()] = total;
}

// Lanes past the vocabulary keep their index, and it can win.
FULMEN_DEVICE void flashinfer_3470(const Args& a) {
  int best = 0;
  float top = -infinity();
  for (int base = 0; base < 64; base += 32) {
    const int i = base + thread();
    const float logit = i < a.n ? a.in[i] : -infinity();
    const int index = a.fixed && i >= a.n ? 0 : i;
    if (a.fixed ? logit > top : logit >= top) top = logit, best = index;
  }
  const auto winner = __reduce_max_sync(kFullMask, best);
  if (thread() == 0) a.out[0] = static_cast<float>(a.fixed && top == -infinity() ? 0 : winner);
}

// A shuffle between a write to shared memory and its reading is taken for a barrier.
FULMEN_DEVICE void ik_llama_cpp_2502(const Args& a) {
  float* store = dynamic_shared<float>();
  store[thread()] = a.in[thread()];
  const float sum = warp_sum(a.in[thread()]);
  if (a.fixed) __syncwarp();
  a.out[thread()] = sum + store[(thread() + 1) % 32];
}

// The sum of squares is read from a cell that the rotation stage reuses.
FULMEN_DEVICE void hipfire_575(const Args& a) {
  float* data = dynamic_shared<float>();
  data[thread()] = a.in[thread()] * a.in[thread()];
  __syncthreads();
  for (int step = 32; step > 0; step >>= 1) {
    if (thread() < step) data[thread()] += data[thread() + step];
    __syncthreads();
  }
  const float squares = data[0];
  if (a.fixed) __syncthreads();
  data[thread()] = a.in[thread()] / squares;
  __syncthreads();
  a.out[thread()] = data[thread() ^ 1];
}

// The next token's partial sums overwrite the normaliser that warps still read.
FULMEN_DEVICE void sparkinfer_665(const Args& a) {
  float* partial = dynamic_shared<float>();
  float value = 0;
  for (int token = 0; token < 2; ++token) {
    const float x = a.in[token * 64 + thread()], sum = warp_sum(x * x);
    if (thread() % 32 == 0) partial[thread() / 32] = sum;
    __syncthreads();
    if (thread() == 0) partial[0] = 1.0f / (partial[0] + partial[1]);
    __syncthreads();
    value += x * partial[0];
    if (a.fixed) __syncthreads();
  }
  a.out[thread()] = value;
}

// The next radix pass clears the histogram while the last one is read.
FULMEN_DEVICE void torch_xpu_ops_4312(const Args& a) {
  auto* histogram = dynamic_shared<uint32_t>();
  uint32_t found = 0;
  for (int pass = 0; pass < 2; ++pass) {
    if (thread() < 16) histogram[thread()] = 0;
    __syncthreads();
    atomicAdd(&histogram[float_bits(a.in[thread()]) >> (20 + 4 * pass) & 15u], 1u);
    __syncthreads();
    for (int bin = 0; bin < 16; ++bin) found = max(found, histogram[bin]);
    if (a.fixed) __syncthreads();
  }
  a.out[thread()] = static_cast<float>(found);
}

// Partial results are written with one stride and read with another.
FULMEN_DEVICE void hipfire_264(const Args& a) {
  const int stride = a.fixed ? 8 : a.n, head = thread() / 8, tile = thread() % 8;
  if (tile < a.n) a.scratch[head * stride + tile] = a.in[thread()];
  __syncwarp();
  float sum = 0;
  for (int i = 0; i < a.n; ++i) sum += a.scratch[head * 8 + i];
  a.out[thread()] = sum;
}

}  // namespace fulmen::faults
