// Vectors of the machine with a state in each lane, masks, and polynomials.
#pragma once

#include <cmath>
#include <cstdint>

namespace {

template <class T>
struct Numbers;
template <>
struct Numbers<double> {
  using Word = int64_t;
  static constexpr double eps = 0x1p-52, infinity = __builtin_inf();
  static constexpr double largest = 0x1.fffffffffffffp1023;
};
template <>
struct Numbers<float> {
  using Word = int32_t;
  static constexpr float eps = 0x1p-23f, infinity = __builtin_inff();
  static constexpr float largest = 0x1.fffffep127f;
};

template <class T>
struct Vectors {
  using Word = typename Numbers<T>::Word;
  typedef T V __attribute__((vector_size(JAXCOND_VECTOR_BYTES)));
  typedef Word M __attribute__((vector_size(JAXCOND_VECTOR_BYTES)));  // all ones where true
  static constexpr int lanes = JAXCOND_VECTOR_BYTES / sizeof(T);
};
template <class T>
using Vec = typename Vectors<T>::V;
template <class T>
using Mask = typename Vectors<T>::M;

// Large functions are compiled once, not into every place that calls them.
#define APART __attribute__((noinline))

#define LANES Vectors<T>::lanes
#define FOR_LANES for (int l = 0; l < Vectors<T>::lanes; ++l)

template <class V>
inline V larger(V x, V y) { return x > y ? x : y; }
template <class V>
inline V smaller(V x, V y) { return x < y ? x : y; }
template <class V>
inline V absolute(V x) { return x < 0 ? -x : x; }

template <class T>
inline Vec<T> root(Vec<T> x) {
  Vec<T> y;
  FOR_LANES y[l] = __builtin_sqrt(x[l]);
  return y;
}
template <>
inline Vec<float> root<float>(Vec<float> x) {
  Vec<float> y;
  for (int l = 0; l < Vectors<float>::lanes; ++l) y[l] = __builtin_sqrtf(x[l]);
  return y;
}

template <class M>
inline bool any(M mask) {
  bool result = false;
  for (unsigned l = 0; l < sizeof(M) / sizeof(mask[0]); ++l) result |= mask[l] != 0;
  return result;
}

template <class T>
inline Mask<T> is_finite(Vec<T> x) { return x - x == 0; }

// A polynomial of degree `degree` and its first D derivatives by Horner's scheme.
template <class T, int D>
inline void polynomial(const Vec<T>* coefficients, int degree, Vec<T> x, Vec<T> (&values)[D + 1]) {
  for (auto& value : values) value = Vec<T>{};
  for (int n = degree; n >= 0; --n) {
    for (int d = D; d > 0; --d) values[d] = values[d] * x + values[d - 1];
    values[0] = values[0] * x + coefficients[n];
  }
  T factorial = 1;
  for (int d = 2; d <= D; ++d) values[d] *= factorial *= T(d);
}

}  // namespace
