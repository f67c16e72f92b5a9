// What all kernels share: numbers of three kinds, packs of 16 bytes, sums over warps, random bits.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif
#define INLINE __device__ __forceinline__

// ---- numbers: stored as T, computed with as float ----

INLINE float wide(float a) { return a; }
INLINE float wide(__half a) { return __half2float(a); }
INLINE float wide(__nv_bfloat16 a) { return __bfloat162float(a); }  // the upper half of a float

template <class T> INLINE T narrow(float a);
template <> INLINE float narrow<float>(float a) { return a; }
template <> INLINE __half narrow<__half>(float a) { return __float2half(a); }
template <> INLINE __nv_bfloat16 narrow<__nv_bfloat16>(float a) { return __float2bfloat16(a); }

INLINE float infinity() { return __uint_as_float(0x7f800000); }
INLINE float not_a_number() { return __uint_as_float(0x7fffffff); }

// ---- packs: N numbers that lie side by side, and move in one instruction ----

template <class T, int N> struct alignas(sizeof(T) * N) Pack { T at[N]; };

template <int N, class T> INLINE Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <int N, class T> INLINE Pack<T, N> load_or(float otherwise, const T* from, long long at) {
  if (from) return load<N>(from + at);
  Pack<T, N> pack;
#pragma unroll
  for (int j = 0; j < N; j++) pack.at[j] = narrow<T>(otherwise);
  return pack;
}
template <int N, class T> INLINE void store(T* to, Pack<T, N> pack) {
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// ---- packs under way: from memory into shared memory, while the thread goes on ----

#ifdef __CUDACC__
template <class P> INLINE void fetch(P* to, const P* from) {  // in the group that `send` ends
#if __CUDA_ARCH__ >= 800
  unsigned at = __cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
#else
  *to = *from;
#endif
}
INLINE void send() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
INLINE void await_all_but_one() {  // group of those that this thread has sent
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}
#endif

// ---- sums: every thread gets the sum, always added in the same order ----

struct Two { float a, b; };  // two sums in one go
INLINE Two operator+(Two s, Two t) { return {s.a + t.a, s.b + t.b}; }

INLINE float from_lane(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
INLINE Two from_lane(Two v, int mask) { return {from_lane(v.a, mask), from_lane(v.b, mask)}; }

template <class V> INLINE V warp_sum(V v) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) v = v + from_lane(v, mask);
  return v;
}

// Over the `warps` warps of a row, of which a block has blockDim.y. `shared` is free on return.
template <class V> INLINE V row_sum(V v, int warps, float* shared) {
  v = warp_sum(v);
  if (warps == 1) return v;
  V* room = reinterpret_cast<V*>(shared) + threadIdx.y * warps;
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
  __syncthreads();
  v = threadIdx.x % 32 < warps ? room[threadIdx.x % 32] : V{};  // V{} adds nothing
  __syncthreads();  // or a quick warp would write the next sum where a slow one still reads
  return warp_sum(v);  // in each warp the same
}

// ---- chance: Philox 4x32 with 7 rounds, laid out as in minima.random ----

struct Words { unsigned x, y, z, w; };

typedef unsigned long long Word64;

INLINE Words philox(Word64 counter, Word64 offset, Word64 seed) {
  unsigned c0 = counter, c1 = counter >> 32, c2 = offset, c3 = offset >> 32;
  unsigned k0 = seed, k1 = seed >> 32;
#pragma unroll
  for (int round = 0; round < 7; round++) {
    unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0, c1 = low1;
    c2 = high0 ^ c3 ^ k1, c3 = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// What is dropped: where the 16 bits of an element are less than `threshold`, which is 65536 p.
struct Drop {
  const Word64* draw;  // the seed and the offset, in device memory; null if nothing is dropped
  unsigned threshold;  // if it is 65536, the scale is 0, and it does not matter what is kept
  float scale;         // 1 / (1 - p)
};

// Bit j says whether element `first` + j is kept, for a pack of N elements of one block of 8.
template <int N> INLINE unsigned kept(Drop drop, Word64 first) {
  if (!drop.draw) return (1u << N) - 1;
  Words words = philox(first / 8, drop.draw[1], drop.draw[0]);
  Word64 low = words.y, high = words.w;
  low = low << 32 | words.x, high = high << 32 | words.z;
  unsigned bits = 0, start = first % 8 / N * N;  // so that the compiler knows 0 if N is 8
#pragma unroll
  for (int j = 0; j < N; j++) {  // the 16 bits go to the top, where what is below decides nothing
    unsigned at = start + j, top = (at < 4 ? low : high) << 16 * (3 - at % 4) >> 32;
    bits |= (top >= drop.threshold << 16) << j;
  }
  return bits;
}

// Element j after dropout: rounded by itself, so that forward and backward see the same number.
INLINE float dropped(float a, unsigned bits, int j, Drop drop) {
  if (!drop.draw) return a;
  return __fmul_rn(a, bits >> j & 1 ? drop.scale : 0.f);  // NaN and infinities become NaN
}
