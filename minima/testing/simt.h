// CUDA C++ on a CPU: every thread of a block is a fibre, and blocks run one after another.
//
// Include this first, then the kernels, then EMULATE(name, kernel) for each that is to be called.
// Threads take turns at barriers and shuffles only, in one of five orders (enum Order): what comes
// out must not depend on it. Shared memory begins as NaN, and has a guard behind its end.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// ---- words of the language ----

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__
#define __align__(bytes)
#define __launch_bounds__(...)

struct dim3 { unsigned x = 1, y = 1, z = 1; };

inline float bits_to_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
inline uint32_t float_to_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

typedef _Float16 __half;
inline float __half2float(__half a) { return (float)a; }
inline __half __float2half(float a) { return (__half)a; }

struct __nv_bfloat16 { uint16_t bits; };  // the upper half of a float
inline float __bfloat162float(__nv_bfloat16 a) { return bits_to_float((uint32_t)a.bits << 16); }
inline __nv_bfloat16 __float2bfloat16(float a) {
  uint32_t bits = float_to_bits(a), even = bits >> 16 & 1;
  return {a == a ? (uint16_t)((bits + 0x7fff + even) >> 16) : (uint16_t)0x7fff};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) { return a.bits; }
inline float __uint_as_float(unsigned bits) { return bits_to_float(bits); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }

// ---- the machine ----

alignas(16) float shared[32768];  // what kernels declare as `extern __shared__ float shared[]`

namespace simt {

enum Order { UP, DOWN, RANDOM, FIRST_WARP_AHEAD, LAST_WARP_AHEAD };
enum Waits { RUNS, AT_BLOCK, AT_WARP, DONE };
constexpr uint32_t POISON = 0xffffffff, GUARD = 0x5ca1ab1e, GUARDS = 64;

struct Copy { void* to; const void* from; size_t bytes; };

struct Fibre {
  ucontext_t start;
  jmp_buf place;  // where it goes on; jumps are quicker than switches of context
  bool started;
  Waits waits;
  unsigned mask;  // of the lanes that it waits for
  int line;       // of the barrier where it waits
  char mail[16];  // what it offers in a shuffle
  std::vector<std::vector<Copy>> sent;  // copies under way, in groups; the last is not sent yet
};

struct {
  dim3 grid, block, block_index, thread_index;
  std::vector<Fibre> fibres;
  std::vector<std::vector<char>> stacks;
  int now;    // which fibre runs
  bool late;  // whether copies under way arrive when they are waited for, or at once
  jmp_buf home;
  void (*call)(void*);
  void* kernel;
  std::string error;
} machine;

inline void fail(std::string what) {
  dim3 b = machine.block_index;
  std::string where = " in block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ")";
  if (machine.error.empty()) machine.error = what + where;
}
inline void wait(Waits waits, unsigned mask, int line) {
  Fibre& me = machine.fibres[machine.now];
  me.waits = waits, me.mask = mask, me.line = line;
  if (!_setjmp(me.place)) _longjmp(machine.home, 1);
}
inline void begin() {
  machine.call(machine.kernel);
  wait(DONE, 0, 0);
}
inline void resume(int i) {
  unsigned x = machine.block.x, y = machine.block.y;
  machine.now = i;
  machine.thread_index = {i % x, i / x % y, i / (x * y)};
  if (_setjmp(machine.home)) return;
  Fibre& fibre = machine.fibres[i];
  if (fibre.started) _longjmp(fibre.place, 1);
  fibre.started = true;
  setcontext(&fibre.start);
}

// The value of lane `from`, which must be one of those that `mask` waits for.
template <class V> V shuffle(unsigned mask, V value, int from) {
  static_assert(sizeof(V) <= sizeof(Fibre::mail));
  int me = machine.now, first = me / 32 * 32;
  memcpy(machine.fibres[me].mail, &value, sizeof(V));
  wait(AT_WARP, mask, 0);
  memset(&value, 0xff, sizeof(V));
  bool present = mask >> from & 1 && mask >> (me - first) & 1;
  present = present && first + from < (int)machine.fibres.size();
  std::string lane = std::to_string(from);
  if (!present) fail("a shuffle reads lane " + lane + ", which its mask leaves out,");
  if (present) memcpy(&value, machine.fibres[first + from].mail, sizeof(V));
  wait(AT_WARP, mask, 0);  // nobody offers the next value before all have read this one
  return value;
}

inline void copy(const Copy& c) { memcpy(c.to, c.from, c.bytes); }
inline void fetch(Copy c) {
  if ((uintptr_t)c.to % c.bytes || (uintptr_t)c.from % c.bytes) fail("a copy is not aligned");
  if (machine.late) machine.fibres[machine.now].sent.back().push_back(c);
  else copy(c);
}
inline void await_groups(size_t but) {
  auto& sent = machine.fibres[machine.now].sent;
  for (; sent.size() > but + 1; sent.erase(sent.begin()))
    for (Copy& c : sent.front()) copy(c);
}

inline bool any_runs() {
  for (Fibre& fibre : machine.fibres)
    if (fibre.waits == RUNS) return machine.error.empty();
  return false;
}

// Let go the lanes of each warp that are all where their masks want them.
inline void release_warps() {
  auto& fibres = machine.fibres;
  int n = fibres.size();
  for (int first = 0; first < n; first += 32) {
    unsigned there = 0, all = n - first < 32 ? (1u << (n - first)) - 1 : ~0u;
    for (int i = 0; i < 32 && first + i < n; i++)
      there |= (unsigned)(fibres[first + i].waits == AT_WARP) << i;
    for (int i = 0; i < 32 && first + i < n; i++) {
      Fibre& fibre = fibres[first + i];
      if (fibre.waits == AT_WARP && !(fibre.mask & all & ~there)) fibre.waits = RUNS;
    }
  }
}

// Let go a block whose threads are all at one barrier; false if there is nobody to let go.
inline bool release_block() {
  int count[4] = {}, line = 0;
  for (Fibre& fibre : machine.fibres) count[fibre.waits]++;
  if (count[AT_WARP]) fail(std::to_string(count[AT_WARP]) + " threads wait in vain for their warp");
  if (count[AT_BLOCK] && count[DONE]) fail("some threads are done, others wait at a barrier");
  for (Fibre& fibre : machine.fibres) {
    if (fibre.waits != AT_BLOCK) continue;
    if (line && line != fibre.line) fail("threads wait at two different barriers");
    line = fibre.line, fibre.waits = RUNS;
  }
  return count[AT_BLOCK] && machine.error.empty();
}

inline void run_block(Order order, size_t bytes) {
  auto& fibres = machine.fibres;
  int n = fibres.size();
  size_t end = bytes / 4;
  for (size_t i = 0; i < end + GUARDS; i++) shared[i] = bits_to_float(i < end ? POISON : GUARD);
  auto stack = machine.stacks.begin();
  for (Fibre& fibre : fibres) {
    fibre.waits = RUNS, fibre.started = false, fibre.sent.assign(1, {});
    getcontext(&fibre.start);
    fibre.start.uc_stack.ss_sp = stack->data();
    fibre.start.uc_stack.ss_size = stack++->size();
    makecontext(&fibre.start, begin, 0);
  }
  machine.late = order % 2 == 0;
  std::vector<int> turn(n);
  for (int i = 0; i < n; i++) turn[i] = order == DOWN || order == LAST_WARP_AHEAD ? n - 1 - i : i;
  uint32_t chance = 12345;
  do {
    for (int i = n - 1; order == RANDOM && i > 0; i--) {
      chance = chance * 1664525 + 1013904223;
      std::swap(turn[i], turn[(chance >> 8) % (i + 1)]);
    }
    int warp = -1;  // one warp goes on alone, as long as it can
    for (int i : turn)
      if (order >= FIRST_WARP_AHEAD && warp < 0 && fibres[i].waits == RUNS) warp = i / 32;
    for (int i : turn)
      if (fibres[i].waits == RUNS && (warp < 0 || i / 32 == warp)) resume(i);
    release_warps();
  } while (any_runs() || release_block());
  for (size_t i = end; i < end + GUARDS; i++)
    if (float_to_bits(shared[i]) != GUARD) return fail("shared memory is written beyond its end");
}

template <class... A, size_t... I>
void run(void (*kernel)(A...), const unsigned* shape, size_t bytes, int order, void** args,
         std::index_sequence<I...>) {
  auto call = [&] { kernel(*static_cast<std::remove_cv_t<A>*>(args[I])...); };
  dim3 grid = {shape[0], shape[1], shape[2]}, block = {shape[3], shape[4], shape[5]};
  machine.grid = grid, machine.block = block, machine.error = "";
  machine.fibres.resize(block.x * block.y * block.z);
  while (machine.stacks.size() < machine.fibres.size()) machine.stacks.emplace_back(64 << 10);
  machine.kernel = &call;
  machine.call = [](void* kernel) { (*static_cast<decltype(&call)>(kernel))(); };
  if (bytes / 4 + GUARDS > sizeof(shared) / 4) return fail("more shared memory than there is");
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        machine.block_index = {order == DOWN ? grid.x - 1 - x : x, y, z};
        run_block((Order)order, bytes);
        if (!machine.error.empty()) return;
      }
}
}  // namespace simt

// ---- what kernels call ----

#define threadIdx simt::machine.thread_index
#define blockIdx simt::machine.block_index
#define blockDim simt::machine.block
#define gridDim simt::machine.grid
#define __syncthreads() simt::wait(simt::AT_BLOCK, 0, __LINE__)
inline void __syncwarp(unsigned mask = ~0u) { simt::wait(simt::AT_WARP, mask, 0); }
template <class V> V __shfl_xor_sync(unsigned mask, V value, int other) {
  return simt::shuffle(mask, value, (simt::machine.now % 32) ^ other);
}
template <class V> V __shfl_down_sync(unsigned mask, V value, int by) {
  int lane = simt::machine.now % 32;
  return simt::shuffle(mask, value, lane + by < 32 ? lane + by : lane);
}

// What `common.cuh` makes of instructions: copies, in groups that the thread sends and waits for.
template <class P> void fetch(P* to, const P* from) { simt::fetch({to, from, sizeof(P)}); }
inline void send() { simt::machine.fibres[simt::machine.now].sent.emplace_back(); }
inline void await_all_but_one() { simt::await_groups(1); }

// ---- what Python calls ----

// The compiler checks alignment (-fsanitize=alignment) and reports here.
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void* address) {
  simt::fail("an access is not aligned: its address is " + std::to_string((uintptr_t)address % 16) +
             " modulo 16,");
  simt::wait(simt::DONE, 0, 0);  // the processor might not survive it
}
extern "C" const char* emulator_error() { return simt::machine.error.c_str(); }
template <class... A>
void emulate(void (*kernel)(A...), const unsigned* shape, size_t bytes, int order, void** args) {
  simt::run(kernel, shape, bytes, order, args, std::index_sequence_for<A...>{});
}
#define EMULATE(name, ...)                                                             \
  extern "C" void name(const unsigned* shape, size_t bytes, int order, void** args) { \
    emulate(__VA_ARGS__, shape, bytes, order, args);                                   \
  }
