// The flow of one state of rank 1 by Taylor polynomials: the mathematics of ../flow/_pieces.py.
//
// One state after another, with vectors along its units: rows of `stride` numbers, filled up with
// zeros.
#pragma once

#include "vectors.h"

namespace {

// Constants of _pieces.py and _noise.py.
constexpr int kLastTerms = 4;
constexpr double kLargestDrift = 0x1p-8;

template <class T>
struct Limits;
template <>
struct Limits<double> {
  static constexpr double tiny = 0x1p-1022;
};
template <>
struct Limits<float> {
  static constexpr float tiny = 0x1p-126f;
};

template <class T>
struct Flow {
  int width, stride, order;
  T *a, *b, *c;                       // the state that the flow has reached
  T *unit_b, *next_b, *turned;        // of unit size, after the piece, transposed
  T *left, *right, *left_0, *right_0; // the conserved matrices, now and at the start
  T *terms, *kernels, *partial, *sum, *weights;  // the last: 1 / (n + 1)
  T strength, elapsed = 0, lag = 0, balance_0 = 0;

  static size_t numbers(int k, int n) {
    const size_t s = padded(k);
    return 8 * s * s + 3 * s + 3 * (n + 1) * s + 3 * n + 2;
  }
  static int padded(int k) { return (k + LANES - 1) / LANES * LANES; }

  Flow(T* memory, int k, int n) : width(k), stride(padded(k)), order(n) {
    const size_t s = stride, square = s * s;
    T** parts[] = {&a, &c, &sum, &b, &unit_b, &next_b, &turned, &left,
                   &right, &left_0, &right_0, &terms, &partial, &kernels, &weights};
    const size_t lengths[] = {s, s, s, square, square, square, square, square,
                              square, square, square, 2 * (n + 1) * s, (n + 1) * s, size_t(n + 1),
                              size_t(2 * n + 1)};
    for (int i = 0; i < 15; ++i) *parts[i] = memory, memory += lengths[i];
    for (int i = 0; i <= 2 * n; ++i) weights[i] = T(1) / T(i + 1);
  }

  T* term(int n, int side) const { return terms + (2 * n + side) * stride; }
  T total(const T* row) const {
    T result = 0;
    for (int i = 0; i < width; ++i) result += row[i];
    return result;
  }
  T dot(const T* x, const T* y) const {
    for (int i = 0; i < stride; ++i) sum[i] = x[i] * y[i];
    return total(sum);
  }
  T squares(const T* matrix) const {
    for (int i = 0; i < stride; ++i) sum[i] = 0;
    for (int k = 0; k < width; ++k)
      for (int i = 0; i < stride; ++i) sum[i] += matrix[k * stride + i] * matrix[k * stride + i];
    return total(sum);
  }

  void transpose(const T* matrix) const {
    for (int i = 0; i < width; ++i)
      for (int j = 0; j < width; ++j) turned[j * stride + i] = matrix[i * stride + j];
  }
  // The sum of factor * vector[m] * matrix[m].
  void combine(const T* matrix, const T* vector, T factor, T* result) const {
    for (int i = 0; i < stride; ++i) result[i] = 0;
    for (int m = 0; m < width; ++m) {
      const T weight = factor * vector[m];
      for (int i = 0; i < stride; ++i) result[i] += weight * matrix[m * stride + i];
    }
  }
  // b b^T - a a^T and b^T b - c c^T; leaves the transpose of b in `turned`.
  APART void conserve(const T* of_a, const T* of_b, const T* of_c) const {
    transpose(of_b);
    for (int i = 0; i < width; ++i) {
      T *row = left + i * stride, *column = right + i * stride;
      combine(turned, of_b + i * stride, T(1), row);
      combine(of_b, turned + i * stride, T(1), column);
      for (int j = 0; j < stride; ++j) row[j] -= of_a[i] * of_a[j], column[j] -= of_c[i] * of_c[j];
    }
  }
  void exponents(T size_squared, int& of_layers, int& of_strength) const {
    T sizes[2] = {std::sqrt(size_squared), std::fabs(strength)};
    int* const results[] = {&of_layers, &of_strength};
    for (int i = 0; i < 2; ++i) {
      if (!(sizes[i] > 0 && sizes[i] < Numbers<T>::infinity)) sizes[i] = 1;
      std::frexp(sizes[i], results[i]);
    }
  }

  APART void expand(T unit_strength);
  T reach() const;
  APART void grow_b(T step, T unit_strength);
  bool grow(T* length);
  T upper() const { return (dot(a, a) + squares(b) + dot(c, c)) / (3 * energy()); }
  T energy() const {
    T result = 0;
    for (int i = 0; i < width; ++i) result += a[i] * dot(b + i * stride, c);
    return strength * result;
  }
  bool is_near(T closeness) const {
    const T left = upper();
    return left > 0 && left <= closeness * (elapsed + left);
  }
  T drift() const;
};

// The coefficients from the first two terms on: `_coefficients`. `left` and `right` hold the
// conserved matrices.
template <class T>
void Flow<T>::expand(T unit_strength) {
  const T square = unit_strength * unit_strength;
  for (int n = 0; n + 2 <= order; ++n) {
    for (int i = 0; i < stride; ++i) sum[i] = 0;
    for (int j = 0; j <= n; ++j)
      for (int side = 0; side < 2; ++side) {
        const T *x = term(j, side), *y = term(n - j, side);
        for (int i = 0; i < stride; ++i) sum[i] += x[i] * y[i];
      }
    kernels[n] = square * total(sum);
    const T scale = T(1) / (T(n + 1) * T(n + 2));
    for (int side = 0; side < 2; ++side) {
      T* result = term(n + 2, side);
      combine(side ? right : left, term(n, side), square, result);
      for (int j = 0; j <= n; ++j) {
        const T *x = term(j, side), weight = kernels[n - j];
        for (int i = 0; i < stride; ++i) result[i] += weight * x[i];
      }
      for (int i = 0; i < stride; ++i) result[i] *= scale;
    }
  }
}

// How far the polynomials hold to rounding: `reach_of`.
template <class T>
T Flow<T>::reach() const {
  T least = Numbers<T>::infinity;
  for (int side = 0; side < 2; ++side) {
    const T at_0 = std::sqrt(dot(term(0, side), term(0, side)));
    const T at_1 = std::sqrt(dot(term(1, side), term(1, side)));
    const T first = larger(at_0, at_1);
    for (int n = order + 1 - kLastTerms; n <= order; ++n) {
      const T late = std::sqrt(dot(term(n, side), term(n, side)));
      if (!(late > Limits<T>::tiny && first > Limits<T>::tiny)) continue;
      least = smaller(least, T(std::log(Numbers<T>::eps * first / late) / n));
    }
  }
  const T most = std::pow(T(Numbers<T>::largest), T(0.9) / order);
  return smaller(T(std::exp(least)), most);
}

// b after a step, of terms that are scaled to it: b plus the integral of a c^T.
template <class T>
void Flow<T>::grow_b(T step, T unit_strength) {
  for (int l = 0; l <= order; ++l) {
    T* row = partial + l * stride;
    for (int i = 0; i < stride; ++i) row[i] = 0;
    for (int j = 0; j <= order; ++j) {
      const T weight = weights[j + l], *x = term(j, 0);
      for (int i = 0; i < stride; ++i) row[i] += weight * x[i];
    }
  }
  for (int k = 0; k < width; ++k) {
    T* row = next_b + k * stride;
    for (int i = 0; i < stride; ++i) row[i] = 0;
    for (int l = 0; l <= order; ++l) {
      const T weight = partial[l * stride + k] * unit_strength, *y = term(l, 1);
      for (int i = 0; i < stride; ++i) row[i] += weight * y[i];
    }
    for (int i = 0; i < stride; ++i) row[i] = unit_b[k * stride + i] + step * row[i];
  }
}

template <class T>
T Flow<T>::drift() const {
  conserve(a, b, c);
  const T of_a = dot(a, a), of_c = dot(c, c), size = of_a + squares(b) + of_c;
  T moved = std::fabs(of_c - of_a - balance_0);
  for (int i = 0; i < width; ++i)
    for (int j = 0; j < width; ++j) {
      const int at = i * stride + j;
      moved = larger(moved, T(std::fabs(left[at] - left_0[at])));
      moved = larger(moved, T(std::fabs(right[at] - right_0[at])));
    }
  return moved / (size == 0 ? 1 : size);
}

// One more piece, whose terms stay; false, and the flow as it was, where it leads nowhere.
template <class T>
bool Flow<T>::grow(T* length) {
  int of_layers, of_strength;
  exponents(dot(a, a) + squares(b) + dot(c, c), of_layers, of_strength);
  const T down = std::ldexp(T(1), -of_layers), up = std::ldexp(T(1), of_layers);
  const T unit_strength = std::ldexp(strength, -of_strength);
  T *of_a = term(0, 0), *of_c = term(0, 1);
  for (int i = 0; i < stride; ++i) of_a[i] = a[i] * down, of_c[i] = c[i] * down;
  for (int i = 0; i < width * stride; ++i) unit_b[i] = b[i] * down;
  conserve(of_a, unit_b, of_c);
  combine(turned, of_c, unit_strength, term(1, 0));
  combine(unit_b, of_a, unit_strength, term(1, 1));
  expand(unit_strength);
  const T step = reach();
  T power = 1;
  for (int n = 0; n <= order; ++n, power *= step)
    for (int i = 0; i < 2 * stride; ++i) term(n, 0)[i] *= power;
  grow_b(step, unit_strength);

  T *old_a = partial, *old_c = partial + stride;
  for (int i = 0; i < stride; ++i) {
    old_a[i] = a[i], old_c[i] = c[i], a[i] = c[i] = 0;
    for (int n = order; n >= 0; --n) a[i] += term(n, 0)[i], c[i] += term(n, 1)[i];
    a[i] *= up, c[i] *= up;
  }
  for (int i = 0; i < (order + 1) * 2 * stride; ++i) terms[i] *= up;
  T* old_b = b;
  b = next_b;
  for (int i = 0; i < width * stride; ++i) b[i] *= up;
  *length = std::ldexp(step, -of_layers - of_strength);
  const T more = *length + lag, later = elapsed + more, rounded = more - (later - elapsed);
  const T measure = energy() + later;
  if (measure - measure == 0 && drift() <= T(kLargestDrift)) {
    next_b = old_b, elapsed = later, lag = rounded;
    return true;
  }
  next_b = b, b = old_b;
  for (int i = 0; i < stride; ++i) a[i] = old_a[i], c[i] = old_c[i];
  return false;
}

template <class T>
int follow(const JaxcondPieces& s) {
  const int k = s.dim, n = s.order;
  const int64_t most = s.max_pieces, row = 2 * int64_t(k), square = int64_t(k) * k;
  const size_t bytes = (Flow<T>::numbers(k, n) * sizeof(T) + 127) / 64 * 64;
  T* memory = static_cast<T*>(std::aligned_alloc(64, bytes));
  if (!memory) return 1;
  std::memset(memory, 0, bytes);
  Flow<T> flow(memory, k, n);
  auto in = [&](const void* x, int64_t each) { return static_cast<const T*>(x) + s.index * each; };
  auto out = [&](void* x, int64_t each) { return static_cast<T*>(x) + s.index * each; };
  for (int i = 0; i < k; ++i) {
    flow.a[i] = in(s.a, k)[i], flow.c[i] = in(s.c, k)[i];
    std::memcpy(flow.b + i * flow.stride, in(s.b, square) + i * k, k * sizeof(T));
  }
  flow.strength = *in(s.strength, 1);
  const T closeness = *in(s.closeness, 1);
  flow.conserve(flow.a, flow.b, flow.c);
  std::memcpy(flow.left_0, flow.left, flow.stride * flow.stride * sizeof(T));
  std::memcpy(flow.right_0, flow.right, flow.stride * flow.stride * sizeof(T));
  flow.balance_0 = flow.dot(flow.c, flow.c) - flow.dot(flow.a, flow.a);

  T *begin = out(s.begin, most), *lag = out(s.lag, most), *length = out(s.length, most);
  T *sides = out(s.sides, most * (n + 1) * row), *b = out(s.b_begin, most * square);
  int64_t num = 0;
  for (bool going = true; going && num < most; ++num) {
    begin[num] = flow.elapsed, lag[num] = flow.lag;
    T* to = b + num * square;
    for (int i = 0; i < k; ++i) std::memcpy(to + i * k, flow.b + i * flow.stride, k * sizeof(T));
    if (!flow.grow(length + num)) break;
    to = sides + num * (n + 1) * row;
    for (int i = 0; i < 2 * (n + 1); ++i)
      std::memcpy(to + i * k, flow.terms + i * flow.stride, k * sizeof(T));
    going = !flow.is_near(closeness);
  }
  for (int64_t i = num; i < most; ++i) begin[i] = flow.elapsed, lag[i] = flow.lag, length[i] = 0;
  std::memset(sides + num * (n + 1) * row, 0, (most - num) * (n + 1) * row * sizeof(T));
  std::memset(b + num * square, 0, (most - num) * square * sizeof(T));
  for (int i = 0; i < k; ++i)
    std::memcpy(out(s.end_b, square) + i * k, flow.b + i * flow.stride, k * sizeof(T));
  std::memcpy(out(s.end_a, k), flow.a, k * sizeof(T));
  std::memcpy(out(s.end_c, k), flow.c, k * sizeof(T));
  *out(s.elapsed, 1) = flow.elapsed;
  std::free(memory);
  return 0;
}

}  // namespace
