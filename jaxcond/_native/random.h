// Random numbers by Threefry, normal and chi variates, and reduced Gaussian states: the mathematics
// of ../sampling, to rounding the same numbers.
#pragma once

#include <cstring>

#include "kernel.h"
#include "vectors.h"

namespace {

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
