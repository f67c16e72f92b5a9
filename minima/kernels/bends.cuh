// What is done to each number by itself: a bias and an activation, and dropout.
//
// A thread takes a pack of columns, and every so-manieth row of a matrix (rows, cols). An array
// without a bias is a matrix of one row.
#include "common.cuh"

// ---- activations: the value at a, and the slope there ----

struct Identity {
  INLINE static float value(float a) { return a; }
  INLINE static float slope(float) { return 1; }
};
struct Relu {
  INLINE static float value(float a) { return a <= 0 ? 0 : a; }  // and NaN stays NaN
  INLINE static float slope(float a) { return a <= 0 ? 0 : 1; }
};
struct Sigmoid {
  INLINE static float value(float a) { return 1 / (1 + expf(-a)); }
  INLINE static float slope(float a) { return value(a) * (1 - value(a)); }
};
struct Tanh {
  INLINE static float value(float a) { return tanhf(a); }
  INLINE static float slope(float a) { return 1 - tanhf(a) * tanhf(a); }
};
struct Silu {
  INLINE static float value(float a) { return a * Sigmoid::value(a); }
  INLINE static float slope(float a) {
    float s = Sigmoid::value(a);
    return s * (1 + a * (1 - s));
  }
};
struct Gelu {
  INLINE static float cdf(float a) { return erfcf(a * -0.707106781f) / 2; }
  INLINE static float value(float a) { return a * cdf(a); }
  INLINE static float slope(float a) { return cdf(a) + a * expf(-a * a / 2) * 0.398942280f; }
};
struct GeluByTanh {
  INLINE static float bent(float a) { return tanhf(0.797884561f * (a + 0.044715f * a * a * a)); }
  INLINE static float value(float a) { return a * (1 + bent(a)) / 2; }
  INLINE static float slope(float a) {
    float t = bent(a), inner = 0.797884561f * (1 + 0.134145f * a * a);
    return (1 + t + a * (1 - t * t) * inner) / 2;
  }
};

// ---- kernels ----

template <class T, class Bend, int N>
__global__ void bend_forward(const T* a, const T* bias, long long rows, long long cols, T* y) {
  long long col = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (col >= cols) return;
  Pack<T, N> b = load_or<N>(0, bias, col);
  for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < rows;
       row += (long long)gridDim.y * blockDim.y) {
    Pack<T, N> v = load<N>(a + row * cols + col);
#pragma unroll
    for (int j = 0; j < N; j++) v.at[j] = narrow<T>(Bend::value(wide(v.at[j]) + wide(b.at[j])));
    store(y + row * cols + col, v);
  }
}

// The cotangent of a, and the part of its sum over rows that a block has seen: (gridDim.y, cols).
template <class T, class Bend, int N>
__global__ void bend_backward(
    const T* a, const T* bias, const T* g, long long rows, long long cols, T* d, float* partial) {
  extern __shared__ __align__(16) float shared[];
  long long col = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
  float sum[N] = {};
  if (col < cols) {
    Pack<T, N> b = load_or<N>(0, bias, col);
    for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < rows;
         row += (long long)gridDim.y * blockDim.y) {
      Pack<T, N> v = load<N>(a + row * cols + col), up = load<N>(g + row * cols + col);
#pragma unroll
      for (int j = 0; j < N; j++) {
        float s = wide(up.at[j]) * Bend::slope(wide(v.at[j]) + wide(b.at[j]));
        v.at[j] = narrow<T>(s);
        sum[j] += s;
      }
      store(d + row * cols + col, v);
    }
  }
  if (!partial) return;
#pragma unroll
  for (int j = 0; j < N; j++) shared[(threadIdx.y * N + j) * blockDim.x + threadIdx.x] = sum[j];
  __syncthreads();
  if (threadIdx.y > 0 || col >= cols) return;
  for (int y = 1; y < blockDim.y; y++)
#pragma unroll
    for (int j = 0; j < N; j++) sum[j] += shared[(y * N + j) * blockDim.x + threadIdx.x];
#pragma unroll
  for (int j = 0; j < N; j++) partial[blockIdx.y * cols + col + j] = sum[j];
}

template <class T, int N>
__global__ void dropout(
    const T* x, const Word64* draw, unsigned threshold, float scale, long long size, T* y) {
  Drop drop = {draw, threshold, scale};
  long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (first >= size) return;
  Pack<T, N> v = load<N>(x + first);
  unsigned bits = kept<N>(drop, first);
#pragma unroll
  for (int j = 0; j < N; j++) v.at[j] = narrow<T>(dropped(wide(v.at[j]), bits, j, drop));
  store(y + first, v);
}
