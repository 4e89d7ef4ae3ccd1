// The series method and its gradient, the pieces of a flow, and the drawing of reduced Gaussian states on a CPU.
//
// In the series method a group of states is solved together, one in each lane of the machine's vectors; arrays of a
// group have one vector for each entry. Compiled once for each instruction set (JAXCOND_TARGET names
// it, JAXCOND_VECTOR_BYTES is the width of its vectors): see library.cpp for the choice among them.
// Nothing here may be an inline function of the standard library: the linker could keep the copy
// that was compiled for an instruction set that the machine lacks.

#include "kernel.h"

#include <cstdlib>
#include <cstring>

#include "expansion.h"
#include "extended.h"
#include "gradient.h"
#include "pieces.h"
#include "random.h"
#include "reduction.h"

namespace {

template <class T>
void copy_lane(Vec<T>* to, int lane, const T* from, int rows, int columns, int stride, int k,
               int probe, int layer) {
  T noise = 0;
  if (probe) {
    // Squares of the entries must neither overflow nor vanish.
    T largest = 0, sum = 0;
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) {
        const T entry = std::fabs(from[i * stride + j]);
        if (entry > largest) largest = entry;
      }
    const T scale = largest == 0 ? 1 : largest;
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) {
        const T entry = from[i * stride + j] / scale;
        sum += entry * entry;
      }
    noise = T(kNoise) * Numbers<T>::eps * scale * std::sqrt(sum / (layer == 1 ? T(k) * k : T(k)));
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
  const bool extended = s.extended != 0;
  const size_t extended_bytes = extended ? Extended::pairs(k) * sizeof(Pair) : 0;
  const size_t numbers = wide ? Reduction<T>::numbers(k, s.p, s.q) + size_t(k) * k + 2 * k : 0;
  const size_t bytes = (group_bytes + extended_bytes + numbers * sizeof(T) + 127) / 64 * 64;
  char* memory = static_cast<char*>(std::aligned_alloc(64, bytes));
  if (!memory) return 1;
  Group<T> group(reinterpret_cast<Vec<T>*>(memory), k, s.order);
  Extended finer(reinterpret_cast<Pair*>(memory + group_bytes), k);
  T* small = reinterpret_cast<T*>(memory + group_bytes + extended_bytes);
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
          reduction.reduce(from_a, from_b, from_c, k, small, small_b, small_c);
        from_a = small, from_b = small_b, from_c = small_c, p = q = k;
      }
      // The noise of finer probes is finer than the numbers of the state.
      const int noisy = extended ? 0 : probe;
      copy_lane(group.left, l, from_a, 1, p, p, k, noisy, 0);
      copy_lane(group.middle, l, from_b, p, q, q, k, noisy, 1);
      copy_lane(group.right, l, from_c, 1, q, q, k, noisy, 2);
      strength[l] = strengths[index];
      rtol[l] = tolerances[index * s.rtol_stride];
      group.truncated[l] = wide || s.truncated[index * s.truncated_stride] ? -1 : 0;
      pace[l] = T(kPaces[probe]);
    }
    Mask<T> finite, steps;
    int exponents[LANES];
    Mask<T> rests = group.prepare(strength, wide, finite, exponents);
    FOR_LANES {
      if (!finite[l] || rests[l]) strength[l] = 1;
    }
    group.make_problem(strength);
    Vec<T> norms[3], energy;
    group.start(norms, energy);
    Outcome<T> outcome;
    auto plain = [&](int turn, Mask<T> moving) {
      Vec<T> step = group.advance(pace, moving);
      group.disturb(turn);
      return step;
    };
    if (copies == 1) {
      outcome = group.expand(rtol);
      steps = Mask<T>{} + 1;
    } else if constexpr (sizeof(T) == 8) {
      if (extended) {
        finer.load(group);
        auto advance = [&](int turn, Mask<T> moving) {
          Vec<T> step = finer.advance(group, pace, moving);
          finer.disturb(turn);
          for (int i = 0; i < k; ++i)
            group.a[i] = finer.a[i].high, group.velocity[i] = finer.velocity[i].high;
          return step;
        };
        group.follow(rtol, s.max_expansions, advance, outcome, steps);
      } else {
        group.follow(rtol, s.max_expansions, plain, outcome, steps);
      }
    } else {
      group.follow(rtol, s.max_expansions, plain, outcome, steps);
    }
    // Of the states that are not settled, the bracket at the start is all that is certain.
    const Vec<T> ahead = carlson_rf<T>(norms[0], norms[1], norms[2]);
    const T rounding = 16 * Numbers<T>::eps * T(k);
    for (int i = 0; i < states; ++i) {
      const int l = i * copies;
      const int64_t index = start + i;
      const T unit = group.unit[l], inf = Numbers<T>::infinity, eps = Numbers<T>::eps;
      T time = outcome.time[l] * unit, error = outcome.error[l] * unit, spread = 0;
      bool some_reach = outcome.converged[l];
      for (int probe = 1; probe < copies; ++probe) {
        const T other = outcome.time[l + probe] * group.unit[l + probe];
        // Noise may have taken its largest entry past a power of two.
        const T apart = std::fabs(std::ldexp(other, exponents[l] - exponents[l + probe]) - time);
        if (!(apart <= spread)) spread = apart;
        some_reach |= outcome.converged[l + probe];
      }
      // Noise that moves the time that far is beyond where its effect is proportional to it, and a
      // state that comes to rest may lie as close.
      const T condition = spread <= T(kLargestShift) * time ? T(kRoundingShare) * spread : inf;
      error += condition;
      if (error != error) error = inf;  // of an overflow nothing is known
      const bool settled = outcome.converged[l] && error <= rtol[l] * time;
      const bool limited = copies > 1 && some_reach && !(condition <= rtol[l] * time);
      int status = !finite[l] ? 3 : rests[l] ? 1 : settled ? 0 : limited ? 4 : 2;
      T lower = ahead[l] * unit * (1 - rounding), upper = inf;
      if (energy[l] > 0) upper = unit / std::cbrt(energy[l]) * (1 + rounding);
      if (status == 4 && error == inf) time = inf;
      if (error < inf && outcome.lower[l] < inf) {
        // What is proven of the state that was reached, and how far it may be from the true one.
        const T margin = error + 4 * eps * time;
        const T low = outcome.lower[l] * unit, high = outcome.upper[l] * unit;
        lower = larger(lower, smaller(low, time) - margin);
        upper = smaller(upper, larger(high, time) + margin);
        time = smaller(larger(time, lower), upper);
      }
      const T values[] = {time, lower, upper, error};
      void* const results[] = {s.time, s.lower, s.upper, s.error};
      for (int r = 0; r < 4; ++r) {
        T value = std::ldexp(values[r], -exponents[l]);
        // Beyond the range of the numbers.
        if (r == 0 && status == 0 && value == inf) status = 2;
        if (r == 1 && value == inf) value = Numbers<T>::largest;
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

template <class T>
int differentiate(const JaxcondGradient& s) {
  const bool wide = (s.p > s.q ? s.p : s.q) > s.dim;
  const int k = wide ? s.dim : int(s.p > s.q ? s.p : s.q);
  const int together = s.count < LANES ? int(s.count) : LANES;
  const size_t group_vectors = Group<T>::vectors(k, s.order);
  const size_t all_vectors = group_vectors + Backward<T>::vectors(k, s.order, s.max_expansions);
  const size_t square = size_t(k) * k, each = wide ? Reduction<T>::numbers(k, s.p, s.q) : 0;
  const size_t rows = wide ? (k + 1) * filled_up(s.q, LANES) : 0;
  const size_t numbers = square + 2 * k + each * together + rows;
  const size_t bytes = (all_vectors * sizeof(Vec<T>) + numbers * sizeof(T) + 127) / 64 * 64;
  char* memory = static_cast<char*>(std::aligned_alloc(64, bytes));
  if (!memory) return 1;
  Vec<T>* vectors = reinterpret_cast<Vec<T>*>(memory);
  Group<T> group(vectors, k, s.order);
  Backward<T> backward(vectors + group_vectors, group, s.max_expansions);
  T* small = reinterpret_cast<T*>(vectors + all_vectors);
  T *small_c = small + k, *small_b = small_c + k, *bases = small_b + square;
  T* lifted = bases + each * together;
  const T *a = static_cast<const T*>(s.a), *b = static_cast<const T*>(s.b);
  const T *c = static_cast<const T*>(s.c), *strengths = static_cast<const T*>(s.strength);
  const T* tolerances = static_cast<const T*>(s.rtol);
  T *to_a = static_cast<T*>(s.of_a), *to_b = static_cast<T*>(s.of_b);
  T* to_c = static_cast<T*>(s.of_c);

  for (int64_t start = 0; start < s.count; start += together) {
    const int states = s.count - start < together ? int(s.count - start) : together;
    Vec<T> strength, rtol;
    FOR_LANES {
      // Lanes that are left over repeat the last one.
      const int place = l < states ? l : states - 1;
      const int64_t index = start + place;
      const T *from_a = a + index * s.p, *from_b = b + index * s.p * s.q, *from_c = c + index * s.q;
      int p = int(s.p), q = int(s.q);
      if (wide) {
        if (l < states)
          Reduction<T>(bases + each * l, k, s.p, s.q)
              .reduce(from_a, from_b, from_c, k, small, small_b, small_c);
        from_a = small, from_b = small_b, from_c = small_c, p = q = k;
      }
      copy_lane(group.left, l, from_a, 1, p, p, k, 0, 0);
      copy_lane(group.middle, l, from_b, p, q, q, k, 0, 1);
      copy_lane(group.right, l, from_c, 1, q, q, k, 0, 2);
      strength[l] = strengths[index], rtol[l] = tolerances[index];
    }
    group.truncated = Mask<T>{};
    Mask<T> finite;
    int exponents[LANES];
    Mask<T> rests = group.prepare(strength, wide, finite, exponents);
    FOR_LANES {
      if (!finite[l] || rests[l]) strength[l] = 1;
    }
    group.make_problem(strength);
    backward.run(rtol, s.max_expansions);
    for (int l = 0; l < states; ++l) {
      const int64_t index = start + l;
      T *of_a = to_a + index * s.p, *of_b = to_b + index * s.p * s.q, *of_c = to_c + index * s.q;
      // The gradient of a time that is inversely proportional to the scale.
      auto scaled = [&](Vec<T> x) {
        return std::ldexp(std::ldexp(x[l], -exponents[l]), -exponents[l]);
      };
      if (wide) {
        for (int i = 0; i < k; ++i) small[i] = scaled(backward.of_left[i]);
        for (size_t i = 0; i < square; ++i) small_b[i] = scaled(backward.of_middle[i]);
        for (int i = 0; i < k; ++i) small_c[i] = scaled(backward.of_right[i]);
        lift(Reduction<T>(bases + each * l, k, s.p, s.q), k, small, small_b, small_c, lifted, of_a,
             of_b, of_c);
        continue;
      }
      for (int i = 0; i < s.p; ++i) of_a[i] = scaled(backward.of_left[i]);
      for (int i = 0; i < s.q; ++i) of_c[i] = scaled(backward.of_right[i]);
      for (int i = 0; i < s.p; ++i)
        for (int j = 0; j < s.q; ++j)
          of_b[i * s.q + j] = scaled(backward.of_middle[size_t(i) * k + j]);
    }
  }
  std::free(memory);
  return 0;
}

}  // namespace

namespace JAXCOND_TARGET {
int series_f64(const JaxcondSeries& s) { return solve<double>(s); }
int series_f32(const JaxcondSeries& s) { return solve<float>(s); }
int gradient_f64(const JaxcondGradient& s) { return differentiate<double>(s); }
int gradient_f32(const JaxcondGradient& s) { return differentiate<float>(s); }
int pieces_f64(const JaxcondPieces& s) { return follow<double>(s); }
int pieces_f32(const JaxcondPieces& s) { return follow<float>(s); }
int gaussian_f64(const JaxcondGaussian& s) { return draw<double>(s); }
int gaussian_f32(const JaxcondGaussian& s) { return draw<float>(s); }
}  // namespace JAXCOND_TARGET
