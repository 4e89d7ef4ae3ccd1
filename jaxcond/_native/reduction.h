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

inline int64_t filled_up(int64_t size, int lanes) { return (size + lanes - 1) / lanes * lanes; }

// Vectors and rows of the bases are filled up with zeros to whole vectors of the machine.
template <class T>
T dot(const T* x, const T* y, int64_t size) {
  Vec<T> sums[2] = {};
  for (int64_t i = 0; i < size; i += 2 * LANES) {
    sums[0] += load(x + i) * load(y + i);
    if (i + LANES < size) sums[1] += load(x + i + LANES) * load(y + i + LANES);
  }
  return sum_of<T>(sums[0] + sums[1]);
}

constexpr double kRounding = 64;  // of _reduction.py
constexpr int kRows = 4;  // that are worked on together, so that sums do not wait for each other

// image = b right and other = left b in one pass over the rows of b, which are `stride` apart; their
// first `whole` entries are taken as vectors, the rest up to `q` one by one.
template <class T>
void products(const T* b, int64_t stride, int64_t p, int64_t q, int64_t whole, const T* left,
              const T* right, T* image, T* other) {
  std::memset(other, 0, filled_up(q, LANES) * sizeof(T));
  for (int64_t i = 0; i < p; i += kRows) {
    const int rows = p - i < kRows ? int(p - i) : kRows;
    const T* row[kRows];
    T share[kRows];
    Vec<T> sums[kRows] = {};
    for (int r = 0; r < kRows; ++r) {
      row[r] = b + (i + (r < rows ? r : 0)) * stride;
      share[r] = r < rows ? left[i + r] : 0;
    }
    for (int64_t j = 0; j < whole; j += LANES) {
      Vec<T> x = load(right + j), y = load(other + j);
      for (int r = 0; r < kRows; ++r) {
        Vec<T> entry = load(row[r] + j);
        sums[r] += entry * x, y += share[r] * entry;
      }
      store(other + j, y);
    }
    for (int r = 0; r < rows; ++r) image[i + r] = sum_of<T>(sums[r]);
    for (int64_t j = whole; j < q; ++j)
      for (int r = 0; r < rows; ++r)
        image[i + r] += row[r][j] * right[j], other[j] += share[r] * row[r][j];
  }
}

// Takes away what a vector has along `num` rows of a basis.
template <class T>
void project_out(T* vector, const T* basis, int num, int64_t size) {
  for (int i = 0; i < num; i += kRows) {
    const T* row[kRows];
    T share[kRows];
    Vec<T> sums[kRows] = {};
    for (int r = 0; r < kRows; ++r) row[r] = basis + (i + r < num ? i + r : i) * size;
    for (int64_t j = 0; j < size; j += LANES) {
      Vec<T> x = load(vector + j);
      for (int r = 0; r < kRows; ++r) sums[r] += load(row[r] + j) * x;
    }
    for (int r = 0; r < kRows; ++r) share[r] = i + r < num ? sum_of<T>(sums[r]) : 0;
    for (int64_t j = 0; j < size; j += LANES) {
      Vec<T> x = load(vector + j);
      for (int r = 0; r < kRows; ++r) x -= share[r] * load(row[r] + j);
      store(vector + j, x);
    }
  }
}

// The unit vector of what `vector` has outside `num` rows of a basis, or zero if it has nothing;
// written to the next row. Decides as `_new_direction` of _reduction.py.
template <class T>
bool grow(const T* vector, T* basis, int num, int64_t size) {
  T* next = basis + num * size;
  Vec<T> most{};
  for (int64_t j = 0; j < size; j += LANES) most = larger(most, absolute(load(vector + j)));
  T largest = 0;
  FOR_LANES if (most[l] > largest) largest = most[l];
  const T scale = largest == 0 ? 1 : largest;
  for (int64_t j = 0; j < size; j += LANES) store(next + j, load(vector + j) / scale);
  const T before = std::sqrt(dot(next, next, size));
  project_out(next, basis, num, size);
  const T once = std::sqrt(dot(next, next, size));
  project_out(next, basis, num, size);
  const T twice = std::sqrt(dot(next, next, size));
  const bool independent = twice > T(kRounding) * Numbers<T>::eps * before && twice > T(0.1) * once;
  for (int64_t j = 0; j < size; j += LANES) {
    Vec<T> entry = load(next + j);
    store(next + j, independent ? entry / twice : Vec<T>{});
  }
  return independent;
}

template <class T>
struct Reduction {
  // Middle layers up to so many entries are copied where their rows do not fill whole vectors.
  static constexpr int64_t kCopied = 1 << 16;

  int64_t p, q, size_p, size_q;
  T *left, *right, *image, *other, *middle;

  static bool copies(int64_t p, int64_t q) { return q % LANES != 0 && p * q <= kCopied; }

  static size_t numbers(int k, int64_t p, int64_t q) {
    const int64_t size_p = filled_up(p, LANES), size_q = filled_up(q, LANES);
    return (k + 2) * size_p + (k + 2) * size_q + (copies(p, q) ? p * size_q : 0);
  }

  Reduction(T* memory, int k, int64_t rows, int64_t columns) : p(rows), q(columns) {
    size_p = filled_up(p, LANES), size_q = filled_up(q, LANES);
    left = memory, right = left + k * size_p, image = right + k * size_q;
    other = image + 2 * size_p, middle = other + 2 * size_q;
  }

  // The reduced state a = |a| e_1, c = |c| e_1, b tridiagonal in k dimensions.
  void reduce(const T* a, const T* b, const T* c, int k, T* small_a, T* small_b, T* small_c) {
    std::memset(small_a, 0, k * sizeof(T));
    std::memset(small_c, 0, k * sizeof(T));
    std::memset(small_b, 0, size_t(k) * k * sizeof(T));
    std::memset(image, 0, size_p * sizeof(T));
    int64_t stride = q, whole = q / LANES * LANES;
    if (copies(p, q)) {
      for (int64_t i = 0; i < p; ++i) {
        std::memcpy(middle + i * size_q, b + i * q, q * sizeof(T));
        std::memset(middle + i * size_q + q, 0, (size_q - q) * sizeof(T));
      }
      b = middle, stride = whole = size_q;
    }
    T *of_a = image + size_p, *of_c = other + size_q;  // the layers, filled up
    std::memset(of_a, 0, size_p * sizeof(T)), std::memcpy(of_a, a, p * sizeof(T));
    std::memset(of_c, 0, size_q * sizeof(T)), std::memcpy(of_c, c, q * sizeof(T));
    bool lagging = !grow(of_a, left, 0, size_p);
    grow(of_c, right, 0, size_q);
    small_a[0] = dot(of_a, left, size_p), small_c[0] = dot(of_c, right, size_q);
    for (int j = 0; j < k; ++j) {
      const T* row = left + j * size_p;
      products(b, stride, p, q, whole, row, right + j * size_q, image, other);
      // Where a layer vanishes, the images of one side lag behind those of the other.
      if (lagging && grow(image, left, j, size_p))
        products(b, stride, p, q, whole, row, right + j * size_q, image, other);
      small_b[j * k + j] = dot(row, image, size_p);
      if (j > 0) small_b[(j - 1) * k + j] = dot(row - size_p, image, size_p);
      if (j + 1 == k) break;
      lagging = !grow(image, left, j + 1, size_p);
      grow(other, right, j + 1, size_q);
      small_b[(j + 1) * k + j] = dot(row + size_p, image, size_p);
    }
  }
};

}  // namespace
