// One Taylor expansion of a group of states, the zero of its entire function, and the steps from one
// expansion to the next: the mathematics of ../blowup/series.
#pragma once

#include "vectors.h"

namespace {

// Constants of _expansion.py and _series.py.
constexpr int kRootSteps = 14;
constexpr double kEarlierTerms = 0.125;
constexpr double kMissing = 0.25, kNoise = 32, kRoundingShare = 2, kLargestShift = 0x1p-8;
constexpr double kPaces[4] = {0.85, 1.0, 0.7, 0.78};
constexpr int kCopies = 4;  // a state and its three probes
constexpr int kBlock = 12;  // components whose sums are held in registers

// Signs of the noise in the probes: `_signs` of _follow.py.
inline int sign_of(uint32_t probe, uint32_t layer, uint32_t i, uint32_t j) {
  uint32_t h = probe * 0x9E3779B1u ^ layer * 0x85EBCA77u ^ i * 0xC2B2AE3Du ^ j * 0x27D4EB2Fu;
  h ^= 0x165667B1u;
  h ^= h >> 15, h *= 0x2C1B3C6Du, h ^= h >> 12, h *= 0x297A2D39u, h ^= h >> 15;
  return 1 - 2 * int(h & 1);
}

template <class T>
inline void duplicate(Vec<T>& x, Vec<T>& y, Vec<T>& z) {
  Vec<T> root_x = root<T>(x), root_y = root<T>(y), root_z = root<T>(z);
  Vec<T> shift = root_x * (root_y + root_z) + root_y * root_z;
  x = T(0.25) * (x + shift), y = T(0.25) * (y + shift), z = T(0.25) * (z + shift);
}

// The mean of what two duplications leave bounds R_F from below.
template <class T>
inline Vec<T> rough_lower_bound(const Vec<T> (&norms)[3]) {
  Vec<T> x = norms[0], y = norms[1], z = norms[2];
  duplicate<T>(x, y, z);
  duplicate<T>(x, y, z);
  return root<T>(T(3) / (x + y + z));
}

// Carlson's R_F; the series ends below rounding once the arguments are within a hundredth.
template <class T>
Vec<T> carlson_rf(Vec<T> x, Vec<T> y, Vec<T> z) {
  Mask<T> diverges = (Mask<T>(x == 0) + Mask<T>(y == 0) + Mask<T>(z == 0)) <= -2;
  Vec<T> one = Vec<T>{} + 1;
  x = diverges ? one : x, y = diverges ? one : y, z = diverges ? one : z;
  for (int i = 0; i < 14; ++i) {
    Vec<T> spread = larger(x, larger(y, z)) - smaller(x, smaller(y, z));
    if (!any(spread > T(5e-3) * (x + y + z))) break;
    duplicate<T>(x, y, z);
  }
  Vec<T> mean = (x + y + z) / 3, dx = 1 - x / mean, dy = 1 - y / mean, dz = -dx - dy;
  Vec<T> e2 = dx * dy - dz * dz, e3 = dx * dy * dz;
  Vec<T> series = 1 + e2 * (T(-1. / 10) + e2 * (T(1. / 24) - T(5. / 208) * e2) - T(3. / 44) * e3);
  series += e3 * (T(1. / 14) + T(3. / 104) * e3 + T(1. / 16) * e2 * e2);
  Vec<T> infinite = one * Numbers<T>::infinity;
  return diverges ? infinite : series / root<T>(mean);
}

template <class T>
struct Outcome {
  Vec<T> time, lower, upper, error;
  Mask<T> converged;
};

template <class T>
struct Group {
  using V = Vec<T>;
  using M = Mask<T>;

  int width, order, band = 0;
  V *left, *middle, *right;                                // a, b, c as loaded
  V *matrix, *a, *velocity;                                // the problem
  V *coefficients, *norms, *last, *logarithmic, *tau, *sizes;  // its expansion
  V middle_excess, other_excess;
  V unit, inverse, sign;  // of the problem: of time, of the layers, and what c was multiplied by
  M swapped, truncated;

  static size_t vectors(int k, int n) { return 2 * size_t(k) * k + 4 * k + (n + 1) * (k + 5) + k; }

  Group(V* memory, int k, int n) : width(k), order(n) {
    V** parts[] = {&left, &middle, &right, &matrix, &a, &velocity, &coefficients,
                   &norms, &last, &logarithmic, &tau, &sizes};
    int lengths[] = {k, k * k, k, k * k, k, k, (n + 1) * k, n + 1, n + 1, n + 1, n + 1, n + 1};
    for (int i = 0; i < 12; ++i) *parts[i] = memory, memory += lengths[i];
  }

  void norms_at(V a_squared, V (&result)[3]) const {
    result[0] = a_squared;
    result[1] = larger(a_squared + middle_excess, V{});
    result[2] = larger(a_squared + other_excess, V{});
  }

  APART M rests_exactly(V strength, bool divides, V divisor);
  APART M prepare(V strength, bool reduced, M& finite, int (&exponents)[LANES]);
  APART void make_problem(V strength);
  void start(V (&of_norms)[3], V& energy) const;
  void expand_flow();
  void expand_tau();
  V first_zero() const;
  void bracket(V zero, V distance, V& lower, V& upper) const;
  APART Outcome<T> expand(V rtol);
  template <class Size>
  V step_within(const Size& size, int order, T eps, V pace, M& moving) const;
  APART V advance(V pace, M moving);
  void disturb(int turn);
  template <class Advance>
  void follow(V rtol, int max_expansions, const Advance& go_on, Outcome<T>& best, M& steps);
};

// Where the loaded states are known exactly to stay or come to rest, if nothing is rounded:
// `comes_to_rest` of bounds.py, with entries that are divided by one number if `divides`.
template <class T>
Mask<T> Group<T>::rests_exactly(V strength, bool divides, V divisor) {
  const int k = width;
  V size_a{}, size_c{}, product{}, *onto_a = a, *onto_c = velocity;  // for a moment
  M moves{}, bent{};
  auto entry = [&](V x) { return divides ? x / divisor : x; };
  for (int i = 0; i < k; ++i) {
    V sum{}, other{}, of_a = entry(left[i]), of_c = entry(right[i]);
    for (int j = 0; j < k; ++j) {
      sum += entry(middle[i * k + j]) * entry(right[j]);
      other += entry(middle[j * k + i]) * entry(left[j]);
    }
    onto_a[i] = sum, onto_c[i] = other;
    moves |= (sum != 0) | (other != 0);
    size_a += of_a * of_a, size_c += of_c * of_c, product += of_a * sum;
  }
  moves |= size_a * size_c != 0;
  for (int i = 0; i < k; ++i) {
    bent |= onto_a[i] * size_a != entry(left[i]) * product;
    bent |= onto_c[i] * size_c != entry(right[i]) * product;
  }
  V scale = size_a * size_c, x = size_a * scale, y = product * product, z = size_c * scale;
  V low = smaller(x, y), high = larger(x, y);
  V least = smaller(low, z), middle_one = larger(low, smaller(high, z));
  V sign = strength > 0 ? product : -product;
  return ~moves | (~bent & (sign < 0) & (least == middle_one));
}

// Brings the loaded states to unit scale; the lanes that cannot be solved are replaced by ones.
// Returns where it is proven that the flow is at rest or comes to rest.
template <class T>
Mask<T> Group<T>::prepare(V strength, bool reduced, M& finite, int (&exponents)[LANES]) {
  const int k = width;
  V largest{}, all = strength - strength, one = V{} + 1;
  V* layers[] = {left, middle, right};
  const int lengths[] = {k, k * k, k};
  for (int part = 0; part < 3; ++part)
    for (int i = 0; i < lengths[part]; ++i) {
      largest = larger(largest, absolute(layers[part][i]));
      all += layers[part][i] - layers[part][i];
    }
  finite = all == 0;
  V factor;
  FOR_LANES {
    exponents[l] = 0;
    if (finite[l]) std::frexp(largest[l], &exponents[l]);
    // 2^-e may lie beyond the range of the exponent: two factors do not.
    factor[l] = std::ldexp(T(1), -exponents[l] / 2);
  }
  V rest_of_factor;
  FOR_LANES rest_of_factor[l] = std::ldexp(T(1), -exponents[l] + exponents[l] / 2);
  M lost{};  // an entry that is too small beside the others
  for (int part = 0; part < 3; ++part)
    for (int i = 0; i < lengths[part]; ++i) {
      V entry = layers[part][i];
      layers[part][i] = entry * factor * rest_of_factor;
      lost |= (entry != 0) & (layers[part][i] == 0);
    }

  // At rest since every product vanishes.
  M moving{}, some_a{}, some_c{};
  for (int i = 0; i < k; ++i) some_a |= left[i] != 0, some_c |= right[i] != 0;
  moving = some_a & some_c;
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < k; ++j)
      moving |= (middle[i * k + j] != 0) & ((left[i] != 0) | (right[j] != 0));
  M rests = (strength == 0) | (~lost & ~moving);
  // The entries of reduced states are rounded.
  if (reduced) rests = (strength == 0) | (~lost & ~some_a & ~some_c);
  if (!reduced && any(~lost & ~rests & rests_exactly(strength, false, one))) {
    // Whether nothing is rounded there: all entries are small multiples of one power of two, or
    // powers of two times one number.
    V most{};
    for (int part = 0; part < 3; ++part)
      for (int i = 0; i < lengths[part]; ++i) most = larger(most, absolute(layers[part][i]));
    M alike = ~M{};
    for (int part = 0; part < 3; ++part)
      for (int i = 0; i < lengths[part]; ++i) {
        FOR_LANES {
          int exponent;
          const T entry = layers[part][i][l] / (most[l] > 0 ? most[l] : 1);
          const T fraction = std::fabs(std::frexp(entry, &exponent));
          if (fraction != 0 && fraction != T(0.5)) alike[l] = 0;
        }
      }
    V divisor = alike & (most > 0) ? most : one;
    const T limit = sizeof(T) == 8 ? 456 : 16;  // its sixth power is below 1 / eps
    M exact{};
    for (int bits = 0; bits < 9; ++bits) {
      M whole = ~M{};
      for (int part = 0; part < 3; ++part) {
        V sum{};
        for (int i = 0; i < lengths[part]; ++i) {
          V entry = layers[part][i] / divisor * T(1 << bits);
          FOR_LANES {
            if (entry[l] != std::rint(entry[l])) whole[l] = 0;
          }
          sum += absolute(entry);
        }
        whole &= sum <= limit;
      }
      exact |= whole;
    }
    rests |= exact & ~lost & rests_exactly(strength, true, divisor);
  }
  M solvable = finite & ~rests;
  if (any(~solvable))
    for (int part = 0; part < 3; ++part)
      for (int i = 0; i < lengths[part]; ++i)
        layers[part][i] = solvable ? layers[part][i] : one;
  return rests;
}

// a'' = (A + kappa + 2 |a|^2) a for the smaller of a and c: `Problem.of` of _expansion.py.
template <class T>
void Group<T>::make_problem(V strength) {
  const int k = width;
  V one = V{} + 1;
  sign = strength < 0 ? -one : one;
  V size_a{}, size_b{}, size_c{};
  for (int i = 0; i < k; ++i) {
    right[i] *= sign;
    size_a += left[i] * left[i], size_c += right[i] * right[i];
  }
  for (int i = 0; i < k * k; ++i) size_b += middle[i] * middle[i];
  V total = root<T>(size_a + size_b + size_c);
  FOR_LANES {
    int exponent;
    std::frexp(total[l], &exponent);
    inverse[l] = std::ldexp(T(1), -exponent);
  }
  swapped = size_a > size_c;
  unit = inverse / absolute(strength);
  V square = inverse * inverse;
  size_a *= square, size_b *= square, size_c *= square;
  V smallest = swapped ? size_c : size_a, other = swapped ? size_a : size_c;
  middle_excess = size_b - smallest, other_excess = other - smallest;
  for (int i = 0; i < k; ++i) {
    V x = left[i] * inverse, y = right[i] * inverse;
    a[i] = swapped ? y : x, right[i] = swapped ? x : y;
  }
  int reach = 0;  // of b from the diagonal
  for (int i = 0; i < k; ++i)
    for (int j = 0; j <= i; ++j) {
      V x = middle[i * k + j] * inverse, y = middle[j * k + i] * inverse;
      middle[i * k + j] = swapped ? y : x, middle[j * k + i] = swapped ? x : y;
      if (i - j > reach && any((x != 0) | (y != 0))) reach = i - j;
    }
  band = 0;
  for (int i = 0; i < k; ++i) {
    V sum{};
    for (int j = i > reach ? i - reach : 0; j < k && j <= i + reach; ++j)
      sum += middle[i * k + j] * right[j];
    velocity[i] = sum;
    for (int j = 0; j <= i; ++j) {
      V gram = -a[i] * a[j];
      if (i - j <= 2 * reach)
        for (int m = i > reach ? i - reach : 0; m < k && m <= j + reach; ++m)
          gram += middle[i * k + m] * middle[j * k + m];
      if (i == j) gram += other_excess;
      matrix[i * k + j] = matrix[j * k + i] = gram;
      if (i - j > band && any(gram != 0)) band = i - j;
    }
  }
}

// What the bracket of the state at the start needs: its squared norms, and the energy less what may
// be rounded. Of `proven_bracket` in bounds.py.
template <class T>
void Group<T>::start(V (&of_norms)[3], V& energy) const {
  V size_a{}, size_b{}, size_c{}, terms{};
  energy = V{};
  for (int i = 0; i < width; ++i) {
    V sum{};
    for (int j = 0; j < width; ++j) {
      sum += absolute(middle[i * width + j] * right[j]);
      size_b += middle[i * width + j] * middle[i * width + j];
    }
    size_a += a[i] * a[i], size_c += right[i] * right[i];
    energy += a[i] * velocity[i], terms += absolute(a[i]) * sum;
  }
  of_norms[0] = size_a, of_norms[1] = size_b, of_norms[2] = size_c;
  energy -= 16 * Numbers<T>::eps * T(width) * terms;
}

// The next coefficient of a, B of its components, and what they add to that of |a|^2.
template <class T, int B>
inline void next_coefficient(const Group<T>& group, int n, int first) {
  using V = Vec<T>;
  const int k = group.width;
  V* coefficients = group.coefficients;
  V sums[B] = {};
  for (int j = 0; j <= n; ++j) {
    V norm = group.norms[j];
    const V* earlier = coefficients + (n - j) * k + first;
    for (int i = 0; i < B; ++i) sums[i] += norm * earlier[i];
  }
  const T scale = T(1) / (T(n + 1) * T(n + 2));
  const V* current = coefficients + n * k;
  for (int i = 0; i < B; ++i) {
    const int row = first + i, stop = row + group.band < k ? row + group.band : k - 1;
    V linear{};
    for (int m = row > group.band ? row - group.band : 0; m <= stop; ++m)
      linear += group.matrix[row * k + m] * current[m];
    coefficients[(n + 2) * k + row] = (linear + 2 * sums[i]) * scale;
  }
}

template <class T, int B>
inline void next_norm(const Group<T>& group, int n, int first, Vec<T>& norm, Vec<T>& last) {
  using V = Vec<T>;
  const int k = group.width;
  const V* coefficients = group.coefficients + first;
  V sums[B] = {};
  for (int j = 0; 2 * j < n; ++j)
    for (int i = 0; i < B; ++i) sums[i] += coefficients[j * k + i] * coefficients[(n - j) * k + i];
  for (int i = 0; i < B; ++i) {
    sums[i] *= 2;
    if (n % 2 == 0) sums[i] += coefficients[n / 2 * k + i] * coefficients[n / 2 * k + i];
    norm += sums[i];
  }
  last = sums[B - 1];
}

template <class T, int B = kBlock>
inline void next_coefficients(const Group<T>& group, int n, int first) {
  if (group.width - first >= B) {
    next_coefficient<T, B>(group, n, first);
    if (group.width - first > B) next_coefficients<T>(group, n, first + B);
  } else if constexpr (B > 1) {
    next_coefficients<T, B - 1>(group, n, first);
  }
}

template <class T, int B = kBlock>
inline void next_norms(const Group<T>& group, int n, int first, Vec<T>& norm, Vec<T>& last) {
  if (group.width - first >= B) {
    next_norm<T, B>(group, n, first, norm, last);
    if (group.width - first > B) next_norms<T>(group, n, first + B, norm, last);
  } else if constexpr (B > 1) {
    next_norms<T, B - 1>(group, n, first, norm, last);
  }
}

template <class T>
void Group<T>::expand_flow() {
  for (int i = 0; i < width; ++i) coefficients[i] = a[i], coefficients[width + i] = velocity[i];
  for (int n = 0; n <= order - 2; ++n) {
    V norm{}, of_last{};
    next_norms<T>(*this, n, 0, norm, of_last);
    norms[n] = norm, last[n] = of_last;
    next_coefficients<T>(*this, n, 0);
  }
}

template <class T>
void Group<T>::expand_tau() {
  for (int n = 0; n <= order - 2; ++n) logarithmic[n] = norms[n] / T(n + 1);
  V one = V{} + 1;
  tau[0] = sizes[0] = one, tau[1] = sizes[1] = V{};
  for (int n = 1; n < order; ++n) {
    V totals[2] = {}, absolutes[2] = {};  // two sums each, which do not wait for each other
    for (int j = 1; j <= n; ++j) {
      V term = logarithmic[j - 1] * tau[n - j];
      totals[j & 1] -= term, absolutes[j & 1] += absolute(term);
    }
    T scale = T(1) / T(n + 1);
    tau[n + 1] = (totals[0] + totals[1]) * scale;
    sizes[n + 1] = (absolutes[0] + absolutes[1]) * scale;
  }
}

// Steps that are lower bounds on the time left cannot pass the zero; Newton's method ends.
template <class T>
Vec<T> Group<T>::first_zero() const {
  V x{}, of_norms[3];
  for (int i = 0; i < kRootSteps; ++i) {
    V values[3];
    polynomial<T, 2>(tau, order, x, values);
    V square = values[0] * values[0];
    V a_squared = larger(values[1] * values[1] - values[0] * values[2], V{}) / square;
    norms_at(a_squared, of_norms);
    V bound = rough_lower_bound<T>(of_norms);
    bound = ((values[0] > 0) & is_finite<T>(bound)) ? bound : V{};
    x += bound;
    if (!any(bound > Numbers<T>::eps / 8 * x)) break;
  }
  for (int i = 0; i < 2; ++i) {
    V values[2];
    polynomial<T, 1>(tau, order, x, values);
    V step = values[0] / values[1];
    x -= absolute(step) < T(0.01) * x ? step : V{};
  }
  return x;
}

template <class T>
void Group<T>::bracket(V zero, V distance, V& lower, V& upper) const {
  V x = zero - distance, values[4], of_norms[3];
  polynomial<T, 3>(tau, order, x, values);
  V ratio = values[1] / values[0], energy;
  norms_at(ratio * ratio - values[2] / values[0], of_norms);
  energy = T(-0.5) * values[3] / values[0] + T(1.5) * ratio * values[2] / values[0];
  energy -= ratio * ratio * ratio;
  lower = x + carlson_rf<T>(of_norms[0], of_norms[1], of_norms[2]);
  V bound;
  FOR_LANES bound[l] = energy[l] > 0 ? 1 / std::cbrt(energy[l]) : Numbers<T>::infinity;
  upper = x + (energy == energy ? bound : energy);
}

template <class T>
Outcome<T> Group<T>::expand(V rtol) {
  expand_flow();
  expand_tau();
  const V zero = first_zero();
  V values[2], rounding[1], weight[1];
  polynomial<T, 1>(tau, order, zero, values);
  V power = V{} + 1, square = zero * zero;
  for (int n = 0; n < order - 3; ++n) power *= zero;
  V tail = (absolute(tau[order - 1]) + absolute(tau[order]) * zero) * square;
  tail += T(kEarlierTerms) * (absolute(tau[order - 3]) + absolute(tau[order - 2]) * zero);
  tail *= power;
  polynomial<T, 0>(sizes, order, zero, rounding);
  V wrong = absolute(values[0]) + tail + 4 * Numbers<T>::eps * rounding[0];
  if (any(truncated)) {
    for (int n = 0; n <= order - 2; ++n) last[n] /= T(n + 1) * T(n + 2);
    polynomial<T, 0>(last, order - 2, zero, weight);
    V missing = T(kMissing) * absolute(weight[0] * zero * zero);
    wrong += truncated ? missing : V{};
  }
  Outcome<T> outcome;
  outcome.time = zero, outcome.error = wrong / absolute(values[1]);
  // In these units the norms differ by at most 1, and the bracket's width is about distance^3.
  V width_asked = rtol * zero, distance, lower, upper;
  FOR_LANES distance[l] = std::cbrt(width_asked[l]);
  distance = smaller(distance, T(0.25) * zero);
  bracket(zero, distance, lower, upper);
  V excess, share = T(0.3) * width_asked;
  V ratio = share / larger(upper - lower, share);
  FOR_LANES excess[l] = std::isfinite(upper[l]) ? std::cbrt(ratio[l]) : T(0.03);
  bracket(zero, distance * excess, outcome.lower, outcome.upper);
  M narrow = absolute(outcome.upper - outcome.lower) <= width_asked;
  outcome.converged = narrow & (outcome.error <= width_asked) & (values[1] < 0);
  return outcome;
}

// How far an expansion is followed in the lanes that move, 0 in the others: `pace` times as far as
// its last terms stay below rounding. `size` of a power and a lane is the largest coefficient.
template <class T>
template <class Size>
Vec<T> Group<T>::step_within(const Size& size, int order, T eps, V pace, M& moving) const {
  V step{};
  FOR_LANES {
    if (!moving[l]) continue;
    T first = size(0, l), second = size(1, l), shortest = Numbers<T>::infinity;
    for (int n = order - 1; n <= order; ++n) {
      T end = size(n, l);  // every second term may be missing, by symmetry
      if (!(end > 0)) continue;
      T from_a = std::pow(eps * first / end, T(1) / n);
      T from_velocity = std::pow(eps * second / end, T(1) / (n - 1));
      T reach = from_a > from_velocity ? from_a : from_velocity;
      if (reach < shortest) shortest = reach;
    }
    step[l] = pace[l] * shortest;
  }
  moving &= is_finite<T>(step);
  return moving ? step : V{};
}

template <class T>
Vec<T> Group<T>::advance(V pace, M moving) {
  auto size = [&](int n, int l) {
    T most = 0;
    for (int i = 0; i < width; ++i) {
      T entry = std::fabs(coefficients[n * width + i][l]);
      if (!(entry <= most)) most = entry;
    }
    return most;
  };
  V step = step_within(size, order, Numbers<T>::eps, pace, moving);
  for (int i = 0; i < width; ++i) {
    V value{}, slope{};
    for (int n = order; n >= 0; --n) {
      slope = slope * step + value;
      value = value * step + coefficients[n * width + i];
    }
    a[i] = moving ? value : a[i], velocity[i] = moving ? slope : velocity[i];
  }
  return step;
}

// Noise in the point of each probe, as large as what is put into the states themselves: what
// rounding does from one expansion to the next shows in it.
template <class T>
void Group<T>::disturb(int turn) {
  V size{}, speed{}, noise;
  for (int i = 0; i < width; ++i) size += a[i] * a[i], speed += velocity[i] * velocity[i];
  size = root<T>(size / T(width)), speed = root<T>(speed / T(width));
  for (int i = 0; i < width; ++i)
    for (int part = 0; part < 2; ++part) {
      FOR_LANES {
        const int probe = l % kCopies;
        noise[l] = probe ? T(kNoise) * Numbers<T>::eps * T(sign_of(probe, 3 + part, turn, i)) : 0;
      }
      (part ? velocity : a)[i] += noise * (part ? speed : size);
    }
}

// Expands again and again until an expansion reaches the zero: `_follow` of _follow.py.
// `go_on` follows an expansion in the lanes that move, for a step that it returns.
template <class T>
template <class Advance>
void Group<T>::follow(V rtol, int max_expansions, const Advance& go_on, Outcome<T>& best,
                      M& steps) {
  V infinite = (V{} + 1) * Numbers<T>::infinity, elapsed{};
  best = {infinite, infinite, infinite, infinite, M{}};
  M settled{};
  steps = M{};
  for (int turn = 0; turn < max_expansions && any(~settled); ++turn) {
    V size{};
    for (int i = 0; i < width; ++i) size += a[i] * a[i];
    V end = a[width - 1] * a[width - 1] / (size > 0 ? size : V{} + 1);
    Outcome<T> outcome = expand(rtol);
    V total = elapsed + outcome.time, lost = truncated ? end * total : V{};
    V allowed = larger(V{} + 16 * Numbers<T>::eps, T(0.01) * rtol) * total;
    M narrow = absolute(outcome.upper - outcome.lower) <= rtol * total;
    M reached = narrow & (outcome.error <= allowed) & is_finite<T>(total) & ~settled;
    best.time = reached ? total : best.time;
    best.lower = reached ? elapsed + outcome.lower : best.lower;
    best.upper = reached ? elapsed + outcome.upper : best.upper;
    // Adding up the steps rounds, too; most of them are short beside the last ones.
    best.error = reached ? outcome.error + lost + 2 * Numbers<T>::eps * total : best.error;
    best.converged |= reached & (lost <= rtol * total);
    steps -= ~settled;  // a mask is -1
    settled |= reached;
    elapsed += go_on(turn, ~settled);
  }
}

}  // namespace
