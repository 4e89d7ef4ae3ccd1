// What the kernels of all instruction sets take and return.
#pragma once

#include <cstdint>

// The series method for `count` states, one after another in memory, row by row; real arrays are of
// the precision of the function that is called.
struct JaxcondSeries {
  int64_t count, p, q;
  const void *a, *b, *c, *strength;  // (count, p), (count, p, q), (count, q), (count)
  const void* rtol;                  // (count) with stride 1, or one value with stride 0
  const uint8_t* truncated;          // likewise: whether the states stand for wider ones
  int64_t rtol_stride, truncated_stride;
  int32_t order, dim, max_expansions;
  int32_t extended;  // whether to follow the flow in double-double arithmetic, from doubles only
  void *time, *lower, *upper, *error;  // (count) each
  int32_t *status, *num_steps;         // codes of `Status`
};

// The gradient of the blow-up time by the layers, for `count` states as in `JaxcondSeries`.
struct JaxcondGradient {
  int64_t count, p, q;
  const void *a, *b, *c, *strength, *rtol;  // one tolerance for each state
  int32_t order, dim, max_expansions;
  void *of_a, *of_b, *of_c;  // of the shapes of a, b, c
};

// Samples of the reduced Gaussian ensemble by their global indices: `Gaussian.sample_reduced`.
struct JaxcondGaussian {
  int64_t count;
  const uint64_t* indices;
  double p, q, scales[3];
  uint32_t key[2];
  int32_t dim;
  void *a, *b, *c;  // (count, dim), (count, dim, dim), (count, dim)
};

// The pieces of the flow of state `index` among states of rank 1 and equal widths.
struct JaxcondPieces {
  int64_t index;
  int32_t dim, order, max_pieces;
  const void *a, *b, *c, *strength, *closeness;
  void *begin, *lag, *length;  // (count, max_pieces) each
  void *sides, *b_begin;       // (count, max_pieces, order + 1, 2, dim), (..., dim, dim)
  void *end_a, *end_b, *end_c, *elapsed;
};
