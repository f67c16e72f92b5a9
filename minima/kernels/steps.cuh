// Steps of SGD and Adam: every array is read once, and what changes is written once.
//
// The learning rate and the number of the step may lie in device memory: then a recorded launch
// takes the next step when it is launched again. They are `*lr_at`, `*t_at` unless those are null.
#include "common.cuh"

// The numbers that all threads of `adam` share, made in double precision by one thread.
struct AdamNumbers { float sign, shrink, decay, beta1, rest1, beta2, rest2, eps, rate; };

__global__ void adam_numbers(
    const double* lr_at, double lr, const long long* t_at, long long t, double beta1, double beta2,
    double eps, double weight_decay, int decoupled, int maximize, AdamNumbers* numbers) {
  lr = lr_at ? *lr_at : lr, t = t_at ? *t_at : t;
  double root = sqrt(1 - pow(beta2, (double)t));
  numbers->sign = maximize ? -1 : 1;
  numbers->shrink = decoupled ? 1 - lr * weight_decay : 1;
  numbers->decay = decoupled ? 0 : weight_decay;
  numbers->beta1 = beta1, numbers->rest1 = 1 - beta1;
  numbers->beta2 = beta2, numbers->rest2 = 1 - beta2;
  numbers->eps = eps * root;
  numbers->rate = lr * root / (1 - pow(beta1, (double)t));
}

template <class T, int N>
__global__ void adam(
    T* p, const T* g, T* m, T* v, T* largest, const AdamNumbers* numbers, long long size) {
  long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (first >= size) return;
  AdamNumbers c = *numbers;
  Pack<T, N> w = load<N>(p + first), up = load<N>(g + first);
  Pack<T, N> means = load<N>(m + first), squares = load<N>(v + first);
  Pack<T, N> most = load_or<N>(0, largest, first);
#pragma unroll
  for (int j = 0; j < N; j++) {
    float a = wide(w.at[j]) * c.shrink, e = wide(up.at[j]) * c.sign + c.decay * a;
    float mean = wide(means.at[j]) * c.beta1 + e * c.rest1;
    float square = wide(squares.at[j]) * c.beta2 + e * e * c.rest2;
    means.at[j] = narrow<T>(mean), squares.at[j] = narrow<T>(square);
    if (largest) {
      float before = wide(most.at[j]);
      square = before >= square ? before : square;
      most.at[j] = narrow<T>(square);
    }
    w.at[j] = narrow<T>(a - mean / (sqrtf(square) + c.eps) * c.rate);
  }
  store(p + first, w), store(m + first, means), store(v + first, squares);
  if (largest) store(largest + first, most);
}

template <class T, int N>
__global__ void sgd(
    T* p, const T* g, T* buffer, const double* lr_at, double lr, float sign, float decay,
    float momentum, float share, int nesterov, long long size) {
  long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (first >= size) return;
  float rate = lr_at ? *lr_at : lr;
  Pack<T, N> w = load<N>(p + first), up = load<N>(g + first), sums = load_or<N>(0, buffer, first);
#pragma unroll
  for (int j = 0; j < N; j++) {
    float a = wide(w.at[j]), e = wide(up.at[j]) * sign + decay * a;
    float sum = wide(sums.at[j]) * momentum + share * e;
    if (buffer) e = nesterov ? e + momentum * sum : sum;
    sums.at[j] = narrow<T>(sum);
    w.at[j] = narrow<T>(a - rate * e);
  }
  store(p + first, w);
  if (buffer) store(buffer + first, sums);
}
