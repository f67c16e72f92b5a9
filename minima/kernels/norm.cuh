// Layer norm of dropout(x) + residual, over rows; forward, and backward for all gradients at once.
//
// x, residual, g (what y received), h (what z received), y, z, dx and dz are matrices (rows, cols).
// residual, weight, bias, z, h, dz and partial may be null. `mean` and `factor` have a float a row.
#include "common.cuh"

// blockDim.x threads share a row; each holds HELD of its numbers in registers, in packs. A warp
// takes 32 HELD side by side, so that the compiler knows how far apart the packs of a thread are.
// FULL says that every thread has a row and HELD numbers of it, so that none need be looked for.
// The bounds: at most so many threads a block; and blocks, for which a processor has registers.
template <class T, int HELD, bool FULL>
__global__ void __launch_bounds__(8192 / HELD, HELD < 32 ? HELD / 8 : 3) norm_forward(
    const T* x, const T* residual, const T* weight, const T* bias,
    const Word64* draw, unsigned threshold, float scale, float eps,
    int rows, int cols, T* z, T* y, float* mean, float* factor) {
  constexpr int N = 16 / sizeof(T), PACKS = HELD / N, APART = 32 * N;
  extern __shared__ __align__(16) float shared[];
  Drop drop = {draw, threshold, scale};
  int warps = blockDim.x / 32, row = blockIdx.x * blockDim.y + threadIdx.y;
  int col = threadIdx.x / 32 * 32 * HELD + threadIdx.x % 32 * N;
  int ours = row < rows ? cols - col : 0;  // threads without a row still come to the barriers
  long long start = (long long)row * cols + col;
  auto has = [&](int i) { return FULL || i * APART < ours; };

  Pack<T, N> a[PACKS] = {}, b[PACKS];
#pragma unroll
  for (int i = 0; i < PACKS; i++)  // all loads first, so that they are under way together
    if (has(i)) a[i] = load<N>(x + start + i * APART);
  if (residual)
#pragma unroll
    for (int i = 0; i < PACKS; i++)
      if (has(i)) b[i] = load<N>(residual + start + i * APART);

  float v[PACKS][N];  // each step goes over all packs, so that it asks only once
  if (draw)
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
      unsigned bits = kept<N>(drop, start + i * APART);  // while the loads are under way
      for (int j = 0; j < N; j++) v[i][j] = dropped(wide(a[i].at[j]), bits, j, drop);
    }
  else
#pragma unroll
    for (int i = 0; i < PACKS; i++)
      for (int j = 0; j < N; j++) v[i][j] = wide(a[i].at[j]);
  if (residual)
#pragma unroll
    for (int i = 0; i < PACKS; i++)
      for (int j = 0; j < N; j++)
        if (has(i)) v[i][j] += wide(b[i].at[j]);
  if (z)
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
      Pack<T, N> out;
      for (int j = 0; j < N; j++) {
        out.at[j] = narrow<T>(v[i][j]);
        v[i][j] = wide(out.at[j]);  // what others will see of it
      }
      if (has(i)) store(z + start + i * APART, out);
    }

  // Distances from the first number of a thread: exact if the row is narrow and far from zero, and
  // so near to each other that squares can be summed before the mean is known.
  float first = v[0][0], count = 0, sum = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    if (!has(i)) continue;
    count += N;
    for (int j = 0; j < N; j++) {
      v[i][j] -= first;
      sum += v[i][j], squares += v[i][j] * v[i][j];
    }
  }
  float share = 1.f / cols, m = row_sum(sum + count * first, warps, shared) * share;
  float off = m - first, left = sum - count * off;  // left: what rounding left of the mean
  Two rest = row_sum(Two{left, squares - off * (sum + left)}, warps, shared);  // ... the squares
  float shift = rest.a * share, f = rsqrtf(fmaxf(rest.b * share - shift * shift, 0) + eps);
  m += shift, off = (m - first) * f;
  if (threadIdx.x == 0 && ours > 0) mean[row] = m, factor[row] = f;

#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    if (!has(i)) continue;
    Pack<T, N> w = load_or<N>(1, weight, col + i * APART), out;
    Pack<T, N> c = load_or<N>(0, bias, col + i * APART);
    for (int j = 0; j < N; j++)
      out.at[j] = narrow<T>((v[i][j] * f - off) * wide(w.at[j]) + wide(c.at[j]));
    store(y + start + i * APART, out);
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
template <class T, int HELD, bool FULL>
__global__ void __launch_bounds__(512, 1) norm_backward(
    const T* g, const T* h, const T* x, const T* residual, const T* weight,
    const Word64* draw, unsigned threshold, float scale, int is_sum,
    const float* mean, const float* factor, int rows, int cols, T* dx, T* dz, float* partial) {
  constexpr int N = 16 / sizeof(T), PACKS = HELD / N, APART = 32 * N;
  extern __shared__ __align__(16) float shared[];
  Drop drop = {draw, threshold, scale};
  int warps = blockDim.x / 32, warp = threadIdx.y * warps + threadIdx.x / 32;
  int col = threadIdx.x / 32 * 32 * HELD + threadIdx.x % 32 * N, kinds = residual || h ? 3 : 2;
  Pack<T, N>* place = reinterpret_cast<Pack<T, N>*>(shared);
  place += warp * kinds * PACKS * 32 + threadIdx.x % 32;
  float* meeting = shared + blockDim.y * warps * kinds * PACKS * 128;
  Pack<float, 4> dw[HELD / 4] = {}, db[HELD / 4] = {};
  float share = 1.f / cols;

  auto fetch_row = [&](int row, int kind, const T* from) {  // of three kinds
    if (!from || row >= rows) return;
    from += (long long)row * cols + col;
#pragma unroll
    for (int i = 0; i < PACKS; i++)
      if (FULL || col + i * APART < cols)
        fetch(place + (kind * PACKS + i) * 32,
              reinterpret_cast<const Pack<T, N>*>(from + i * APART));
  };
  auto fetched = [&](int kind, int i) { return place[(kind * PACKS + i) * 32]; };
  auto fetch_first = [&](int row) {  // what is needed before the sums
    fetch_row(row, 0, g), fetch_row(row, 1, x), fetch_row(row, 2, residual);
    send();
  };

  int step = gridDim.x * blockDim.y, row = blockIdx.x * blockDim.y + threadIdx.y;
  fetch_first(row);
  fetch_row(row, 2, h);
  send();
  for (int first = blockIdx.x * blockDim.y; first < rows; first += step, row += step) {
    long long start = (long long)row * cols + col;
    int ours = row < rows ? cols - col : 0;
    auto has = [&](int i) { return FULL || i * APART < ours; };
    float m = FULL || ours > 0 ? mean[row] : 0, f = FULL || ours > 0 ? factor[row] : 0;
    unsigned bits = 0;
    if (draw)
#pragma unroll
      for (int i = 0; i < PACKS; i++) bits |= kept<N>(drop, start + i * APART) << i * N;
    await_all_but_one();
    float n[PACKS][N] = {}, u[PACKS][N] = {};
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
      if (!has(i)) continue;
      Pack<T, N> a = fetched(1, i);
      for (int j = 0; j < N; j++) n[i][j] = wide(a.at[j]);
    }
    if (draw && !is_sum)
#pragma unroll
      for (int i = 0; i < PACKS; i++)
        for (int j = 0; j < N; j++) n[i][j] = dropped(n[i][j], bits, i * N + j, drop);
    if (residual)
#pragma unroll
      for (int i = 0; i < PACKS; i++) {
        if (!has(i)) continue;
        Pack<T, N> b = fetched(2, i);
        for (int j = 0; j < N; j++) n[i][j] += wide(b.at[j]);
      }
    Two sums = {0, 0};
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
      if (!has(i)) continue;
      Pack<T, N> up = fetched(0, i), w = load_or<N>(1, weight, col + i * APART);
      for (int j = 0; j < N; j++) {
        float d = wide(up.at[j]);
        n[i][j] = (n[i][j] - m) * f, u[i][j] = d * wide(w.at[j]);
        sums = sums + Two{u[i][j], u[i][j] * n[i][j]};
        dw[(i * N + j) / 4].at[j % 4] += d * n[i][j];
        db[(i * N + j) / 4].at[j % 4] += d;
      }
    }
    sums = row_sum(sums, warps, meeting);
    float along = sums.a * share * f, across = sums.b * share * f;
    fetch_first(row + step);
    await_all_but_one();
#pragma unroll
    for (int i = 0; i < PACKS; i++)
      for (int j = 0; j < N; j++) u[i][j] = u[i][j] * f - (n[i][j] * across + along);
    if (h)
#pragma unroll
      for (int i = 0; i < PACKS; i++) {
        if (!has(i)) continue;
        Pack<T, N> c = fetched(2, i);
        for (int j = 0; j < N; j++) u[i][j] += wide(c.at[j]);
      }
    auto write = [&](T* to) {
#pragma unroll
      for (int i = 0; i < PACKS; i++) {
        Pack<T, N> out;
        for (int j = 0; j < N; j++) out.at[j] = narrow<T>(u[i][j]);
        if (has(i)) store(to + start + i * APART, out);
      }
    };
    if (dz) write(dz);
    if (draw)
#pragma unroll
      for (int i = 0; i < PACKS; i++)
        for (int j = 0; j < N; j++) u[i][j] = dropped(u[i][j], bits, i * N + j, drop);
    write(dx);
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
      int at = col + i / N * APART + i % N;
      if (at >= cols || turn != threadIdx.y) continue;
      add_to(total + at, dw[i / 4], turn > 0);
      add_to(total + cols + at, db[i / 4], turn > 0);
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
  float share = 1.f / cols, m = row_sum(sum, warps, shared) * share;
  Two rest = {0, 0};
  for (int col = threadIdx.x; col < cols; col += blockDim.x) {
    float c = total(col) - m;
    rest = rest + Two{c, c * c};
  }
  rest = row_sum(rest, warps, shared);
  float shift = rest.a * share, f = rsqrtf(fmaxf(rest.b * share - shift * shift, 0) + eps);
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
  float share = 1.f / cols;
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
    float along = sums.a * share, across = sums.b * share;
    for (int col = threadIdx.x; col < cols; col += blockDim.x) {
      unsigned bits = kept<1>(drop, start + col);
      float d = (weighted(col) - along - norm(col, bits) * across) * f;
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
