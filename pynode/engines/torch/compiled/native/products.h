// Matrix products of sizes known to the compiler, and sums. Operands may be read up to one vector
// beyond their end: all memory that programs read is padded for that.
#pragma once
#include "functions.h"

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 24
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define VECTOR_REGISTERS 12
#else
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 12
#endif

namespace pynode {

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int width = VECTOR_BYTES / sizeof(T);
};

template <class T>
inline typename Vector<T>::type load(const T* from) {
  typename Vector<T>::type v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T, int count>
inline void store(T* to, typename Vector<T>::type v) {
  std::memcpy(to, &v, count * sizeof(T));
}

template <class T>
inline typename Vector<T>::type spread(T x) {
  return x - typename Vector<T>::type{};
}

// The sum of a vector's numbers, by halves.
template <class T, int lanes>
struct Lanes {
  typedef T type __attribute__((vector_size(lanes * sizeof(T))));
  static T sum(type v) {
    typename Lanes<T, lanes / 2>::type half[2];
    std::memcpy(half, &v, sizeof v);
    return Lanes<T, lanes / 2>::sum(half[0] + half[1]);
  }
};

template <class T>
struct Lanes<T, 2> {
  typedef T type __attribute__((vector_size(2 * sizeof(T))));
  static T sum(type v) { return v[0] + v[1]; }
};

template <class T>
inline T sum_of_lanes(typename Vector<T>::type v) {
  return Lanes<T, Vector<T>::width>::sum(v);
}

// Strides of out[i, j] = Σ_k x[i, k] y[k, j] (+ c[i, j]), with y contiguous in j.
template <long xi_, long xk_, long yk_, long oi_, long oj_, bool add_, long ci_, long cj_>
struct Strides {
  static constexpr long xi = xi_, xk = xk_, yk = yk_, oi = oi_, oj = oj_, ci = ci_, cj = cj_;
  static constexpr bool add = add_;
};

// R rows of V vectors; of the last vector only the first `lanes` are wanted.
template <class T, class S, long K, int R, int V, int lanes>
inline void tile(const T* x, const T* y, T* out, const T* c) {
  using Vec = typename Vector<T>::type;
  constexpr int W = Vector<T>::width;
  Vec sum[R][V];
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      if constexpr (!S::add) {
        sum[r][v] = Vec{};
      } else if constexpr (S::cj == 1) {
        sum[r][v] = load(c + r * S::ci + v * W);
      } else if constexpr (S::cj == 0) {
        sum[r][v] = spread(c[r * S::ci]);
      } else {
        const int count = v + 1 < V ? W : lanes;
        for (int i = 0; i < W; ++i) sum[r][v][i] = i < count ? c[r * S::ci + (v * W + i) * S::cj] : T(0);
      }
    }
  for (long k = 0; k < K; ++k) {
    Vec row[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) row[v] = load(y + k * S::yk + v * W);
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
      const Vec factor = spread(x[r * S::xi + k * S::xk]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] += factor * row[v];
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      T* to = out + r * S::oi + v * W * S::oj;
      if constexpr (S::oj == 1) {
        if (v + 1 < V) store<T, W>(to, sum[r][v]);
        else store<T, lanes>(to, sum[r][v]);
      } else {
        const int count = v + 1 < V ? W : lanes;
        for (int i = 0; i < count; ++i) to[i * S::oj] = sum[r][v][i];
      }
    }
}

template <class T, class S, long M, long K, int V, int lanes>
inline void tiles_of_columns(const T* x, const T* y, T* out, const T* c) {
  constexpr int most = VECTOR_REGISTERS / V < 1 ? 1 : VECTOR_REGISTERS / V;
  constexpr int R = M < most ? int(M) : (most > 8 ? 8 : most);
  constexpr long whole = M / R * R;
  for (long i = 0; i < whole; i += R)
    tile<T, S, K, R, V, lanes>(x + i * S::xi, y, out + i * S::oi, c + i * S::ci);
  if constexpr (whole < M)
    tile<T, S, K, int(M - whole), V, lanes>(x + whole * S::xi, y, out + whole * S::oi, c + whole * S::ci);
}

// out = x y (+ c), vectors along the columns of y.
template <class T, class S, long M, long N, long K>
inline void product(const T* x, const T* y, T* out, const T* c) {
  constexpr int W = Vector<T>::width;
  constexpr long block = 4 * W;
  constexpr long whole = N / block * block, rest = N - whole;
  for (long j = 0; j < whole; j += block)
    tiles_of_columns<T, S, M, K, 4, W>(x, y + j, out + j * S::oj, c + j * S::cj);
  if constexpr (rest > 0) {
    constexpr int V = int((rest + W - 1) / W), lanes = int(rest - (V - 1) * W);
    tiles_of_columns<T, S, M, K, V, lanes>(x, y + whole, out + whole * S::oj, c + whole * S::cj);
  }
}

// The last lanes of a vector, zero in the others.
template <class T, int count>
inline typename Vector<T>::type last_lanes(typename Vector<T>::type v) {
  using Int = typename Binary<T>::Int;
  constexpr int W = Vector<T>::width;
  typedef Int Mask __attribute__((vector_size(VECTOR_BYTES)));
  Mask mask{};
#pragma GCC unroll 16
  for (int i = W - count; i < W; ++i) mask[i] = -1;
  return (typename Vector<T>::type)((Mask)v & mask);
}

// out[i, j] = Σ_k x[i, k] y[j, k] (+ c[i, j]), both contiguous in k, with K at least a vector: for
// few columns. The last vector of a row overlaps the one before, where that of y is zero.
template <class T, long M, long N, long K, long xi, long yj, long oi, long oj, bool add, long ci, long cj>
inline void dots(const T* x, const T* y, T* out, const T* c) {
  using Vec = typename Vector<T>::type;
  constexpr int W = Vector<T>::width;
  constexpr int V = int(K / W), rest = int(K % W);
  static_assert(V > 0, "shorter than a vector");
  Vec tail[N];
  if constexpr (rest > 0)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) tail[j] = last_lanes<T, rest>(load(y + j * yj + K - W));
  for (long i = 0; i < M; ++i) {
    Vec sum[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) sum[j] = Vec{};
    for (int v = 0; v < V; ++v) {
      const Vec a = load(x + i * xi + v * W);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) sum[j] += a * load(y + j * yj + v * W);
    }
    if constexpr (rest > 0) {
      const Vec a = load(x + i * xi + K - W);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) sum[j] += a * tail[j];
    }
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      T value = sum_of_lanes<T>(sum[j]);
      if constexpr (add) value += c[i * ci + j * cj];
      out[i * oi + j * oj] = value;
    }
  }
}

// Any strides.
template <class T>
inline void plain_product(long m, long n, long k, const T* a, long ai, long ak, const T* b, long bk,
                          long bj, T* out, long oi, long oj, bool add, const T* c, long ci, long cj) {
  for (long i = 0; i < m; ++i)
    for (long j = 0; j < n; ++j) {
      T sum = 0;
      SIMD_SUM(sum)
      for (long l = 0; l < k; ++l) sum += a[i * ai + l * ak] * b[l * bk + j * bj];
      out[i * oi + j * oj] = add ? sum + c[i * ci + j * cj] : sum;
    }
}

// Products for a BLAS, whose Fortran interface stores by columns: outᵀ = bᵀ aᵀ.
template <class T>
using Gemm = void (*)(const char*, const char*, const int*, const int*, const int*, const T*, const T*,
                      const int*, const T*, const int*, const T*, T*, const int*);

template <class T>
inline void large_product(Gemm<T> gemm, long m, long n, long k, const T* a, bool ta, long lda,
                          const T* b, bool tb, long ldb, T* out, long ldc, bool add, const T* c,
                          long ci, long cj) {
  if (add && !(c == out && ci == ldc && cj == 1))
    for (long i = 0; i < m; ++i) {
      SIMD
      for (long j = 0; j < n; ++j) out[i * ldc + j] = c[i * ci + j * cj];
    }
  const int m_ = int(m), n_ = int(n), k_ = int(k), lda_ = int(lda), ldb_ = int(ldb), ldc_ = int(ldc);
  const T one = 1, beta = add ? T(1) : T(0);
  gemm(tb ? "T" : "N", ta ? "T" : "N", &n_, &m_, &k_, &one, b, &ldb_, a, &lda_, &beta, out, &ldc_);
}

enum Reduction { sum, mean, amax, amin, prod };

template <class T, Reduction kind>
inline T joined(T a, T b) {
  if constexpr (kind == amax) return k_maximum(a, b);
  else if constexpr (kind == amin) return k_minimum(a, b);
  else if constexpr (kind == prod) return a * b;
  else return a + b;
}

// out[o, i] = Σ_n a[o, n, i]
template <class T, Reduction kind>
inline void reduce(long outer, long n, long inner, T* out, long oo, long oi, const T* a, long ao,
                   long an, long ai) {
  for (long o = 0; o < outer; ++o) {
    const T* from = a + o * ao;
    T* to = out + o * oo;
    if (inner == 1 && (kind == sum || kind == mean)) {
      T total = 0;
      SIMD_SUM(total)
      for (long j = 0; j < n; ++j) total += from[j * an];
      to[0] = kind == mean ? total / T(n) : total;
      continue;
    }
    for (long i = 0; i < inner; ++i) to[i * oi] = from[i * ai];
    for (long j = 1; j < n; ++j) {
      const T* row = from + j * an;
      if (oi == 1 && ai == 1) {
        SIMD
        for (long i = 0; i < inner; ++i) to[i] = joined<T, kind>(to[i], row[i]);
      } else {
        for (long i = 0; i < inner; ++i) to[i * oi] = joined<T, kind>(to[i * oi], row[i * ai]);
      }
    }
    if (kind == mean)
      for (long i = 0; i < inner; ++i) to[i * oi] /= T(n);
  }
}

template <class T>
inline void running_sum(long outer, long n, long inner, T* out, const T* a) {
  for (long o = 0; o < outer; ++o)
    for (long j = 0; j < n; ++j)
      for (long i = 0; i < inner; ++i) {
        const long at = (o * n + j) * inner + i;
        out[at] = j ? out[at - inner] + a[at] : a[at];
      }
}

// A row's length in whole vectors.
template <class T>
constexpr long padded(long columns) {
  return (columns + Vector<T>::width - 1) / Vector<T>::width * Vector<T>::width;
}

// A matrix copied to rows of `ld` numbers, padded with zeros.
template <class T>
inline void pack(long rows, long columns, const T* from, long si, long sj, T* to, long ld) {
  for (long i = 0; i < rows; ++i)
    for (long j = 0; j < ld; ++j) to[i * ld + j] = j < columns ? from[i * si + j * sj] : T(0);
}

}  // namespace pynode
