// The series method on a CPU: the mathematics of ../_taylor.py, ../_expansion.py and ../_series.py,
// and of the reduction and the drawing of reduced Gaussian states that go before it.
//
// A group of states is solved together, one in each lane of the machine's vectors; arrays of a
// group have one vector for each entry. Compiled once for each instruction set (JAXCOND_TARGET names
// it, JAXCOND_VECTOR_BYTES is the width of its vectors): see library.cpp for the choice among them.
// Nothing here may be an inline function of the standard library: the linker could keep the copy
// that was compiled for an instruction set that the machine lacks.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "kernel.h"

namespace {

template <class T>
struct Numbers;
template <>
struct Numbers<double> {
  using Word = int64_t;
  static constexpr double eps = 0x1p-52, infinity = __builtin_inf();
};
template <>
struct Numbers<float> {
  using Word = int32_t;
  static constexpr float eps = 0x1p-23f, infinity = __builtin_inff();
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

// Constants of _expansion.py and _series.py.
constexpr int kRootSteps = 14;
constexpr double kMissing = 0.25, kNoise = 64, kRoundingShare = 0.125, kLargestError = 1e-2;
constexpr double kPaces[3] = {0.85, 1.0, 0.7};
constexpr int kCopies = 3;  // a state and its two probes
constexpr int kBlock = 12;  // components whose sums are held in registers

// ---- Polynomials and bounds --------------------------------------------------------------------

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

// ---- A group of states -------------------------------------------------------------------------

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
  V middle_excess, other_excess, unit;
  M truncated;

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

  M prepare(V strength, M& finite, int (&exponents)[LANES]);
  void make_problem(V strength);
  void expand_flow();
  void expand_tau();
  V first_zero() const;
  void bracket(V zero, V distance, V& lower, V& upper) const;
  Outcome<T> expand(V rtol);
  V advance(V pace, M moving);
  void follow(V rtol, V pace, int max_expansions, Outcome<T>& best, M& steps);
};

// Brings the loaded states to unit scale; the lanes that cannot be solved are replaced by ones.
// Returns where the flow is at rest or comes to rest, as `comes_to_rest` of bounds.py.
template <class T>
Mask<T> Group<T>::prepare(V strength, M& finite, int (&exponents)[LANES]) {
  const int k = width;
  V largest{}, all = strength - strength;
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
  for (int part = 0; part < 3; ++part)
    for (int i = 0; i < lengths[part]; ++i)
      layers[part][i] = layers[part][i] * factor * rest_of_factor;

  V size_a{}, size_c{}, product{}, of_a{}, of_c{};
  M moves{}, bent{};
  // coefficients holds the images b c and b^T a for a moment.
  V *onto_a = a, *onto_c = velocity;
  for (int i = 0; i < k; ++i) {
    V sum{}, other{};
    for (int j = 0; j < k; ++j) {
      sum += middle[i * k + j] * right[j];
      other += middle[j * k + i] * left[j];
    }
    onto_a[i] = sum, onto_c[i] = other;
    moves |= (strength * sum != 0) | (strength * other != 0);
    size_a += left[i] * left[i], size_c += right[i] * right[i];
    of_a = larger(of_a, absolute(left[i])), of_c = larger(of_c, absolute(right[i]));
    product += left[i] * sum;
  }
  moves |= strength * of_a * of_c != 0;
  for (int i = 0; i < k; ++i)
    bent |= (onto_a[i] * size_a != left[i] * product) | (onto_c[i] * size_c != right[i] * product);
  V scale = size_a * size_c, x = size_a * scale, y = product * product, z = size_c * scale;
  V low = smaller(x, y), high = larger(x, y);
  V least = smaller(low, z), middle_one = larger(low, smaller(high, z));
  V sign = strength > 0 ? product : -product;
  M rests = ~moves | (~bent & (sign < 0) & (least == middle_one));
  M solvable = finite & ~rests;
  V one = V{} + 1;
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
  V one = V{} + 1, sign = strength < 0 ? -one : one;
  V size_a{}, size_b{}, size_c{};
  for (int i = 0; i < k; ++i) {
    right[i] *= sign;
    size_a += left[i] * left[i], size_c += right[i] * right[i];
  }
  for (int i = 0; i < k * k; ++i) size_b += middle[i] * middle[i];
  V total = root<T>(size_a + size_b + size_c), inverse;
  FOR_LANES {
    int exponent;
    std::frexp(total[l], &exponent);
    inverse[l] = std::ldexp(T(1), -exponent);
  }
  M swap = size_a > size_c;
  unit = inverse / absolute(strength);
  V square = inverse * inverse;
  size_a *= square, size_b *= square, size_c *= square;
  V smallest = swap ? size_c : size_a, other = swap ? size_a : size_c;
  middle_excess = size_b - smallest, other_excess = other - smallest;
  for (int i = 0; i < k; ++i) {
    V x = left[i] * inverse, y = right[i] * inverse;
    a[i] = swap ? y : x, right[i] = swap ? x : y;
  }
  int reach = 0;  // of b from the diagonal
  for (int i = 0; i < k; ++i)
    for (int j = 0; j <= i; ++j) {
      V x = middle[i * k + j] * inverse, y = middle[j * k + i] * inverse;
      middle[i * k + j] = swap ? y : x, middle[j * k + i] = swap ? x : y;
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
  V power = V{} + 1;
  for (int n = 0; n < order - 1; ++n) power *= zero;
  V tail = (absolute(tau[order - 1]) + absolute(tau[order]) * zero) * power;
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

// Follows the expansion part of the way in the lanes that move; the step, 0 in the others.
template <class T>
Vec<T> Group<T>::advance(V pace, M moving) {
  V step{};
  FOR_LANES {
    if (!moving[l]) continue;
    auto size = [&](int n) {
      T most = 0;
      for (int i = 0; i < width; ++i) {
        T entry = std::fabs(coefficients[n * width + i][l]);
        if (!(entry <= most)) most = entry;
      }
      return most;
    };
    T first = size(0), second = size(1), shortest = Numbers<T>::infinity;
    for (int n = order - 1; n <= order; ++n) {
      T end = size(n);  // every second term may be missing, by symmetry
      if (!(end > 0)) continue;
      T from_a = std::pow(Numbers<T>::eps * first / end, T(1) / n);
      T from_velocity = std::pow(Numbers<T>::eps * second / end, T(1) / (n - 1));
      T reach = from_a > from_velocity ? from_a : from_velocity;
      if (reach < shortest) shortest = reach;
    }
    step[l] = pace[l] * shortest;
  }
  moving &= is_finite<T>(step);
  step = moving ? step : V{};
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

// Expands again and again until an expansion reaches the zero: `_follow` of _series.py.
template <class T>
void Group<T>::follow(V rtol, V pace, int max_expansions, Outcome<T>& best, M& steps) {
  V infinite = (V{} + 1) * Numbers<T>::infinity, elapsed{};
  best = {infinite, infinite, infinite, infinite, M{}};
  M settled{};
  steps = M{};
  for (int turn = 0; turn < max_expansions && any(~settled); ++turn) {
    V size{}, of_norms[3];
    for (int i = 0; i < width; ++i) size += a[i] * a[i];
    V end = a[width - 1] * a[width - 1] / (size > 0 ? size : V{} + 1);
    norms_at(size, of_norms);
    V ahead = elapsed + rough_lower_bound<T>(of_norms);
    Outcome<T> outcome = expand(rtol);
    V total = elapsed + outcome.time, lost = truncated ? end * total : V{};
    V allowed = larger(V{} + 16 * Numbers<T>::eps, T(0.01) * rtol) * total;
    M narrow = absolute(outcome.upper - outcome.lower) <= rtol * total;
    M reached = narrow & (outcome.error <= allowed) & is_finite<T>(total) & ~settled;
    best.time = reached ? total : best.time;
    best.lower = reached ? elapsed + outcome.lower : (settled ? best.lower : ahead);
    best.upper = reached ? elapsed + outcome.upper : best.upper;
    best.error = reached ? outcome.error + lost : best.error;
    best.converged |= reached & (lost <= rtol * total);
    steps -= ~settled;  // a mask is -1
    settled |= reached;
    elapsed += advance(pace, ~settled);
  }
}

// ---- Reduction ---------------------------------------------------------------------------------

template <class T>
struct Loose {  // vectors at any address
  typedef T V __attribute__((vector_size(JAXCOND_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
inline Vec<T> load(const T* from) { return *reinterpret_cast<const typename Loose<T>::V*>(from); }
template <class T>
inline void store(T* to, Vec<T> x) { *reinterpret_cast<typename Loose<T>::V*>(to) = x; }

template <class T>
inline T sum_of(Vec<T> x) {
  T total = 0;
  FOR_LANES total += x[l];
  return total;
}

template <class T>
T dot(const T* x, const T* y, int64_t size) {
  Vec<T> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= size; i += 4 * LANES)
    for (int u = 0; u < 4; ++u) sums[u] += load(x + i + u * LANES) * load(y + i + u * LANES);
  for (; i + LANES <= size; i += LANES) sums[0] += load(x + i) * load(y + i);
  T total = sum_of<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < size; ++i) total += x[i] * y[i];
  return total;
}

// image = b right and other = left b in one pass over the rows of b.
template <class T>
void products(const T* b, int64_t p, int64_t q, const T* left, const T* right, T* image, T* other) {
  constexpr int R = 4;
  std::memset(other, 0, q * sizeof(T));
  for (int64_t i = 0; i < p; i += R) {
    const int rows = p - i < R ? int(p - i) : R;
    const T* row[R];
    T share[R], total[R];
    Vec<T> sums[R] = {};
    for (int r = 0; r < R; ++r) {
      row[r] = b + (i + (r < rows ? r : 0)) * q;
      share[r] = r < rows ? left[i + r] : 0;
    }
    int64_t j = 0;
    for (; j + LANES <= q; j += LANES) {
      Vec<T> x = load(right + j), y = load(other + j);
      for (int r = 0; r < R; ++r) {
        Vec<T> entry = load(row[r] + j);
        sums[r] += entry * x, y += share[r] * entry;
      }
      store(other + j, y);
    }
    for (int r = 0; r < R; ++r) total[r] = sum_of<T>(sums[r]);
    for (; j < q; ++j)
      for (int r = 0; r < R; ++r) total[r] += row[r][j] * right[j], other[j] += share[r] * row[r][j];
    for (int r = 0; r < rows; ++r) image[i + r] = total[r];
  }
}

template <class T>
void outside(T* vector, const T* basis, int num, int64_t size) {
  for (int i = 0; i < num; ++i) {
    // One at a time: as exact as all at once, and two passes are made anyway.
    const T share = dot(basis + i * size, vector, size);
    for (int64_t j = 0; j < size; ++j) vector[j] -= share * basis[i * size + j];
  }
}

// The unit vector of what `vector` has outside `num` rows of a basis, or zero if it has nothing;
// written to the next row. Decides as `_new_direction` of _reduction.py.
template <class T>
void grow(const T* vector, T* basis, int num, int64_t size) {
  T* next = basis + num * size;
  T largest = 0;
  for (int64_t j = 0; j < size; ++j) {
    T entry = std::fabs(vector[j]);
    if (!(entry <= largest)) largest = entry;
  }
  const T scale = largest == 0 ? 1 : largest;
  for (int64_t j = 0; j < size; ++j) next[j] = vector[j] / scale;
  const T before = std::sqrt(dot(next, next, size));
  outside(next, basis, num, size);
  const T once = std::sqrt(dot(next, next, size));
  outside(next, basis, num, size);
  const T twice = std::sqrt(dot(next, next, size));
  const bool independent = twice > 8 * Numbers<T>::eps * before && twice > T(0.1) * once;
  for (int64_t j = 0; j < size; ++j) next[j] = independent ? next[j] / twice : 0;
}

template <class T>
struct Reduction {
  T *left, *right, *image, *other, *previous;

  static size_t numbers(int k, int64_t p, int64_t q) { return (k + 2) * p + (k + 1) * q; }

  Reduction(T* memory, int k, int64_t p, int64_t q) {
    left = memory, right = left + k * p, image = right + k * q, other = image + p;
    previous = other + q;
  }

  // The reduced state a = |a| e_1, c = |c| e_1, b tridiagonal in k dimensions.
  void reduce(const T* a, const T* b, const T* c, int64_t p, int64_t q, int k, T* small_a,
              T* small_b, T* small_c) {
    std::memset(small_a, 0, k * sizeof(T));
    std::memset(small_c, 0, k * sizeof(T));
    std::memset(small_b, 0, size_t(k) * k * sizeof(T));
    grow(a, left, 0, p), grow(c, right, 0, q);
    small_a[0] = dot(a, left, p), small_c[0] = dot(c, right, q);
    for (int j = 0; j < k; ++j) {
      products(b, p, q, left + j * p, right + j * q, image, other);
      small_b[j * k + j] = dot(left + j * p, image, p);
      if (j > 0) small_b[(j - 1) * k + j] = dot(left + (j - 1) * p, image, p);
      if (j + 1 == k) break;
      grow(image, left, j + 1, p), grow(other, right, j + 1, q);
      small_b[(j + 1) * k + j] = dot(left + (j + 1) * p, image, p);
    }
  }
};

// ---- A batch -----------------------------------------------------------------------------------

// Signs of the noise in the probes: `_signs` of _series.py.
inline int sign_of(uint32_t probe, uint32_t layer, uint32_t i, uint32_t j) {
  uint32_t h = probe * 0x9E3779B1u ^ layer * 0x85EBCA77u ^ i * 0xC2B2AE3Du ^ j * 0x27D4EB2Fu;
  h ^= 0x165667B1u;
  h ^= h >> 15, h *= 0x2C1B3C6Du, h ^= h >> 12, h *= 0x297A2D39u, h ^= h >> 15;
  return 1 - 2 * int(h & 1);
}

template <class T>
void copy_lane(Vec<T>* to, int lane, const T* from, int rows, int columns, int stride, int k,
               int probe, int layer) {
  T noise = 0;
  if (probe) {
    T sum = 0;
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) sum += from[i * stride + j] * from[i * stride + j];
    noise = T(kNoise) * Numbers<T>::eps * std::sqrt(sum / (layer == 1 ? T(k) * k : T(k)));
  }
  const int height = layer == 1 ? k : 1;
  for (int i = 0; i < height; ++i)
    for (int j = 0; j < k; ++j) {
      T entry = i < rows && j < columns ? from[i * stride + j] : 0;
      if (probe) entry += noise * T(sign_of(probe, layer, i, j));
      to[i * k + j][lane] = entry;
    }
}

template <class T>
int solve(const JaxcondSeries& s) {
  const bool wide = (s.p > s.q ? s.p : s.q) > s.dim;
  const int k = wide ? s.dim : int(s.p > s.q ? s.p : s.q);
  const int copies = s.max_expansions == 1 ? 1 : kCopies, together = LANES / copies;
  const size_t group_bytes = Group<T>::vectors(k, s.order) * sizeof(Vec<T>);
  const size_t numbers = wide ? Reduction<T>::numbers(k, s.p, s.q) + size_t(k) * k + 2 * k : 0;
  const size_t bytes = (group_bytes + numbers * sizeof(T) + 127) / 64 * 64;
  char* memory = static_cast<char*>(std::aligned_alloc(64, bytes));
  if (!memory) return 1;
  Group<T> group(reinterpret_cast<Vec<T>*>(memory), k, s.order);
  T* small = reinterpret_cast<T*>(memory + group_bytes);
  T *small_b = small + 2 * k, *small_c = small + k;
  Reduction<T> reduction(small_b + size_t(k) * k, k, s.p, s.q);
  const T *a = static_cast<const T*>(s.a), *b = static_cast<const T*>(s.b);
  const T *c = static_cast<const T*>(s.c), *strengths = static_cast<const T*>(s.strength);
  const T* tolerances = static_cast<const T*>(s.rtol);

  for (int64_t start = 0; start < s.count; start += together) {
    const int states = s.count - start < together ? int(s.count - start) : together;
    Vec<T> strength, rtol, pace;
    FOR_LANES {
      // Lanes that are left over repeat the last one.
      const int place = l / copies < states ? l / copies : states - 1, probe = l % copies;
      const int64_t index = start + place;
      const T *from_a = a + index * s.p, *from_b = b + index * s.p * s.q, *from_c = c + index * s.q;
      int p = int(s.p), q = int(s.q);
      if (wide) {
        if (l % copies == 0 && l / copies < states)
          reduction.reduce(from_a, from_b, from_c, s.p, s.q, k, small, small_b, small_c);
        from_a = small, from_b = small_b, from_c = small_c, p = q = k;
      }
      copy_lane(group.left, l, from_a, 1, p, p, k, probe, 0);
      copy_lane(group.middle, l, from_b, p, q, q, k, probe, 1);
      copy_lane(group.right, l, from_c, 1, q, q, k, probe, 2);
      strength[l] = strengths[index];
      rtol[l] = tolerances[index * s.rtol_stride];
      group.truncated[l] = wide || s.truncated[index * s.truncated_stride] ? -1 : 0;
      pace[l] = T(kPaces[probe]);
    }
    Mask<T> finite, steps;
    int exponents[LANES];
    Mask<T> rests = group.prepare(strength, finite, exponents);
    FOR_LANES {
      if (!finite[l] || rests[l]) strength[l] = 1;
    }
    group.make_problem(strength);
    Outcome<T> outcome;
    if (copies == 1) {
      outcome = group.expand(rtol);
      steps = Mask<T>{} + 1;
    } else {
      group.follow(rtol, pace, s.max_expansions, outcome, steps);
    }
    for (int i = 0; i < states; ++i) {
      const int l = i * copies;
      const int64_t index = start + i;
      const T unit = group.unit[l], inf = Numbers<T>::infinity;
      T time = outcome.time[l] * unit, error = outcome.error[l] * unit, spread = 0;
      for (int probe = 1; probe < copies; ++probe) {
        const T other = outcome.time[l + probe] * group.unit[l + probe];
        // Noise may have taken its largest entry past a power of two.
        const T apart = std::fabs(std::ldexp(other, exponents[l] - exponents[l + probe]) - time);
        if (!(apart <= spread)) spread = apart;
      }
      error += T(kRoundingShare) * spread;
      const bool settled = outcome.converged[l] && error <= T(kLargestError) * time;
      const int status = !finite[l] ? 3 : rests[l] ? 1 : settled ? 0 : 2;
      const T values[] = {time, outcome.lower[l] * unit, outcome.upper[l] * unit, error};
      void* const results[] = {s.time, s.lower, s.upper, s.error};
      for (int r = 0; r < 4; ++r) {
        T value = std::ldexp(values[r], -exponents[l]);
        if (status == 1) value = r == 3 ? 0 : inf;
        if (status == 3) value = inf - inf;
        static_cast<T*>(results[r])[index] = value;
      }
      s.status[index] = status;
      s.num_steps[index] = int32_t(steps[l]);
    }
  }
  std::free(memory);
  return 0;
}

// ---- Random states -----------------------------------------------------------------------------

using Double = Vec<double>;
constexpr int kDraws = Vectors<double>::lanes;  // samples that are drawn together
typedef uint32_t Words __attribute__((vector_size(4 * kDraws)));
typedef uint64_t LongWords __attribute__((vector_size(8 * kDraws)));

inline LongWords bits_of(Double x) { return (LongWords)x; }
inline Double from_bits(LongWords x) { return (Double)x; }

// Threefry-2x32 with twenty rounds, as JAX: J. K. Salmon et al., Parallel random numbers: as easy as
// 1, 2, 3 (2011).
inline void threefry(Words key0, Words key1, Words& x0, Words& x1) {
  const int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const Words keys[3] = {key0, key1, key0 ^ key1 ^ 0x1BD11BDA};
  x0 += keys[0], x1 += keys[1];
  for (int i = 0; i < 5; ++i) {
    for (int r = 0; r < 4; ++r) {
      const int turn = rotations[i % 2][r];
      x0 += x1, x1 = (x1 << turn) | (x1 >> (32 - turn)), x1 ^= x0;
    }
    x0 += keys[(i + 1) % 3], x1 += keys[(i + 2) % 3] + uint32_t(i + 1);
  }
}

// `jax.random.fold_in`.
inline void fold_in(Words& key0, Words& key1, Words data) {
  Words x0{}, x1 = data;
  threefry(key0, key1, x0, x1);
  key0 = x0, key1 = x1;
}

// The middles of 2^52 cells of the unit interval, or 2^23 in single precision, from random words as
// `jax.random.bits` makes them.
template <class T>
inline Double uniform(Words key0, Words key1, uint32_t place) {
  Words x0{}, x1 = Words{} + place;
  threefry(key0, key1, x0, x1);
  const LongWords one = LongWords{} + 0x3FF0000000000000u;
  if constexpr (sizeof(T) == 8) {
    LongWords high = __builtin_convertvector(x0, LongWords);
    LongWords low = __builtin_convertvector(x1, LongWords);
    return (from_bits((high << 20) | (low >> 12) | one) - 1) + 0x1p-53;
  }
  LongWords word = __builtin_convertvector((x0 ^ x1) >> 9, LongWords);
  return (from_bits((word << 29) | one) - 1) + 0x1p-24;
}

// The logarithm of positive normal numbers, to a unit in the last place: s = f / (2 + f) and an even
// polynomial in s (the constants are those of FreeBSD's msun).
inline Double logarithm(Double x) {
  const uint64_t shift = 0x3FF0000000000000u - 0x3FE6A09E00000000u;
  LongWords i = bits_of(x) + shift;
  Double k = from_bits((i >> 52) | 0x4330000000000000u) - (0x1p52 + 1023);
  Double f = from_bits((i & 0x000FFFFFFFFFFFFFu) + 0x3FE6A09E00000000u) - 1;
  Double half = 0.5 * f * f, s = f / (2 + f), z = s * s, w = z * z;
  Double even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 +
                w * 1.531383769920937332e-01));
  Double odd = z * (6.666666666666735130e-01 + w * (2.857142874366239149e-01 +
               w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  Double rest = s * (half + even + odd) + k * 1.90821492927058770002e-10;
  return rest - half + f + k * 6.93147180369123816490e-01;
}

inline Double ratio(const double (&above)[8], const double (&below)[8], Double r) {
  Double x = Double{} + above[7], y = Double{} + below[7];
  for (int i = 6; i >= 0; --i) x = x * r + above[i], y = y * r + below[i];
  return x / y;
}

// The inverse of the normal distribution function: M. J. Wichura, Algorithm AS 241, Appl. Statist.
// 37 (1988) 477-484, exact to about 1e-16.
inline Double normal_quantile(Double u) {
  static const double a[8] = {3.3871328727963666080e0, 1.3314166789178437745e+2,
      1.9715909503065514427e+3, 1.3731693765509461125e+4, 4.5921953931549871457e+4,
      6.7265770927008700853e+4, 3.3430575583588128105e+4, 2.5090809287301226727e+3};
  static const double b[8] = {1, 4.2313330701600911252e+1, 6.8718700749205790830e+2,
      5.3941960214247511077e+3, 2.1213794301586595867e+4, 3.9307895800092710610e+4,
      2.8729085735721942674e+4, 5.2264952788528545610e+3};
  static const double c[8] = {1.42343711074968357734e0, 4.63033784615654529590e0,
      5.76949722146069140550e0, 3.64784832476320460504e0, 1.27045825245236838258e0,
      2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4};
  static const double d[8] = {1, 2.05319162663775882187e0, 1.67638483018380384940e0,
      6.89767334985100004550e-1, 1.48103976427480074590e-1, 1.51986665636164571966e-2,
      5.47593808499534494600e-4, 1.05075007164441684324e-9};
  static const double e[8] = {6.65790464350110377720e0, 5.46378491116411436990e0,
      1.78482653991729133580e0, 2.96560571828504891230e-1, 2.65321895265761230930e-2,
      1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7};
  static const double f[8] = {1, 5.99832206555887937690e-1, 1.36929880922735805310e-1,
      1.48753612908506148525e-2, 7.86869131145613259100e-4, 1.84631831751005468180e-5,
      1.42151175831644588870e-7, 2.04426310338993978564e-15};
  Double centred = u - 0.5, z = centred * ratio(a, b, 0.180625 - centred * centred);
  Mask<double> outer = absolute(centred) > 0.425;
  if (any(outer)) {
    Double depth = root<double>(-logarithm(centred < 0 ? u : 1 - u));
    Double tail = ratio(c, d, depth - 1.6);
    if (any(depth > 5)) tail = depth > 5 ? ratio(e, f, depth - 5) : tail;
    z = outer ? (centred < 0 ? -tail : tail) : z;
  }
  return z;
}

constexpr int kWordsOfStep = 5, kMaxRounds = 64;

// Chi variates by Marsaglia and Tsang, as `chi` of sampling/_chi.py: see there.
template <class T>
Double chi(double degrees, Words key0, Words key1, uint32_t place) {
  if (degrees <= 0) return Double{};
  const double d = (degrees < 2 ? 2 : degrees) / 2 - 1. / 3, rate = 1 / (3 * std::sqrt(d));
  Double y{}, x{};
  Mask<double> done{};
  for (uint32_t round = 0; round < kMaxRounds && any(~done); ++round) {
    Words round0 = key0, round1 = key1;
    fold_in(round0, round1, Words{} + round);
    x = normal_quantile(uniform<T>(round0, round1, place));
    if (degrees < 2) return absolute(x);
    Double u = uniform<T>(round0, round1, place + 1), proposal = rate * x;
    Mask<double> near = absolute(proposal) < 0.02;
    Double safe = larger(proposal, Double{} - 0.999999), grown = 1 + safe;
    Double series = -0.75 + safe * (0.6 + safe * (-0.5 + safe * (3. / 7 - 0.375 * safe)));
    Double close = x * x / 9 * safe * safe * series;
    Double far = 0.5 * x * x + d * (1 - grown * grown * grown + 3 * logarithm(grown));
    Mask<double> accepted = (proposal > -1) & (logarithm(u) < (near ? close : far));
    y = done ? y : proposal;
    done |= accepted;
  }
  Double grown = 1 + y;
  return std::sqrt(2 * d) * grown * root<double>(grown);
}

template <class T>
int draw(const JaxcondGaussian& s) {
  const int k = s.dim;
  const double least = s.p < s.q ? s.p : s.q;
  for (int64_t start = 0; start < s.count; start += kDraws) {
    const int states = s.count - start < kDraws ? int(s.count - start) : kDraws;
    Words key0 = Words{} + s.key[0], key1 = Words{} + s.key[1], low, high;
    for (int l = 0; l < kDraws; ++l) {
      const uint64_t index = s.indices[start + (l < states ? l : states - 1)];
      low[l] = uint32_t(index), high[l] = uint32_t(index >> 32);
    }
    fold_in(key0, key1, low);
    if (any(high != 0)) {
      Words folded0 = key0, folded1 = key1;
      fold_in(folded0, folded1, high);
      key0 = high != 0 ? folded0 : key0, key1 = high != 0 ? folded1 : key1;
    }
    Words first0 = key0, first1 = key1;
    fold_in(first0, first1, Words{});
    T *a = static_cast<T*>(s.a) + start * k, *c = static_cast<T*>(s.c) + start * k;
    T* b = static_cast<T*>(s.b) + start * k * k;
    std::memset(a, 0, size_t(states) * k * sizeof(T));
    std::memset(b, 0, size_t(states) * k * k * sizeof(T));
    std::memset(c, 0, size_t(states) * k * sizeof(T));
    for (int j = 0; j < k; ++j) {
      const uint32_t place = kWordsOfStep * j;
      const bool exists = j <= least;
      Double diagonal{};
      if (j < least) diagonal = s.scales[1] * normal_quantile(uniform<T>(first0, first1, place));
      Double chi_p = chi<T>(exists ? s.p - j : 0, key0, key1, place + 1);
      Double chi_q = chi<T>(exists ? s.q - j : 0, key0, key1, place + 3);
      chi_p *= j ? s.scales[1] : s.scales[0], chi_q *= j ? s.scales[1] : s.scales[2];
      for (int l = 0; l < states; ++l) {
        b[(l * k + j) * k + j] = T(diagonal[l]);
        (j ? b[(l * k + j) * k + j - 1] : a[l * k]) = T(chi_p[l]);
        (j ? b[(l * k + j - 1) * k + j] : c[l * k]) = T(chi_q[l]);
      }
    }
  }
  return 0;
}

}  // namespace

namespace JAXCOND_TARGET {
int series_f64(const JaxcondSeries& s) { return solve<double>(s); }
int series_f32(const JaxcondSeries& s) { return solve<float>(s); }
int gaussian_f64(const JaxcondGaussian& s) { return draw<double>(s); }
int gaussian_f32(const JaxcondGaussian& s) { return draw<float>(s); }
}  // namespace JAXCOND_TARGET
