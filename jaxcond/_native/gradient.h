// The gradient of the blow-up time: the mathematics of ../blowup/series/_gradient.py.
#pragma once

#include "expansion.h"
#include "reduction.h"

namespace {

// Follows a group of states to the blow-up, and takes derivatives back along the same expansions.
template <class T>
struct Backward {
  using V = Vec<T>;
  using M = Mask<T>;

  Group<T>& group;
  int k, order;
  V *points, *steps;          // (a, a') and the step of every expansion
  V *lambda, *of_norms;       // owed to the powers of a, and of N, by the later ones
  V *of_matrix, *of_point;    // cotangents of the problem
  V *of_left, *of_middle, *of_right;
  V zero;
  M settled, num_steps;

  static size_t vectors(int k, int n, int max_expansions) {
    return size_t(max_expansions) * (2 * k + 1) + size_t(n + 1) * (k + 1) + 2 * size_t(k) * k +
           4 * k;
  }

  Backward(V* memory, Group<T>& of, int max_expansions) : group(of), k(of.width), order(of.order) {
    V** parts[] = {&points, &steps, &lambda, &of_norms, &of_matrix, &of_point,
                   &of_left, &of_middle, &of_right};
    const size_t turns = max_expansions, powers = order + 1, square = size_t(k) * k;
    const size_t lengths[] = {turns * 2 * k, turns, powers * k, powers, square, size_t(2 * k),
                              size_t(k), square, size_t(k)};
    for (int i = 0; i < 9; ++i) *parts[i] = memory, memory += lengths[i];
  }

  APART void record(V rtol, int max_expansions);
  APART void norms_of_zero(M last);
  APART void back_through(int index);
  APART void to_layers();
  void run(V rtol, int max_expansions);
};

// `_record` of _gradient.py.
template <class T>
void Backward<T>::record(V rtol, int max_expansions) {
  const V pace = V{} + T(kPaces[0]);
  V elapsed{};
  zero = V{} + 1, settled = M{}, num_steps = M{};
  for (int turn = 0; turn < max_expansions && any(~settled); ++turn) {
    for (int i = 0; i < k; ++i) {
      points[2 * turn * k + i] = group.a[i];
      points[(2 * turn + 1) * k + i] = group.velocity[i];
    }
    const Outcome<T> outcome = group.expand(rtol);
    const V total = elapsed + outcome.time;
    const V allowed = larger(V{} + 16 * Numbers<T>::eps, T(0.01) * rtol) * total;
    M reached = (outcome.error <= allowed) & is_finite<T>(total);
    if (max_expansions == 1) {
      V values[2];
      polynomial<T, 1>(group.tau, order, outcome.time, values);
      reached |= (outcome.error <= rtol * outcome.time) & (values[1] < 0);
    }
    zero = settled ? zero : outcome.time;
    settled |= reached;
    const V step = group.advance(pace, ~settled);
    steps[turn] = step;
    elapsed += step;
    num_steps -= step != 0;  // a mask is -1
  }
}

// Derivatives of the zero of tau by the coefficients of N in the lanes that reach it here:
// `_of_norms` of _gradient.py.
template <class T>
void Backward<T>::norms_of_zero(M last) {
  V values[3], power = V{} + 1, sum{};
  polynomial<T, 2>(group.tau, order, zero, values);
  const V step = values[0] / values[1], x = zero - step, slope = values[1] - values[2] * step;
  // First the sums of the terms of tau up to each power, then from the highest N downwards.
  for (int i = 0; i <= order - 2; ++i) {
    sum += group.tau[i] != 0 ? group.tau[i] * power : V{};
    of_norms[order - i] = sum;
    power *= x;
  }
  power = x * x / slope;
  for (int m = 0; m <= order - 2; ++m) {
    of_norms[m + 2] = last ? of_norms[m + 2] * power * (T(1) / (T(m + 1) * T(m + 2))) : V{};
    power *= x;
  }
}

// `_back_through` of _gradient.py and `flow_cotangents` of _taylor.py.
template <class T>
void Backward<T>::back_through(int index) {
  V *a = group.a, *velocity = group.velocity, *coefficients = group.coefficients;
  for (int i = 0; i < k; ++i) {
    a[i] = points[2 * index * k + i], velocity[i] = points[(2 * index + 1) * k + i];
  }
  const M last = num_steps == index, taken = num_steps >= index;
  group.expand_flow();
  if (any(last)) {
    group.expand_tau();
    norms_of_zero(last);
  } else {
    for (int m = 2; m <= order; ++m) of_norms[m] = V{};
  }
  // What the end of the step owes to each power.
  const V step = steps[index];
  V value = V{} + 1, slope{};
  for (int m = 0; m <= order; ++m) {
    for (int i = 0; i < k; ++i)
      lambda[m * k + i] = last ? V{} : value * of_point[i] + slope * of_point[k + i];
    slope = T(m + 1) * value;
    value *= step;
  }
  for (int m = order; m >= 0; --m) {
    V* current = lambda + m * k;
    const int later = order - m - 2;  // powers that owe something, from m + 2
    const T scale = m > 1 ? T(1) / (T(m) * T(m - 1)) : T(1);
    V norm{};
    for (int i = 0; i < k; ++i) {
      V total{}, rest{};
      for (int j = 0; j <= later; ++j)
        total += group.norms[j] * current[(j + 2) * k + i] +
                 of_norms[m + 2 + j] * coefficients[j * k + i];
      total = current[i] + 2 * total;
      if (later >= 0)
        for (int j = 0; j < k; ++j) total += group.matrix[i * k + j] * current[2 * k + j];
      total *= scale;
      for (int j = 1; j <= order - m; ++j) rest += current[j * k + i] * coefficients[j * k + i];
      current[i] = total;
      norm += rest + total * coefficients[i];
    }
    if (m > 1) of_norms[m] += 2 * norm;
  }
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < k; ++j) {
      V sum{};
      for (int m = 2; m <= order; ++m) sum += lambda[m * k + i] * coefficients[(m - 2) * k + j];
      of_matrix[i * k + j] += taken ? sum : V{};
    }
  for (int i = 0; i < 2 * k; ++i) of_point[i] = taken ? lambda[i] : of_point[i];
}

// Reverse mode of `make_problem`: cotangents of the layers at unit scale.
template <class T>
void Backward<T>::to_layers() {
  const V *a = points, *b = group.middle, *c = group.right;
  V trace{};
  for (int i = 0; i < k; ++i) trace += of_matrix[i * k + i];
  for (int i = 0; i < k; ++i) {
    of_left[i] = of_point[i] - 2 * trace * a[i];
    of_right[i] = 2 * trace * c[i];
  }
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < k; ++j) {
      V sum = of_point[k + i] * c[j];
      for (int m = 0; m < k; ++m)
        sum += (of_matrix[i * k + m] + of_matrix[m * k + i]) * b[m * k + j];
      of_middle[i * k + j] = sum;
      of_left[i] -= (of_matrix[i * k + j] + of_matrix[j * k + i]) * a[j];
      of_right[j] += of_point[k + i] * b[i * k + j];
    }
  // In units of the problem, and with the sign that c was given there. NaN where nothing is known.
  const V unknown = V{} + Numbers<T>::infinity;
  const V unit = group.inverse * (settled ? group.unit : unknown - unknown);
  for (int i = 0; i < k; ++i) {
    const V x = of_left[i] * unit, y = of_right[i] * unit;
    of_left[i] = group.swapped ? y : x, of_right[i] = (group.swapped ? x : y) * group.sign;
    for (int j = 0; j <= i; ++j) {
      const V low = of_middle[i * k + j] * unit, high = of_middle[j * k + i] * unit;
      of_middle[i * k + j] = group.swapped ? high : low;
      of_middle[j * k + i] = group.swapped ? low : high;
    }
  }
}

template <class T>
void Backward<T>::run(V rtol, int max_expansions) {
  record(rtol, max_expansions);
  for (int i = 0; i < k * k; ++i) of_matrix[i] = V{};
  for (int i = 0; i < 2 * k; ++i) of_point[i] = V{};
  int first = 0;
  FOR_LANES if (num_steps[l] > first) first = int(num_steps[l]);
  if (first > max_expansions - 1) first = max_expansions - 1;
  for (int index = first; index >= 0; --index) back_through(index);
  to_layers();
}

// Derivatives of a wide state from those of its reduction: P a, P b Q^T, Q c. `rows` has room for
// `k + 1` rows of the right basis.
template <class T>
void lift(const Reduction<T>& reduction, int k, const T* a, const T* b, const T* c, T* rows, T* to_a,
          T* to_b, T* to_c) {
  const int64_t p = reduction.p, q = reduction.q, size = reduction.size_q;
  std::memset(rows, 0, (k + 1) * size * sizeof(T));
  auto add = [&](T* to, T share, const T* from) {
    for (int64_t j = 0; j < size; j += LANES) store(to + j, load(to + j) + share * load(from + j));
  };
  T* sum = rows + k * size;
  for (int i = 0; i < k; ++i) add(sum, c[i], reduction.right + i * size);
  std::memcpy(to_c, sum, q * sizeof(T));
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < k; ++j) add(rows + i * size, b[i * k + j], reduction.right + j * size);
  for (int64_t i = 0; i < p; ++i) {
    std::memset(sum, 0, size * sizeof(T));
    T total = 0;
    for (int r = 0; r < k; ++r) {
      const T share = reduction.left[r * reduction.size_p + i];
      total += a[r] * share;
      add(sum, share, rows + r * size);
    }
    to_a[i] = total;
    std::memcpy(to_b + i * q, sum, q * sizeof(T));
  }
}

}  // namespace
