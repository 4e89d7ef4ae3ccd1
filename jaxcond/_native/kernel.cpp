// The series method and the drawing of reduced Gaussian states on a CPU.
//
// A group of states is solved together, one in each lane of the machine's vectors; arrays of a
// group have one vector for each entry. Compiled once for each instruction set (JAXCOND_TARGET names
// it, JAXCOND_VECTOR_BYTES is the width of its vectors): see library.cpp for the choice among them.
// Nothing here may be an inline function of the standard library: the linker could keep the copy
// that was compiled for an instruction set that the machine lacks.

#include "kernel.h"

#include <cstdlib>
#include <cstring>

#include "expansion.h"
#include "random.h"
#include "reduction.h"

namespace {

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
          reduction.reduce(from_a, from_b, from_c, k, small, small_b, small_c);
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
      if (error != error) error = inf;  // of an overflow nothing is known
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

}  // namespace

namespace JAXCOND_TARGET {
int series_f64(const JaxcondSeries& s) { return solve<double>(s); }
int series_f32(const JaxcondSeries& s) { return solve<float>(s); }
int gaussian_f64(const JaxcondGaussian& s) { return draw<double>(s); }
int gaussian_f32(const JaxcondGaussian& s) { return draw<float>(s); }
}  // namespace JAXCOND_TARGET
