// Layer norm of dropout(x) + residual, over rows; forward, and backward for all gradients at once.
//
// x, residual, g (what y received), h (what z received), y, z, dx and dz are matrices (rows, cols).
// residual, weight, bias, z, h, dz and partial may be null. `mean` and `factor` have a float a row.
#include "common.cuh"

// blockDim.x threads share a row; each holds HELD of its numbers in registers, in packs.
template <class T, int HELD>
__global__ void __launch_bounds__(512) norm_forward(
    const T* x, const T* residual, const T* weight, const T* bias,
    const Word64* draw, unsigned threshold, float scale, float eps,
    int rows, int cols, T* z, T* y, float* mean, float* factor) {
  constexpr int N = 16 / sizeof(T), PACKS = HELD / N;
  extern __shared__ __align__(16) float shared[];
  Drop drop = {draw, threshold, scale};
  int warps = blockDim.x / 32, stride = blockDim.x * N;
  int row = blockIdx.x * blockDim.y + threadIdx.y;
  long long start = (long long)row * cols;
  int width = row < rows ? cols : 0;  // threads without a row still come to the barriers

  Pack<T, N> a[PACKS], b[PACKS];
#pragma unroll
  for (int i = 0; i < PACKS; i++) {  // all loads first, so that they are under way together
    int col = threadIdx.x * N + i * stride;
    if (col >= width) continue;
    a[i] = load<N>(x + start + col), b[i] = load_or<N>(0, residual, start + col);
  }
  float v[PACKS][N], sum = 0;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    int col = threadIdx.x * N + i * stride;
    if (col >= width) continue;
    unsigned bits = kept<N>(drop, start + col);
    Pack<T, N> out;
#pragma unroll
    for (int j = 0; j < N; j++) {
      v[i][j] = dropped(wide(a[i].at[j]), bits, j, drop) + wide(b[i].at[j]);
      out.at[j] = narrow<T>(v[i][j]);
      if (z) v[i][j] = wide(out.at[j]);  // what others will see of it
      sum += v[i][j];
    }
    if (z) store(z + start + col, out);
  }

  float m = row_sum(sum, warps, shared) / cols;
  Two rest = {0, 0};  // what rounding left of the mean, and the squares
#pragma unroll
  for (int i = 0; i < PACKS; i++)
    if (threadIdx.x * N + i * stride < width)
#pragma unroll
      for (int j = 0; j < N; j++) rest = rest + Two{v[i][j] - m, (v[i][j] - m) * (v[i][j] - m)};
  rest = row_sum(rest, warps, shared);
  float shift = rest.a / cols, f = 1 / sqrtf(fmaxf(rest.b / cols - shift * shift, 0) + eps);
  m += shift;
  if (threadIdx.x == 0 && width) mean[row] = m, factor[row] = f;

#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    int col = threadIdx.x * N + i * stride;
    if (col >= width) continue;
    Pack<T, N> w = load_or<N>(1, weight, col), c = load_or<N>(0, bias, col), out;
#pragma unroll
    for (int j = 0; j < N; j++)
      out.at[j] = narrow<T>((v[i][j] - m) * f * wide(w.at[j]) + wide(c.at[j]));
    store(y + start + col, out);
  }
}

// Add `sums` to those at `to`, if there are any.
INLINE void add_to(float* to, Pack<float, 4> sums, bool any) {
  if (any) {
    Pack<float, 4> before = load<4>(to);
#pragma unroll
    for (int j = 0; j < 4; j++) sums.at[j] = before.at[j] + sums.at[j];
  }
  store(to, sums);
}

// The same walk back. With `is_sum`, `x` is z itself. A block takes many rows, and adds up its part
// of the gradients of weight and bias: (gridDim.x, 2, cols) floats in `partial`. While it computes
// with a row, what it needs of its next one is under way into shared memory. There each thread has
// places of its own, into which it writes again only when it has computed with what was there.
template <class T, int HELD>
__global__ void __launch_bounds__(512, 1) norm_backward(
    const T* g, const T* h, const T* x, const T* residual, const T* weight,
    const Word64* draw, unsigned threshold, float scale, int is_sum,
    const float* mean, const float* factor, int rows, int cols, T* dx, T* dz, float* partial) {
  constexpr int N = 16 / sizeof(T), PACKS = HELD / N;
  extern __shared__ __align__(16) float shared[];
  Drop drop = {draw, threshold, scale};
  int warps = blockDim.x / 32, stride = blockDim.x * N, threads = blockDim.x * blockDim.y;
  Pack<T, N>* place = reinterpret_cast<Pack<T, N>*>(shared);
  place += threadIdx.y * blockDim.x + threadIdx.x;
  float* meeting = shared + threads * (residual || h ? 3 : 2) * PACKS * 4;
  Pack<float, 4> dw[HELD / 4] = {}, db[HELD / 4] = {};

  auto fetch_row = [&](int row, int kind, const T* from) {  // of three kinds
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
      int col = threadIdx.x * N + i * stride;
      if (!from || row >= rows || col >= cols) continue;
      const T* at = from + (long long)row * cols + col;
      fetch(place + (kind * PACKS + i) * threads, reinterpret_cast<const Pack<T, N>*>(at));
    }
  };
  auto fetched = [&](int kind, int i) { return place[(kind * PACKS + i) * threads]; };
  auto fetch_first = [&](int row) {  // what is needed before the sums
    fetch_row(row, 0, g), fetch_row(row, 1, x), fetch_row(row, 2, residual);
    send();
  };

  int step = gridDim.x * blockDim.y, row = blockIdx.x * blockDim.y + threadIdx.y;
  fetch_first(row);
  fetch_row(row, 2, h);
  send();
  for (int first = blockIdx.x * blockDim.y; first < rows; first += step, row += step) {
    long long start = (long long)row * cols;
    int width = row < rows ? cols : 0;
    float m = width ? mean[row] : 0, f = width ? factor[row] : 0;
    Pack<T, N> up[PACKS] = {};
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
      int col = threadIdx.x * N + i * stride;
      if (col < width) bits |= kept<N>(drop, start + col) << i * N;
    }
    await_all_but_one();
    float n[PACKS][N];
    Two sums = {0, 0};
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
      int col = threadIdx.x * N + i * stride;
      if (col >= width) continue;
      Pack<T, N> a = fetched(1, i), w = load_or<N>(1, weight, col), b;
      up[i] = fetched(0, i);
      if (residual) b = fetched(2, i);
#pragma unroll
      for (int j = 0; j < N; j++) {
        float v = wide(a.at[j]), d = wide(up[i].at[j]);
        if (!is_sum) v = dropped(v, bits, i * N + j, drop);
        n[i][j] = (v + (residual ? wide(b.at[j]) : 0) - m) * f;
        float u = d * wide(w.at[j]);
        sums = sums + Two{u, u * n[i][j]};
        dw[(i * N + j) / 4].at[j % 4] += d * n[i][j];
        db[(i * N + j) / 4].at[j % 4] += d;
      }
    }
    sums = row_sum(sums, warps, meeting);
    fetch_first(row + step);
    await_all_but_one();
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
      int col = threadIdx.x * N + i * stride;
      if (col >= width) continue;
      Pack<T, N> w = load_or<N>(1, weight, col), c, by_x, by_z;
      if (h) c = fetched(2, i);
#pragma unroll
      for (int j = 0; j < N; j++) {
        float u = wide(up[i].at[j]) * wide(w.at[j]);
        float d = (u - sums.a / cols - n[i][j] * (sums.b / cols)) * f;
        if (h) d += wide(c.at[j]);
        by_z.at[j] = narrow<T>(d);
        by_x.at[j] = narrow<T>(dropped(d, bits, i * N + j, drop));
      }
      if (dz) store(dz + start + col, by_z);
      store(dx + start + col, by_x);
    }
    fetch_row(row + step, 2, h);
    send();
  }

  if (!partial) return;
  partial += (long long)blockIdx.x * 2 * cols;
  float* total = blockDim.y > 1 ? shared : partial;
  __syncthreads();  // or a quick row would write where a slow one still reads
  for (int turn = 0; turn < blockDim.y; turn++) {  // always in the same order
#pragma unroll
    for (int i = 0; i < HELD; i += 4) {
      int col = threadIdx.x * N + i / N * stride + i % N;
      if (col >= cols || turn != threadIdx.y) continue;
      add_to(total + col, dw[i / 4], turn > 0);
      add_to(total + cols + col, db[i / 4], turn > 0);
    }
    __syncthreads();
  }
  if (total == partial) return;
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < 2 * cols; i += blockDim.x * blockDim.y)
    partial[i] = total[i];
}

// ---- any width, anywhere in memory: a block takes a row, and reads it where it needs it ----

template <class T>
__global__ void norm_forward_any(
    const T* x, const T* residual, const T* weight, const T* bias,
    const Word64* draw, unsigned threshold, float scale, float eps,
    int rows, int cols, T* z, T* y, float* mean, float* factor) {
  extern __shared__ __align__(16) float shared[];
  Drop drop = {draw, threshold, scale};
  long long start = (long long)blockIdx.x * cols;
  int warps = blockDim.x / 32;
  auto total = [&](int col) {
    float v = dropped(wide(x[start + col]), kept<1>(drop, start + col), 0, drop);
    if (residual) v += wide(residual[start + col]);
    return z ? wide(narrow<T>(v)) : v;
  };

  float sum = 0;
  for (int col = threadIdx.x; col < cols; col += blockDim.x) {
    float v = total(col);
    if (z) z[start + col] = narrow<T>(v);
    sum += v;
  }
  float m = row_sum(sum, warps, shared) / cols;
  Two rest = {0, 0};
  for (int col = threadIdx.x; col < cols; col += blockDim.x) {
    float c = total(col) - m;
    rest = rest + Two{c, c * c};
  }
  rest = row_sum(rest, warps, shared);
  float shift = rest.a / cols, f = 1 / sqrtf(fmaxf(rest.b / cols - shift * shift, 0) + eps);
  m += shift;
  if (threadIdx.x == 0) mean[blockIdx.x] = m, factor[blockIdx.x] = f;
  for (int col = threadIdx.x; col < cols; col += blockDim.x) {
    float w = weight ? wide(weight[col]) : 1, c = bias ? wide(bias[col]) : 0;
    y[start + col] = narrow<T>((total(col) - m) * f * w + c);
  }
}

template <class T>
__global__ void norm_backward_any(
    const T* g, const T* h, const T* x, const T* residual, const T* weight,
    const Word64* draw, unsigned threshold, float scale, int is_sum,
    const float* mean, const float* factor, int rows, int cols, T* dx, T* dz, float* partial) {
  extern __shared__ __align__(16) float shared[];
  Drop drop = {draw, threshold, scale};
  int warps = blockDim.x / 32;
  if (partial) partial += (long long)blockIdx.x * 2 * cols;

  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    long long start = (long long)row * cols;
    float m = mean[row], f = factor[row];
    auto norm = [&](int col, unsigned bits) {
      float v = wide(x[start + col]);
      if (!is_sum) v = dropped(v, bits, 0, drop);
      if (residual) v += wide(residual[start + col]);
      return (v - m) * f;
    };
    auto weighted = [&](int col) {
      return weight ? wide(g[start + col]) * wide(weight[col]) : wide(g[start + col]);
    };

    Two sums = {0, 0};
    for (int col = threadIdx.x; col < cols; col += blockDim.x) {
      float d = wide(g[start + col]), u = weighted(col), n = norm(col, kept<1>(drop, start + col));
      sums = sums + Two{u, u * n};
      if (!partial) continue;  // each thread has columns of its own, which it alone adds to
      partial[col] = row == blockIdx.x ? d * n : partial[col] + d * n;
      partial[cols + col] = row == blockIdx.x ? d : partial[cols + col] + d;
    }
    sums = row_sum(sums, warps, shared);
    for (int col = threadIdx.x; col < cols; col += blockDim.x) {
      unsigned bits = kept<1>(drop, start + col);
      float d = (weighted(col) - sums.a / cols - norm(col, bits) * (sums.b / cols)) * f;
      if (h) d += wide(h[start + col]);
      if (dz) dz[start + col] = narrow<T>(d);
      dx[start + col] = narrow<T>(dropped(d, bits, 0, drop));
    }
  }
}

// ---- the second stage of sums over rows: 32 columns a block, 32 threads a column ----

template <class T>
__global__ void add_parts(const float* partial, int parts, int cols, T* sums) {
  extern __shared__ __align__(16) float shared[];
  int col = blockIdx.x * 32 + threadIdx.x;
  float sum = 0;
  if (col < cols)
    for (int part = threadIdx.y; part < parts; part += blockDim.y)
      sum += partial[(long long)part * cols + col];
  shared[threadIdx.y * 32 + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || col >= cols) return;
  for (int y = 1; y < blockDim.y; y++) sum += shared[y * 32 + threadIdx.x];
  sums[col] = narrow<T>(sum);
}
