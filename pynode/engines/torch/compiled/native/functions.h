// Functions of one number, written without branches so that compilers make vector code of them.
// Names are those of the program's kinds (docs/program-format.md).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#define SIMD _Pragma("omp simd")
#define SIMD_SUM(x) SIMD_SUM_TEXT(omp simd reduction(+ : x))
#define SIMD_SUM_TEXT(text) _Pragma(#text)

namespace pynode {

template <class To, class From>
inline To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

template <class T>
struct Binary;  // how a number is laid out

template <>
struct Binary<float> {
  using Int = std::int32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float magic = 12582912.0f;  // 1.5 · 2^23: what is added to it is rounded
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float most = 130.0f;   // exp() of it is infinite
  static constexpr float flat = 10.0f;    // tanh() of it is 1
};

template <>
struct Binary<double> {
  using Int = std::int64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double magic = 6755399441055744.0;
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr double most = 1100.0;
  static constexpr double flat = 20.0;
};

template <class T>
inline T power_of_two(typename Binary<T>::Int k) {
  return bits<T>((k + Binary<T>::bias) << Binary<T>::mantissa);
}

// e^r − 1 for |r| ≤ ln(2)/2, by Taylor's series.
inline float expm1_near_zero(float r) {
  float s = 1.0f / 5040;
  s = s * r + 1.0f / 720;
  s = s * r + 1.0f / 120;
  s = s * r + 1.0f / 24;
  s = s * r + 1.0f / 6;
  s = s * r + 0.5f;
  return r + r * r * s;
}

inline double expm1_near_zero(double r) {
  double s = 1.0 / 6227020800.0;
  s = s * r + 1.0 / 479001600.0;
  s = s * r + 1.0 / 39916800.0;
  s = s * r + 1.0 / 3628800.0;
  s = s * r + 1.0 / 362880.0;
  s = s * r + 1.0 / 40320.0;
  s = s * r + 1.0 / 5040.0;
  s = s * r + 1.0 / 720.0;
  s = s * r + 1.0 / 120.0;
  s = s * r + 1.0 / 24.0;
  s = s * r + 1.0 / 6.0;
  s = s * r + 0.5;
  return r + r * r * s;
}

// x = k ln 2 + r
template <class T>
inline void reduce_by_ln2(T x, typename Binary<T>::Int& k, T& r) {
  using B = Binary<T>;
  const T shifted = x * T(1.44269504088896340736) + B::magic;
  k = bits<typename B::Int>(shifted) - bits<typename B::Int>(B::magic);
  const T whole = shifted - B::magic;
  r = (x - whole * B::ln2_high) - whole * B::ln2_low;
}

template <class T>
inline T k_exp(T x) {
  using B = Binary<T>;
  // NaN passes both comparisons.
  const T low = x > B::most ? B::most : x;
  const T a = low < -B::most ? -B::most : low;
  typename B::Int k;
  T r;
  reduce_by_ln2(a, k, r);
  const auto half = k >> 1;  // in two steps, for results that are subnormal or infinite
  return (T(1) + expm1_near_zero(r)) * power_of_two<T>(half) * power_of_two<T>(k - half);
}

template <class T>
inline T k_tanh(T x) {
  using B = Binary<T>;
  const T size = x < T(0) ? -x : x;
  const T a = size > B::flat ? B::flat : size;
  typename B::Int k;
  T r;
  reduce_by_ln2(a + a, k, r);
  const T scale = power_of_two<T>(k);
  const T e = scale * expm1_near_zero(r) + (scale - T(1));
  const T y = e / (e + T(2));
  return x < T(0) ? -y : y;
}

template <class T> inline T k_identity(T x) { return x; }
template <class T> inline T k_neg(T x) { return -x; }
template <class T> inline T k_abs(T x) { return std::abs(x); }
template <class T> inline T k_sign(T x) { return x != x ? x : T(x > 0) - T(x < 0); }
template <class T> inline T k_reciprocal(T x) { return T(1) / x; }
template <class T> inline T k_sqrt(T x) { return std::sqrt(x); }
template <class T> inline T k_rsqrt(T x) { return T(1) / std::sqrt(x); }
template <class T> inline T k_exp2(T x) { return std::exp2(x); }
template <class T> inline T k_expm1(T x) { return std::expm1(x); }
template <class T> inline T k_log(T x) { return std::log(x); }
template <class T> inline T k_log2(T x) { return std::log2(x); }
template <class T> inline T k_log10(T x) { return std::log10(x); }
template <class T> inline T k_log1p(T x) { return std::log1p(x); }
template <class T> inline T k_sin(T x) { return std::sin(x); }
template <class T> inline T k_cos(T x) { return std::cos(x); }
template <class T> inline T k_tan(T x) { return std::tan(x); }
template <class T> inline T k_asin(T x) { return std::asin(x); }
template <class T> inline T k_acos(T x) { return std::acos(x); }
template <class T> inline T k_atan(T x) { return std::atan(x); }
template <class T> inline T k_sinh(T x) { return std::sinh(x); }
template <class T> inline T k_cosh(T x) { return std::cosh(x); }
template <class T> inline T k_asinh(T x) { return std::asinh(x); }
template <class T> inline T k_acosh(T x) { return std::acosh(x); }
template <class T> inline T k_atanh(T x) { return std::atanh(x); }
template <class T> inline T k_sigmoid(T x) { return T(1) / (T(1) + k_exp(-x)); }
template <class T> inline T k_relu(T x) { return x < T(0) ? T(0) : x; }
template <class T> inline T k_silu(T x) { return x / (T(1) + k_exp(-x)); }
template <class T> inline T k_erf(T x) { return std::erf(x); }
template <class T> inline T k_gelu(T x) { return T(0.5) * x * (T(1) + std::erf(x * T(0.70710678118654752440))); }
template <class T> inline T gelu_inner(T x) { return T(0.79788456080286535588) * (x + T(0.044715) * x * x * x); }
template <class T> inline T k_gelu_tanh(T x) { return T(0.5) * x * (T(1) + k_tanh(gelu_inner(x))); }

// log(1 + u) for 0 ≤ u ≤ 1, by the series of the inverse hyperbolic tangent.
template <class T>
inline T log1p_of_unit(T u) {
  const T s = u / (T(2) + u), q = s * s;
  T sum = 0;
  for (int i = sizeof(T) == 4 ? 15 : 35; i >= 1; i -= 2) sum = sum * q + T(2) / T(i);
  return sum * s;
}

template <class T>
inline T k_softplus(T x) {
  const T size = x < T(0) ? -x : x;
  const T y = (x < T(0) ? T(0) : x) + log1p_of_unit(k_exp(-size));
  return x > T(20) ? x : y;
}

template <class T> inline T k_floor(T x) { return std::floor(x); }
template <class T> inline T k_ceil(T x) { return std::ceil(x); }
template <class T> inline T k_round(T x) { return std::nearbyint(x); }
template <class T> inline T k_trunc(T x) { return std::trunc(x); }
template <class T> inline T k_not(T x) { return T(x == T(0)); }
template <class T> inline T k_isnan(T x) { return T(x != x); }
template <class T> inline T k_square(T x) { return x * x; }

template <class T> inline T k_add(T a, T b) { return a + b; }
template <class T> inline T k_sub(T a, T b) { return a - b; }
template <class T> inline T k_mul(T a, T b) { return a * b; }
template <class T> inline T k_div(T a, T b) { return a / b; }
template <class T> inline T k_pow(T a, T b) { return std::pow(a, b); }
// NaN in either is NaN.
template <class T> inline T k_minimum(T a, T b) { return a < b || a != a ? a : b; }
template <class T> inline T k_maximum(T a, T b) { return a > b || a != a ? a : b; }
template <class T> inline T k_lt(T a, T b) { return T(a < b); }
template <class T> inline T k_le(T a, T b) { return T(a <= b); }
template <class T> inline T k_gt(T a, T b) { return T(a > b); }
template <class T> inline T k_ge(T a, T b) { return T(a >= b); }
template <class T> inline T k_eq(T a, T b) { return T(a == b); }
template <class T> inline T k_ne(T a, T b) { return T(a != b); }
template <class T> inline T k_and(T a, T b) { return T((a != T(0)) & (b != T(0))); }
template <class T> inline T k_or(T a, T b) { return T((a != T(0)) | (b != T(0))); }
template <class T> inline T k_xor(T a, T b) { return T((a != T(0)) != (b != T(0))); }
template <class T> inline T k_atan2(T a, T b) { return std::atan2(a, b); }
template <class T> inline T k_fmod(T a, T b) { return std::fmod(a, b); }

template <class T>
inline T k_remainder(T a, T b) {
  const T r = std::fmod(a, b);
  return r != T(0) && ((r < T(0)) != (b < T(0))) ? r + b : r;
}

template <class T> inline T k_tanh_grad(T g, T y) { return g * (T(1) - y * y); }
template <class T> inline T k_sigmoid_grad(T g, T y) { return g * y * (T(1) - y); }
template <class T> inline T k_relu_grad(T g, T x) { return x > T(0) ? g : T(0); }

template <class T>
inline T k_silu_grad(T g, T x) {
  const T s = k_sigmoid(x);
  return g * (s * (T(1) + x * (T(1) - s)));
}

template <class T>
inline T k_gelu_grad(T g, T x) {
  const T bell = k_exp(T(-0.5) * x * x) * T(0.39894228040143267794);
  return g * (T(0.5) * (T(1) + std::erf(x * T(0.70710678118654752440))) + x * bell);
}

template <class T>
inline T k_gelu_tanh_grad(T g, T x) {
  const T y = k_tanh(gelu_inner(x));
  const T inner = T(0.79788456080286535588) * (T(1) + T(3 * 0.044715) * x * x);
  return g * (T(0.5) * (T(1) + y) + T(0.5) * x * (T(1) - y * y) * inner);
}

template <class T> inline T k_softplus_grad(T g, T x) { return x > T(20) ? g : g * k_sigmoid(x); }
template <class T> inline T k_leaky_relu(T x, T s) { return x > T(0) ? x : s * x; }
template <class T> inline T k_elu(T x, T alpha) { return x > T(0) ? x : alpha * std::expm1(x); }

template <class T> inline T k_where(T c, T a, T b) { return c != T(0) ? a : b; }
template <class T> inline T k_fma(T a, T b, T c) { return a * b + c; }
template <class T> inline T k_clamp(T x, T low, T high) { return k_minimum(k_maximum(x, low), high); }
template <class T> inline T k_leaky_relu_grad(T g, T x, T s) { return x > T(0) ? g : s * g; }
template <class T> inline T k_elu_grad(T g, T x, T alpha) { return x > T(0) ? g : g * alpha * k_exp(x < T(0) ? x : T(0)); }

}  // namespace pynode
