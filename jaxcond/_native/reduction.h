// The reduction of one state of rank 1 to a few dimensions: `reduce` of ../_reduction.py.
#pragma once

#include <cstring>

#include "vectors.h"

namespace {

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

}  // namespace
