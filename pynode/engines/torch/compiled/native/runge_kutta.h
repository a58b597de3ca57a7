// The loop over attempted steps of an explicit Runge-Kutta method: the twin of integrate.py,
// controller.py and runge_kutta.py, whose comments hold here too.
//
// A method M is generated from its tableau: sum<i, N>(k) is Σ_j a_ij k_j, step and error likewise.
#pragma once
#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "call.h"
#include "products.h"

namespace pynode {

enum Status : std::int64_t { success, max_steps, dt_underflow, non_finite, stopped };

inline double ulp(double x) {
  const double a = std::abs(x);
  return std::nextafter(a, std::numeric_limits<double>::infinity()) - a;
}

// Memory that may be read one vector beyond its end.
template <class T>
class Memory {
 public:
  explicit Memory(std::size_t n) : owned_(new T[n + Vector<T>::width]()) {}
  operator T*() { return owned_.get(); }

 private:
  std::unique_ptr<T[]> owned_;
};

// Asks Python, now and then, whether to go on: a signal may have come.
class Patience {
 public:
  explicit Patience(const Call& call, bool large) : call_(call), mask_(large ? 0 : 15) {}
  bool is_over() {
    if (count_++ & mask_) return false;
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return false;
    next_ = now + std::chrono::milliseconds(200);
    return call_.ask(ask_signals) != 0;
  }

 private:
  const Call& call_;
  int count_ = 1, mask_;
  std::chrono::steady_clock::time_point next_ =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
};

// Times at which the field may jump, each with its neighbours: (t, lower, upper).
class Jumps {
 public:
  Jumps(const double* triples, std::int64_t count) : triples_(triples), count_(count) {}
  const double* find(double t) const {
    for (std::int64_t i = 0; i < count_; ++i)
      if (triples_[3 * i] == t) return triples_ + 3 * i;
    return nullptr;
  }
  double first(double t, double t1) const {
    const double* at = find(t);
    return at ? at[t1 > t ? 2 : 1] : t;
  }
  double last(double t, double t1) const {
    const double* at = find(t1);
    return at ? at[t1 > t ? 1 : 2] : t1;
  }

 private:
  const double* triples_;
  std::int64_t count_;
};

// A step and its dense output; k holds the stages one after the other, and room for extra ones.
template <class T, class M, long N>
struct Piece {
  double t, t1, last;
  const T *z, *z1;
  T* k;
  bool extended;

  double dt() const { return t1 - t; }

  template <class System>
  void extend(System& f, T* room) {
    if (extended) return;
    extend_each(f, room, std::make_integer_sequence<int, M::extra>{});
    extended = true;
  }

  // The weights of the stages at a time inside.
  void weights(double at, T* w) const {
    const double theta = (at - t) / dt();
    for (int i = 0; i < M::stages + M::extra; ++i) {
      double value = 0;
      for (int j = M::degree - 1; j >= 0; --j) value = (value + M::p[i][j]) * theta;
      w[i] = T(value);
    }
  }

  // Entries lo to hi of the state at a time inside.
  template <class System>
  void at(double time, long lo, long hi, T* out, System& f, T* room) {
    if (time == t1 && z1) return void(std::copy(z1 + lo, z1 + hi, out));
    if (time == t) return void(std::copy(z + lo, z + hi, out));
    extend(f, room);
    T w[M::stages + M::extra];
    weights(time, w);
    const T h = T(dt());
    SIMD
    for (long i = lo; i < hi; ++i) {
      T sum = 0;
#pragma GCC unroll 32
      for (int j = 0; j < M::stages + M::extra; ++j) sum += w[j] * k[j * N + i];
      out[i - lo] = z[i] + h * sum;
    }
  }

 private:
  template <class System, int... e>
  void extend_each(System& f, T* room, std::integer_sequence<int, e...>) {
    (extend_one<e>(f, room), ...);
  }
  template <int e, class System>
  void extend_one(System& f, T* room) {
    const T h = T(dt());
    SIMD
    for (long i = 0; i < N; ++i) room[i] = z[i] + h * M::template extra_sum<e, N>(k + i);
    const double node = M::c[M::stages + e];
    f(node == 1.0 ? last : t + node * dt(), room, k + (M::stages + e) * N);
  }
};

// The size of scaled errors: the largest RMS of the leading parts of the vector, or its largest
// entry. What follows the parts is left out.
template <class T>
struct Scale {
  const T *rtols, *atols;
  T rtol, atol;
  bool largest;
  std::vector<long> edges;

  static constexpr T tiny = std::numeric_limits<T>::min();

  template <class Error>
  double measure(const T* z, const T* z1, Error error) const {
    double worst = -1;
    for (std::size_t s = 0; s + 1 < edges.size(); ++s) {
      const double size = part(z, z1, error, edges[s], edges[s + 1]);
      if (size > worst || size != size) worst = size;
      if (worst != worst) return worst;
    }
    return worst < 0 ? 0 : worst;
  }

 private:
  template <class Error>
  double part(const T* z, const T* z1, Error error, long lo, long hi) const {
    if (rtols) return reduce(lo, hi, [=, this](long i) {
      const T size = k_maximum(std::abs(z[i]), std::abs(z1[i]));
      return error(i) / k_maximum(size * rtols[i] + atols[i], tiny);
    });
    return reduce(lo, hi, [=, this](long i) {
      const T a = std::abs(z[i]), b = std::abs(z1[i]);
      const T scale = atol + rtol * (a > b || a != a ? a : b);
      return error(i) / (scale < tiny ? tiny : scale);
    });
  }

  template <class Scaled>
  double reduce(long lo, long hi, Scaled scaled) const {
    if (largest) {
      T most = 0;
      for (long i = lo; i < hi; ++i) {
        const T q = std::abs(scaled(i));
        if (q > most || q != q) most = q;
      }
      return most;
    }
    T sum = 0;
    SIMD_SUM(sum)
    for (long i = lo; i < hi; ++i) {
      const T q = scaled(i);
      sum += q * q;
    }
    return std::sqrt(double(sum) / double(hi - lo));
  }
};

// The controllers of controller.py.
class StepSize {
 public:
  StepSize(const Call& c, int error_order) : c_(c), elementary_(1.0 / (error_order + 1)) {
    for (int i = 0; i < 3; ++i) exponents_[i] = c.exponents[i] / (error_order + 1);
  }
  double within(double dt) const { return std::min(std::max(dt, c_.dt_min), c_.dt_max); }
  double accepted(double dt, double error, bool cut) {
    error = std::max(error, 1e-10);
    double factor = c_.safety;
    const double errors[3] = {error, past_[0], past_[1]};
    for (int i = 0; i < 3; ++i)
      if (exponents_[i] != 0) factor *= std::pow(errors[i], -exponents_[i]);
    const double grow = rejected_ ? 1.0 : c_.grow;
    if (!cut) past_[1] = past_[0], past_[0] = error;
    rejected_ = false;
    return within(dt * std::min(std::max(factor, c_.shrink), grow));
  }
  double rejected(double dt, double error) {
    rejected_ = true;
    if (!(error < std::numeric_limits<double>::infinity()))
      return within(dt * (error != error ? 0.1 : 0.25));
    return within(dt * std::max(c_.shrink, c_.safety * std::pow(error, -elementary_)));
  }

 private:
  const Call& c_;
  double exponents_[3], elementary_, past_[2] = {1, 1};
  bool rejected_ = false;
};

// Integrates over any number of stretches, remembering the step size. `System` is f(t, y, dy) on
// vectors of System::size entries.
template <class T, class M, class System>
class Loop {
 public:
  static constexpr long N = System::size;
  using Step = Piece<T, M, N>;

  Loop(System& f, const Call& call, const Scale<T>& scale, const Jumps& jumps)
      : f_(f), c_(call), scale_(scale), jumps_(jumps), control_(call, M::error_order),
        patience_(call, N > 4096), here_(N), there_(N), k_((M::stages + M::extra) * N), room_(N),
        has_dt_(call.has_dt), dt_(call.dt), y_(here_), next_(there_) {}

  T* state() { return y_; }
  T* room() { return room_; }
  double t() const { return t_; }
  double dt() const { return dt_; }
  std::int64_t entry = -1, accepted = 0, rejected = 0;

  // From time t0 and the state in state(), through all stops.
  template <class OnStep>
  Status run(double t0, const double* stops, std::int64_t count, OnStep on_step) {
    limit_ = accepted + rejected + c_.max_steps;
    t_ = t0;
    f_(jumps_.first(t0, stops[0]), y_, k_);
    fresh_ = true;
    copied_ = false;
    if (!has_dt_) {
      dt_ = first_step(t0, stops[count - 1]);
      has_dt_ = true;
      if (!std::isfinite(dt_)) {
        blame(k_, 1, y_);
        return non_finite;
      }
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const Status status = stretch(stops[i], on_step);
      if (status != success) return status;
    }
    return success;
  }

 private:
  System& f_;
  const Call& c_;
  const Scale<T>& scale_;
  const Jumps& jumps_;
  StepSize control_;
  Patience patience_;
  Memory<T> here_, there_, k_, room_;
  bool has_dt_, fresh_ = false, copied_ = false;
  double dt_, t_ = 0;
  std::int64_t limit_ = 0;
  T *y_, *next_;

  template <class OnStep>
  Status stretch(double stop, OnStep& on_step) {
    const double direction = std::copysign(1.0, stop - t_), begin = t_;
    const double sliver = 4 * ulp(std::max(std::abs(t_), std::abs(stop)));
    const double slack = c_.adaptive ? c_.stretch : 1.0 + 1e-9;
    const double longest = c_.adaptive ? c_.dt_max : std::numeric_limits<double>::infinity();
    std::int64_t count = 0;
    while ((stop - t_) * direction > 0) {
      const double dt = dt_;
      const bool lands = std::min(dt * slack, longest) + sliver >= std::abs(stop - t_);
      if (accepted + rejected >= limit_) return max_steps;
      if (!lands && dt < 8 * ulp(t_)) return dt_underflow;
      if (patience_.is_over()) return stopped;
      double t1 = c_.adaptive ? t_ + direction * dt : begin + direction * double(++count) * dt;
      if (lands) t1 = stop;
      Step piece = attempt(t1);
      const double error = judge(piece);
      if (!(error <= 1.0)) {
        ++rejected;
        if (!c_.adaptive) return fail(piece, std::abs(piece.dt()));
        dt_ = control_.rejected(std::abs(piece.dt()), error);
        const double smallest = std::max({8 * ulp(t_), 1e-30, c_.dt_min});
        const bool stuck = dt_ < smallest || std::abs(piece.dt()) <= c_.dt_min;
        if (!std::isfinite(error) && stuck) return fail(piece, dt_);
        continue;
      }
      ++accepted;
      if (c_.adaptive) {
        const bool cut = lands && std::abs(piece.dt()) < dt;
        const double proposal = control_.accepted(std::abs(piece.dt()), error, cut);
        dt_ = cut ? std::max(proposal, dt) : proposal;
      }
      if (!on_step(piece, copied_)) return stopped;
      if (M::fsal && !jumps_.find(t1)) {
        std::copy(k_ + (M::stages - 1) * N, k_ + M::stages * N, static_cast<T*>(k_));
        fresh_ = copied_ = true;
      } else {
        fresh_ = copied_ = false;
      }
      t_ = t1;
      std::swap(y_, next_);
    }
    return success;
  }

  Step attempt(double t1) {
    const double first = jumps_.first(t_, t1), last = jumps_.last(t_, t1);
    if (!fresh_) {
      f_(first, y_, k_);
      fresh_ = true;
    }
    stages(t1, last, std::make_integer_sequence<int, M::stages - 1>{});
    const T h = T(t1 - t_);
    if constexpr (!M::fsal) {
      const T *k = k_, *z = y_;
      T* to = next_;
      SIMD
      for (long i = 0; i < N; ++i) to[i] = z[i] + h * M::template step<N>(k + i);
    }
    return {t_, t1, last, y_, next_, k_, M::extra == 0};
  }

  template <int... i>
  void stages(double t1, double last, std::integer_sequence<int, i...>) {
    (stage<i + 1>(t1, last), ...);
  }

  template <int s>
  void stage(double t1, double last) {
    const double dt = t1 - t_;
    const T h = T(dt);
    const T *k = k_, *z = y_;
    T* to = M::fsal && s == M::stages - 1 ? next_ : static_cast<T*>(room_);
    SIMD
    for (long i = 0; i < N; ++i) to[i] = z[i] + h * M::template sum<s, N>(k + i);
    f_(M::c[s] == 1.0 ? last : t_ + M::c[s] * dt, to, k_ + s * N);
  }

  // The error in units of the tolerance; NaN for a step that is not finite.
  double judge(const Step& piece) const {
    const T *k = piece.k, *z1 = piece.z1;
    if constexpr (M::has_error) {
      if (c_.adaptive) {
        const T h = T(std::abs(piece.dt())), tiny = Scale<T>::tiny;
        double size = scale_.measure(
            piece.z, z1, [=](long i) { return tiny * z1[i] + h * M::template error<N>(k + i); });
        if constexpr (M::has_low) {
          const double low = scale_.measure(
              piece.z, z1, [=](long i) { return tiny * z1[i] + h * M::template low<N>(k + i); });
          const double root = std::sqrt(size * size + 0.01 * low * low);
          size = size * size / (root < double(tiny) ? double(tiny) : root);
        }
        const bool forced = std::abs(piece.dt()) <= c_.dt_min;
        return forced && std::isfinite(size) ? std::min(size, 1.0) : size;
      }
    }
    for (long i = 0; i < N; ++i)
      if (!std::isfinite(z1[i])) return std::numeric_limits<double>::quiet_NaN();
    return 0;
  }

  Status fail(const Step& piece, double dt) {
    dt_ = dt;
    blame(piece.k, M::stages, piece.z1);
    return non_finite;
  }

  // The first entry that is not finite in any row, else in a vector.
  void blame(const T* rows, int count, const T* vector) {
    for (long i = 0; i < N; ++i)
      for (int r = 0; r < count; ++r)
        if (!std::isfinite(rows[r * N + i])) return void(entry = i);
    for (long i = 0; i < N; ++i)
      if (!std::isfinite(vector[i])) return void(entry = i);
  }

  // Hairer, Norsett, Wanner, Solving ODEs I, section II.4.
  double first_step(double t0, double t1) {
    const T *z0 = y_, *f0 = k_;
    for (long i = 0; i < N; ++i)
      if (!std::isfinite(f0[i])) return std::numeric_limits<double>::quiet_NaN();
    const double infinity = std::numeric_limits<double>::infinity();
    const double span = std::abs(t1 - t0), direction = std::copysign(1.0, t1 - t0);
    const double d0 = scale_.measure(z0, z0, [=](long i) { return z0[i]; });
    const double d1 = scale_.measure(z0, z0, [=](long i) { return f0[i]; });
    double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
    if (!(0.0 < h0 && h0 < infinity)) h0 = 1e-6;
    h0 = std::min(h0, span);
    T* z1 = room_;
    T* f1 = next_;
    const T h = T(direction * h0);
    for (long i = 0; i < N; ++i) z1[i] = z0[i] + h * f0[i];
    f_(h0 == span ? t1 : t0 + direction * h0, z1, f1);
    const double d2 = scale_.measure(z0, z0, [=](long i) { return f1[i] - f0[i]; }) / h0;
    if (!(d1 + d2 < infinity)) return control_.within(h0);
    const double most = std::max(d1, d2);
    const double h1 = most <= 1e-15 ? std::max(1e-6, h0 * 1e-3)
                                    : std::pow(0.01 / most, 1.0 / (M::error_order + 1));
    return control_.within(std::min({100.0 * h0, h1, span}));
  }
};

}  // namespace pynode
