// Thread-block clusters (sm_90): blocks that run at the same time and reach each other's shared memory.
// Emulated: the blocks of a cluster start together; the barrier orders everything before it, in any block, before everything after
// it; shared memory of a block that has ended belongs to nobody.
#pragma once

#include <kernels/prelude/device.hpp>

namespace fulmen::ptx {

// This block's number in its cluster.
FULMEN_FN uint32_t cluster_rank() {
#if defined(FULMEN_DEVICE_CODE)
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
#else
  return emulator::cluster_rank();
#endif
}

// Every thread of the cluster, warps whole.
FULMEN_FN void cluster_sync() {
#if defined(FULMEN_DEVICE_CODE)
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n\t"
      "barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
#else
  emulator::cluster_sync();
#endif
}

// The same in halves, of which the first orders no memory: behind the second all blocks have started. Emulated: all of it at the second.
FULMEN_FN void cluster_arrive() {
#if defined(FULMEN_DEVICE_CODE) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
FULMEN_FN void cluster_wait() {
#if defined(FULMEN_DEVICE_CODE)
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
#else
  emulator::cluster_sync();
#endif
}

// Where block `rank` of the cluster has what this block has at `p`, in its shared memory. That block must have started, and not end
// before the access: a barrier lies in between.
template <class T>
FULMEN_FN T* cluster_peer(T* p, uint32_t rank) {
#if defined(FULMEN_DEVICE_CODE)
#if __CUDA_ARCH__ >= 900
  T* there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank));
  return there;
#else
  return p;
#endif
#else
  return static_cast<T*>(emulator::cluster_peer(p, rank));
#endif
}

}  // namespace fulmen::ptx
