// Softmax, its logarithm and cross-entropy, over rows: a few passes over a row that stays in cache.
//
// A block of (32 * warps, rows at a time) threads; several rows at a time only where warps is 1.
#include "common.cuh"

// The larger of two is their "sum", and the least of all adds nothing. NaN will show in that of exp.
struct Most { float top = -infinity(); };
INLINE Most operator+(Most s, Most t) { return s.top > t.top ? s : t; }
INLINE Most from_lane(Most v, int mask) { return {from_lane(v.top, mask)}; }
INLINE double from_lane(double v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

// The largest of a row, and the sum of exp(x - largest).
template <int N, class T> INLINE Two peak_and_sum(const T* x, int cols, float* shared) {
  Most most;
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    Pack<T, N> a = load<N>(x + col);
    for (int j = 0; j < N; j++) most = most + Most{wide(a.at[j])};
  }
  most = row_sum(most, blockDim.x / 32, shared);
  float sum = 0;
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    Pack<T, N> a = load<N>(x + col);
    for (int j = 0; j < N; j++) sum += expf(wide(a.at[j]) - most.top);
  }
  return {most.top, row_sum(sum, blockDim.x / 32, shared)};
}

template <class T, int N, bool LOG>
__global__ void softmax_forward(const T* x, long long rows, int cols, T* y) {
  extern __shared__ __align__(16) float shared[];
  long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  x += row * cols, y += row * cols;
  Two of = peak_and_sum<N>(x, cols, shared);
  float log_sum = logf(of.b);
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    Pack<T, N> a = load<N>(x + col);
    for (int j = 0; j < N; j++) {
      float z = wide(a.at[j]) - of.a;
      a.at[j] = narrow<T>(LOG ? z - log_sum : expf(z) / of.b);
    }
    store(y + col, a);
  }
}

template <class T, int N, bool LOG>
__global__ void softmax_backward(const T* y, const T* g, long long rows, int cols, T* d) {
  extern __shared__ __align__(16) float shared[];
  long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  y += row * cols, g += row * cols, d += row * cols;
  float sum = 0;
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    Pack<T, N> a = load<N>(y + col), up = load<N>(g + col);
    for (int j = 0; j < N; j++) sum += LOG ? wide(up.at[j]) : wide(up.at[j]) * wide(a.at[j]);
  }
  sum = row_sum(sum, blockDim.x / 32, shared);
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    Pack<T, N> a = load<N>(y + col), up = load<N>(g + col);
    for (int j = 0; j < N; j++) {
      float v = wide(a.at[j]), u = wide(up.at[j]);
      a.at[j] = narrow<T>(LOG ? u - expf(v) * sum : v * (u - sum));
    }
    store(d + col, a);
  }
}

// For each row the loss, and log(sum(exp(x))). The loss is 0 for the label `ignored`, and NaN for
// any other that is no column.
template <class T, int N>
__global__ void cross_entropy_forward(
    const T* x, const long long* labels, long long ignored, long long rows, int cols,
    float* losses, float* log_sums) {
  extern __shared__ __align__(16) float shared[];
  long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  x += row * cols;
  Two of = peak_and_sum<N>(x, cols, shared);
  if (threadIdx.x > 0) return;
  long long label = labels[row];
  bool known = 0 <= label && label < cols;
  float loss = known ? logf(of.b) - (wide(x[label]) - of.a) : not_a_number();
  losses[row] = label == ignored ? 0 : loss;
  log_sums[row] = of.a + logf(of.b);
}

// `g` is what each row's loss received, one behind the other or (`step` 0) the same; it is divided
// by `*count`, unless that is null.
template <class T, int N>
__global__ void cross_entropy_backward(
    const T* x, const long long* labels, long long ignored, const float* log_sums, const T* g,
    int step, const float* count, long long rows, int cols, T* d) {
  long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  x += row * cols, d += row * cols;
  long long label = labels[row];
  float log_sum = log_sums[row], scale = wide(g[row * step]) / (count ? *count : 1);
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    Pack<T, N> a = load<N>(x + col);
    for (int j = 0; j < N; j++) {
      float p = expf(wide(a.at[j]) - log_sum);
      a.at[j] = narrow<T>(label == ignored ? 0 : (p - (col + j == label)) * scale);
    }
    store(d + col, a);
  }
}

// The second stage of a mean over the rows that are not ignored, by one block; and their `count`.
template <class T>
__global__ void mean_of(
    const float* losses, const long long* labels, long long ignored, long long rows, T* mean,
    float* count) {
  extern __shared__ __align__(16) float shared[];
  double sum = 0, counted = 0;
#pragma unroll 8
  for (long long row = threadIdx.x; row < rows; row += blockDim.x) {
    sum += losses[row];
    counted += labels[row] != ignored;
  }
  sum = row_sum(sum, blockDim.x / 32, shared);
  counted = row_sum(counted, blockDim.x / 32, shared);
  if (threadIdx.x == 0) *mean = narrow<T>((float)(sum / counted)), *count = counted;
}
