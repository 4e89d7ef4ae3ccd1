// The library's entry points: which instruction set serves, plain C functions for arrays in memory,
// and the handlers of XLA's foreign function interface for traced programs.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "kernel.h"
#include "xla/ffi/api/ffi.h"

#define DECLARE(target)                  \
  namespace target {                     \
  int series_f64(const JaxcondSeries&);  \
  int series_f32(const JaxcondSeries&);  \
  int gradient_f64(const JaxcondGradient&); \
  int gradient_f32(const JaxcondGradient&); \
  int pieces_f64(const JaxcondPieces&);  \
  int pieces_f32(const JaxcondPieces&);  \
  int gaussian_f64(const JaxcondGaussian&); \
  int gaussian_f32(const JaxcondGaussian&); \
  }
DECLARE(baseline)
#ifdef JAXCOND_X86
DECLARE(avx2)
DECLARE(avx512)
#endif

namespace {

struct Target {
  const char* name;
  int (*series_f64)(const JaxcondSeries&);
  int (*series_f32)(const JaxcondSeries&);
  int (*gradient_f64)(const JaxcondGradient&);
  int (*gradient_f32)(const JaxcondGradient&);
  int (*pieces_f64)(const JaxcondPieces&);
  int (*pieces_f32)(const JaxcondPieces&);
  int (*gaussian_f64)(const JaxcondGaussian&);
  int (*gaussian_f32)(const JaxcondGaussian&);
};

#define TARGET(target)                                                               \
  Target{#target,            target::series_f64,   target::series_f32,                  \
         target::gradient_f64, target::gradient_f32, target::pieces_f64,               \
         target::pieces_f32, target::gaussian_f64, target::gaussian_f32}

// The targets that this machine can run, the best one first.
std::vector<Target> supported() {
  std::vector<Target> targets;
#ifdef JAXCOND_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    targets.push_back(TARGET(avx512));
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    targets.push_back(TARGET(avx2));
#endif
  targets.push_back(TARGET(baseline));
  return targets;
}

Target& target() {
  static Target chosen = supported().front();
  return chosen;
}

}  // namespace

extern "C" {

// Raised whenever an entry point changes, so that a stale library is not taken for this one.
int jaxcond_version() { return 4; }

const char* jaxcond_target() { return target().name; }

// Chooses the instruction set by its name; 0 unless the machine lacks it.
int jaxcond_choose(const char* name) {
  for (const Target& candidate : supported())
    if (std::strcmp(candidate.name, name) == 0) return target() = candidate, 0;
  return 1;
}

int jaxcond_series_f64(const JaxcondSeries* series) { return target().series_f64(*series); }
int jaxcond_series_f32(const JaxcondSeries* series) { return target().series_f32(*series); }

int jaxcond_gradient_f64(const JaxcondGradient* part) { return target().gradient_f64(*part); }
int jaxcond_gradient_f32(const JaxcondGradient* part) { return target().gradient_f32(*part); }

int jaxcond_gaussian_f64(const JaxcondGaussian* draws) { return target().gaussian_f64(*draws); }
int jaxcond_gaussian_f32(const JaxcondGaussian* draws) { return target().gaussian_f32(*draws); }
}

namespace {

namespace ffi = xla::ffi;

// States that a thread takes at a time.
constexpr int64_t kShare = 256;

template <class T>
JaxcondSeries part_of(const JaxcondSeries& whole, int64_t start, int64_t count) {
  JaxcondSeries part = whole;
  auto moved = [&](auto* pointer, int64_t each) {
    using Pointer = decltype(pointer);
    auto* numbers = const_cast<T*>(static_cast<const T*>(pointer));
    return static_cast<Pointer>(numbers + start * each);
  };
  part.count = count;
  part.a = moved(whole.a, whole.p), part.b = moved(whole.b, whole.p * whole.q);
  part.c = moved(whole.c, whole.q), part.strength = moved(whole.strength, 1);
  part.rtol = moved(whole.rtol, whole.rtol_stride);
  part.truncated = whole.truncated + start * whole.truncated_stride;
  part.time = moved(whole.time, 1), part.lower = moved(whole.lower, 1);
  part.upper = moved(whole.upper, 1), part.error = moved(whole.error, 1);
  part.status = whole.status + start, part.num_steps = whole.num_steps + start;
  return part;
}

// What the threads that run the parts of a batch share. It outlives the batch, as a helper may begin
// when all is done.
struct Parts {
  std::atomic<int64_t> next{0};
  std::atomic<int> failed{0};
  std::mutex mutex;
  std::condition_variable ended;
  int64_t done = 0;
};

// Runs the parts of a batch on the threads of XLA's pool and on this one. This one may be of the
// pool, and so may all that the helpers could run on: it waits for parts, never for a helper.
template <class Part>
int on_threads(ffi::ThreadPool& pool, int64_t parts, const Part& run) {
  const auto shared = std::make_shared<Parts>();
  const auto work = [shared, parts, &run] {
    for (int64_t i = shared->next++; i < parts; i = shared->next++) {
      if (run(i)) shared->failed = 1;
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (++shared->done == parts) shared->ended.notify_one();
    }
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), parts) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([work] { work(); });
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->ended.wait(lock, [&] { return shared->done == parts; });
  return shared->failed;
}

template <ffi::DataType type>
using Buffer = ffi::Buffer<type>;
template <ffi::DataType type>
using Out = ffi::Result<ffi::Buffer<type>>;

template <class T, ffi::DataType type>
ffi::Error series(ffi::ThreadPool pool, int (*solve)(const JaxcondSeries&), int32_t order,
                  int32_t dim, int32_t max_expansions, Buffer<type> a, Buffer<type> b,
                  Buffer<type> c, Buffer<type> strength, Buffer<type> rtol,
                  Buffer<ffi::PRED> truncated, Out<type> time, Out<type> lower, Out<type> upper,
                  Out<type> error, Out<ffi::S32> status, Out<ffi::S32> num_steps) {
  JaxcondSeries whole;
  whole.count = strength.element_count();
  whole.p = a.dimensions().back(), whole.q = c.dimensions().back();
  whole.a = a.untyped_data(), whole.b = b.untyped_data(), whole.c = c.untyped_data();
  whole.strength = strength.untyped_data(), whole.rtol = rtol.untyped_data();
  whole.truncated = static_cast<const uint8_t*>(truncated.untyped_data());
  whole.rtol_stride = whole.truncated_stride = 1;
  whole.order = order, whole.dim = dim, whole.max_expansions = max_expansions, whole.extended = 0;
  whole.time = time->untyped_data(), whole.lower = lower->untyped_data();
  whole.upper = upper->untyped_data(), whole.error = error->untyped_data();
  whole.status = static_cast<int32_t*>(status->untyped_data());
  whole.num_steps = static_cast<int32_t*>(num_steps->untyped_data());
  const int64_t parts = (whole.count + kShare - 1) / kShare;
  const int failed = on_threads(pool, parts, [&](int64_t part) {
    const int64_t start = part * kShare;
    return solve(part_of<T>(whole, start, std::min(kShare, whole.count - start)));
  });
  if (failed) return ffi::Error::Internal("out of memory");
  return ffi::Error::Success();
}

template <ffi::DataType type>
auto binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<int32_t>("order")
      .Attr<int32_t>("dim")
      .Attr<int32_t>("max_expansions")
      .Arg<Buffer<type>>()
      .template Arg<Buffer<type>>()
      .template Arg<Buffer<type>>()
      .template Arg<Buffer<type>>()
      .template Arg<Buffer<type>>()
      .template Arg<Buffer<ffi::PRED>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<ffi::S32>>()
      .template Ret<Buffer<ffi::S32>>();
}

template <class T, ffi::DataType type, class... Args>
ffi::Error call(ffi::ThreadPool pool, Args... args) {
  if constexpr (sizeof(T) == 8)
    return series<T, type>(pool, target().series_f64, args...);
  else
    return series<T, type>(pool, target().series_f32, args...);
}

template <class T, ffi::DataType type>
ffi::Error handle(ffi::ThreadPool pool, int32_t order, int32_t dim, int32_t max_expansions,
                  Buffer<type> a, Buffer<type> b, Buffer<type> c, Buffer<type> strength,
                  Buffer<type> rtol, Buffer<ffi::PRED> truncated, Out<type> time, Out<type> lower,
                  Out<type> upper, Out<type> error, Out<ffi::S32> status,
                  Out<ffi::S32> num_steps) {
  return call<T, type>(pool, order, dim, max_expansions, a, b, c, strength, rtol, truncated, time,
                       lower, upper, error, status, num_steps);
}

template <class T, ffi::DataType type>
ffi::Error follow(ffi::ThreadPool pool, int32_t order, Buffer<type> a, Buffer<type> b,
                  Buffer<type> c, Buffer<type> strength, Buffer<type> closeness, Out<type> begin,
                  Out<type> lag, Out<type> length, Out<type> sides, Out<type> b_begin,
                  Out<type> end_a, Out<type> end_b, Out<type> end_c, Out<type> elapsed) {
  JaxcondPieces whole;
  whole.dim = int32_t(a.dimensions().back()), whole.order = order;
  whole.max_pieces = int32_t(begin->dimensions().back());
  whole.a = a.untyped_data(), whole.b = b.untyped_data(), whole.c = c.untyped_data();
  whole.strength = strength.untyped_data(), whole.closeness = closeness.untyped_data();
  whole.begin = begin->untyped_data(), whole.lag = lag->untyped_data();
  whole.length = length->untyped_data(), whole.sides = sides->untyped_data();
  whole.b_begin = b_begin->untyped_data(), whole.end_a = end_a->untyped_data();
  whole.end_b = end_b->untyped_data(), whole.end_c = end_c->untyped_data();
  whole.elapsed = elapsed->untyped_data();
  const int failed = on_threads(pool, strength.element_count(), [&](int64_t index) {
    JaxcondPieces part = whole;
    part.index = index;
    if constexpr (sizeof(T) == 8)
      return target().pieces_f64(part);
    else
      return target().pieces_f32(part);
  });
  if (failed) return ffi::Error::Internal("out of memory");
  return ffi::Error::Success();
}

template <class T, ffi::DataType type>
ffi::Error differentiate(ffi::ThreadPool pool, int32_t order, int32_t dim, int32_t max_expansions,
                         Buffer<type> a, Buffer<type> b, Buffer<type> c, Buffer<type> strength,
                         Buffer<type> rtol, Out<type> of_a, Out<type> of_b, Out<type> of_c) {
  JaxcondGradient whole;
  const int64_t count = strength.element_count();
  whole.p = a.dimensions().back(), whole.q = c.dimensions().back();
  whole.order = order, whole.dim = dim, whole.max_expansions = max_expansions;
  auto numbers = [](auto& buffer, int64_t start) {
    return static_cast<T*>(buffer.untyped_data()) + start;
  };
  const int64_t parts = (count + kShare - 1) / kShare;
  const int failed = on_threads(pool, parts, [&](int64_t index) {
    const int64_t start = index * kShare;
    JaxcondGradient part = whole;
    part.count = std::min(kShare, count - start);
    part.a = numbers(a, start * whole.p), part.b = numbers(b, start * whole.p * whole.q);
    part.c = numbers(c, start * whole.q), part.strength = numbers(strength, start);
    part.rtol = numbers(rtol, start);
    part.of_a = numbers(*of_a, start * whole.p);
    part.of_b = numbers(*of_b, start * whole.p * whole.q);
    part.of_c = numbers(*of_c, start * whole.q);
    if constexpr (sizeof(T) == 8)
      return target().gradient_f64(part);
    else
      return target().gradient_f32(part);
  });
  if (failed) return ffi::Error::Internal("out of memory");
  return ffi::Error::Success();
}

template <ffi::DataType type>
auto binding_of_gradient() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<int32_t>("order")
      .Attr<int32_t>("dim")
      .Attr<int32_t>("max_expansions")
      .Arg<Buffer<type>>()
      .template Arg<Buffer<type>>()
      .template Arg<Buffer<type>>()
      .template Arg<Buffer<type>>()
      .template Arg<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>();
}

template <ffi::DataType type>
auto binding_of_pieces() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<int32_t>("order")
      .Arg<Buffer<type>>()
      .template Arg<Buffer<type>>()
      .template Arg<Buffer<type>>()
      .template Arg<Buffer<type>>()
      .template Arg<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>()
      .template Ret<Buffer<type>>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxcond_ffi_series_f64, (handle<double, ffi::F64>),
                              binding<ffi::F64>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxcond_ffi_series_f32, (handle<float, ffi::F32>),
                              binding<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxcond_ffi_gradient_f64, (differentiate<double, ffi::F64>),
                              binding_of_gradient<ffi::F64>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxcond_ffi_gradient_f32, (differentiate<float, ffi::F32>),
                              binding_of_gradient<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxcond_ffi_pieces_f64, (follow<double, ffi::F64>),
                              binding_of_pieces<ffi::F64>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxcond_ffi_pieces_f32, (follow<float, ffi::F32>),
                              binding_of_pieces<ffi::F32>());
