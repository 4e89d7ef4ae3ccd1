// The flow in double-double arithmetic: every number the sum of two, about 32 digits. For states whose
// blow-up time depends on more digits than a number of the machine has.
#pragma once

#include "vectors.h"

namespace {

using Doubles = Vec<double>;

inline Doubles fused(Doubles x, Doubles y, Doubles z) {
  Doubles result;
  for (int l = 0; l < Vectors<double>::lanes; ++l) result[l] = __builtin_fma(x[l], y[l], z[l]);
  return result;
}

// The sum of two vectors, the second below half a unit in the last place of the first.
struct Pair {
  Doubles high, low;
};

// Algorithms of T. J. Dekker (1971) and D. E. Knuth; the sum is the accurate one.
inline Pair two_sum(Doubles x, Doubles y) {
  Doubles sum = x + y, part = sum - x;
  return {sum, (x - (sum - part)) + (y - part)};
}
inline Pair quick_sum(Doubles x, Doubles y) {
  Doubles sum = x + y;
  return {sum, y - (sum - x)};
}
inline Pair two_product(Doubles x, Doubles y) {
  Doubles product = x * y;
  return {product, fused(x, y, -product)};
}
inline Pair operator+(Pair x, Pair y) {
  Pair high = two_sum(x.high, y.high), low = two_sum(x.low, y.low);
  high = quick_sum(high.high, high.low + low.high);
  return quick_sum(high.high, high.low + low.low);
}
inline Pair operator-(Pair x) { return {-x.high, -x.low}; }
inline Pair operator*(Pair x, Pair y) {
  Pair product = two_product(x.high, y.high);
  return quick_sum(product.high, product.low + (x.high * y.low + x.low * y.high));
}
inline Pair operator*(Pair x, Doubles y) {
  Pair product = two_product(x.high, y);
  return quick_sum(product.high, product.low + x.low * y);
}
inline Pair operator/(Pair x, double y) {
  Doubles divisor = Doubles{} + y, quotient = x.high / divisor;
  Pair product = two_product(quotient, divisor);
  return quick_sum(quotient, (x.high - product.high - product.low + x.low) / divisor);
}

// a'' = (A + kappa + 2 |a|^2) a as in `Group`, expanded and followed with so many digits.
struct Extended {
  static constexpr double eps = 0x1p-104;
  static constexpr int order = 56;

  int width, band;
  Doubles unit;  // of time, a power of two near the last step: the coefficients stay within range
  Pair *matrix, *a, *velocity, *coefficients, *norms;

  static size_t pairs(int k) { return size_t(k) * k + 2 * k + (order + 1) * (k + 1); }

  Extended(Pair* memory, int k) : width(k), band(0), unit{} {
    Pair** parts[] = {&matrix, &a, &velocity, &coefficients, &norms};
    int lengths[] = {k * k, k, k, (order + 1) * k, order + 1};
    for (int i = 0; i < 5; ++i) *parts[i] = memory, memory += lengths[i];
  }

  APART void load(Group<double>& group);
  APART void expand();
  APART void disturb(int turn);
  APART Doubles advance(Group<double>& group, Doubles pace, Mask<double> moving);
};

// The problem of a group, whose numbers are exact but for A and the velocity.
void Extended::load(Group<double>& group) {
  const int k = width;
  const Doubles *left = group.a, *middle = group.middle, *right = group.right;
  Pair kappa{};
  for (int i = 0; i < k; ++i) {
    kappa = kappa + two_product(right[i], right[i]) + -two_product(left[i], left[i]);
    a[i] = Pair{left[i], Doubles{}};
    velocity[i] = Pair{};
    for (int j = 0; j < k; ++j) velocity[i] = velocity[i] + two_product(middle[i * k + j], right[j]);
  }
  band = group.band, unit = Doubles{} + 1;
  Doubles largest{};
  for (int i = 0; i < k; ++i)
    for (int j = 0; j <= i; ++j) {
      Pair sum = -two_product(left[i], left[j]);
      for (int m = 0; m < k; ++m) sum = sum + two_product(middle[i * k + m], middle[j * k + m]);
      if (i == j) sum = sum + kappa;
      matrix[i * k + j] = sum, largest = larger(largest, absolute(sum.high));
    }
  for (int i = 0; i < k; ++i)
    for (int j = 0; j <= i; ++j) {
      Doubles noise;
      for (int l = 0; l < Vectors<double>::lanes; ++l) {
        const int probe = l % kCopies;
        noise[l] = probe && i - j <= band ? kNoise * eps * sign_of(probe, 1, i, j) : 0;
      }
      Pair entry = matrix[i * k + j] + Pair{noise * largest, Doubles{}};
      matrix[i * k + j] = matrix[j * k + i] = entry;
      group.matrix[i * k + j] = group.matrix[j * k + i] = entry.high;
    }
  disturb(-1);
}

void Extended::disturb(int turn) {
  Doubles size{}, speed{}, noise;
  for (int i = 0; i < width; ++i)
    size += a[i].high * a[i].high, speed += velocity[i].high * velocity[i].high;
  size = root<double>(size / double(width)), speed = root<double>(speed / double(width));
  for (int i = 0; i < width; ++i)
    for (int part = 0; part < 2; ++part) {
      for (int l = 0; l < Vectors<double>::lanes; ++l) {
        const int probe = l % kCopies;
        noise[l] = probe ? kNoise * eps * sign_of(probe, 3 + part, turn, i) : 0;
      }
      Pair& entry = (part ? velocity : a)[i];
      entry = entry + Pair{noise * (part ? speed : size), Doubles{}};
    }
}

void Extended::expand() {
  const int k = width;
  auto times = [](Pair x, Doubles power) { return Pair{x.high * power, x.low * power}; };
  for (int i = 0; i < k; ++i) {
    coefficients[i] = a[i];
    coefficients[k + i] = times(velocity[i], unit);
  }
  for (int n = 0; n <= order - 2; ++n) {
    Pair norm{};
    for (int j = 0; 2 * j < n; ++j)
      for (int i = 0; i < k; ++i) norm = norm + coefficients[j * k + i] * coefficients[(n - j) * k + i];
    norm = {2 * norm.high, 2 * norm.low};
    if (n % 2 == 0)
      for (int i = 0; i < k; ++i)
        norm = norm + coefficients[n / 2 * k + i] * coefficients[n / 2 * k + i];
    norms[n] = norm;
    for (int i = 0; i < k; ++i) {
      Pair sum{};
      for (int j = 0; j <= n; ++j) sum = sum + norms[j] * coefficients[(n - j) * k + i];
      sum = {2 * sum.high, 2 * sum.low};
      for (int m = i > band ? i - band : 0; m < k && m <= i + band; ++m)
        sum = sum + matrix[i * k + m] * coefficients[n * k + m];
      coefficients[(n + 2) * k + i] = times(sum, unit * unit) / double((n + 1) * (n + 2));
    }
  }
}

// Follows its own expansion in the lanes that move, and tells the group where that leads.
Doubles Extended::advance(Group<double>& group, Doubles pace, Mask<double> moving) {
  const int k = width;
  expand();
  auto size = [&](int n, int l) {
    double most = 0;
    for (int i = 0; i < k; ++i) {
      const double entry = std::fabs(coefficients[n * k + i].high[l]);
      if (!(entry <= most)) most = entry;
    }
    return most;
  };
  Doubles step = group.step_within(size, order, eps, pace, moving);
  for (int i = 0; i < k; ++i) {
    Pair value{}, slope{};
    for (int n = order; n >= 0; --n) {
      slope = slope * step + value;
      value = value * step + coefficients[n * k + i];
    }
    a[i].high = moving ? value.high : a[i].high, a[i].low = moving ? value.low : a[i].low;
    velocity[i].high = moving ? slope.high / unit : velocity[i].high;
    velocity[i].low = moving ? slope.low / unit : velocity[i].low;
  }
  step = step * unit;
  for (int l = 0; l < Vectors<double>::lanes; ++l) {
    int exponent;
    std::frexp(step[l], &exponent);
    if (moving[l]) unit[l] = std::ldexp(1., exponent);
  }
  return step;
}

}  // namespace
