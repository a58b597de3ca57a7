// The backward solves: the twin of adjoints/*.py, whose comments hold here too.
#pragma once
#include "forward.h"

namespace pynode {

// Steps of the forward solve as they were recorded.
template <class T, class M, class Programs>
class Trajectory {
 public:
  static constexpr long N = Programs::N;
  using Step = Piece<T, M, N>;
  using Field = FieldSystem<T, Programs>;

  Trajectory(const Call& call, Field& f)
      : c_(call), f_(f), room_(N), direction_(time(call.steps - 1)[1] > time(0)[0] ? 1.0 : -1.0) {
    if (call.steps) read(call.steps - 1);
  }

  std::int64_t steps() const { return c_.steps; }
  double direction() const { return direction_; }
  double* time(std::int64_t step) const {
    int block;
    std::int64_t row;
    locate(c_, step, block, row);
    return c_.step_times[block] + 4 * row;
  }
  T* data(std::int64_t step) const {
    int block;
    std::int64_t row;
    locate(c_, step, block, row);
    return static_cast<T*>(c_.step_data[block]) + row * Recorder<T, M, N>::width;
  }
  Step& read(std::int64_t step) {
    const double* t = time(step);
    T* z = data(step);
    number_ = step;
    const T* z1 = step + 1 < c_.steps ? data(step + 1) : static_cast<const T*>(c_.final_state);
    here_ = {t[0], t[1], t[2], z, z1, z + N, M::extra == 0 || (int(t[3]) & extended) != 0};
    return here_;
  }
  // Dense output: the state at any time inside.
  void at(double t, T* z) {
    const double d = direction_;
    if (!(d * here_.t <= d * t && d * t <= d * here_.t1)) {
      std::int64_t lo = 0, hi = c_.steps;  // the first step that starts after t
      while (lo < hi) {
        const std::int64_t middle = (lo + hi) / 2;
        if (d * time(middle)[0] > d * t) hi = middle;
        else lo = middle + 1;
      }
      read(std::max<std::int64_t>(lo - 1, 0));
    }
    const bool before = here_.extended;
    here_.at(t, 0, N, z, f_, room_);
    if (here_.extended != before) time(number_)[3] += extended;
  }
  // The step ends strictly between a and b, going from a, with a and b themselves.
  void breaks(double a, double b, std::vector<double>& found) const {
    // Ends that differ from a or b by rounding are left out.
    const double apart = 1e-9 * std::abs(b - a) + 4 * ulp(std::max(std::abs(a), std::abs(b)));
    const double low = std::min(a, b) + apart, high = std::max(a, b) - apart;
    found.clear();
    found.push_back(a);
    std::int64_t lo = 0, hi = c_.steps;  // the first start strictly beyond the lesser end
    const double near = direction_ > 0 ? low : high;
    while (lo < hi) {
      const std::int64_t middle = (lo + hi) / 2;
      if (direction_ * time(middle)[0] > direction_ * near) hi = middle;
      else lo = middle + 1;
    }
    const std::size_t first = found.size();
    for (; lo < c_.steps; ++lo) {
      const double t = time(lo)[0];
      if (t <= low || t >= high) break;
      found.push_back(t);
    }
    if (direction_ * (b - a) < 0) std::reverse(found.begin() + first, found.end());
    found.push_back(b);
  }

 private:
  const Call& c_;
  Field& f_;
  Memory<T> room_;
  double direction_;
  std::int64_t number_ = 0;
  Step here_{};
};

// What all backward passes have.
template <class T, class Programs>
struct Backward_ {
  static constexpr long N = Programs::N, P = Programs::P;
  Call& c;
  Workspace<T, Programs> memory;
  FieldSystem<T, Programs> f;
  Memory<T> unused;

  explicit Backward_(Call& call)
      : c(call), memory(call), f{memory, call.nfe}, unused(std::max<long>({P, N, 1})) {}

  // a·∂f/∂z and a·∂f/∂θ; counted as one evaluation and one product.
  void products(double t, const T* z, const T* a, T* of_z, T* of_p) {
    ++c.nfe, ++c.vjp;
    T of_t[1];
    Programs::vjp(memory, z, T(t), a, of_z, of_p, of_t);
  }

  void place(std::int64_t i, long& from, long& lo, long& hi) const {
    from = c.places ? c.places[3 * i] : i * N;
    lo = c.places ? c.places[3 * i + 1] : 0;
    hi = c.places ? lo + c.places[3 * i + 2] : N;
  }

  // Add the cotangents of entries first to last, all at one time, to the adjoint.
  void jump(T* a, std::int64_t first, std::int64_t last) const {
    const T* cotangents = static_cast<const T*>(c.cotangents);
    long from, lo, hi;
    for (std::int64_t e = first; e < last; ++e) {
      place(e, from, lo, hi);
      for (long i = lo; i < hi; ++i) a[i] += cotangents[from + i - lo];
    }
  }

  // Overwrite the state by what the forward pass found at these entries.
  void reset(T* z, std::int64_t first, std::int64_t last) const {
    const T* outputs = static_cast<const T*>(c.outputs);
    long from, lo, hi;
    for (std::int64_t e = c.places ? first : last - 1; e < last; ++e) {
      place(e, from, lo, hi);
      std::copy(outputs + from, outputs + from + hi - lo, z + lo);
    }
  }
};

// Solve a system backwards through all evaluation times; at each of them its state is changed.
template <class T, class M, class System, class AtMoment, class OnStep>
void sweep(Call& c, Loop<T, M, System>& loop, AtMoment at_moment, OnStep on_step) {
  const double start = c.t0;
  const double* times = c.times;
  std::vector<double> stops;
  std::int64_t hi = c.time_count;
  double t = 0;
  bool begun = false;
  c.status = success;
  for (;;) {
    const bool last = hi == 0;
    const double moment = last ? start : times[hi - 1];
    std::int64_t lo = last ? 0 : hi - 1;
    while (lo && times[lo - 1] == moment) --lo;
    if (begun && moment != t) {
      stops.clear();
      for (std::int64_t i = 0; i < c.stop_count; ++i)
        if (std::min(t, moment) < c.stops[i] && c.stops[i] < std::max(t, moment)) stops.push_back(c.stops[i]);
      stops.push_back(moment);
      c.status = loop.run(t, stops.data(), std::int64_t(stops.size()), on_step);
      if (c.status != success) break;
    }
    at_moment(lo, hi);
    t = moment;
    begun = true;
    if (last) break;
    hi = lo;
  }
  c.t = loop.t(), c.next_dt = loop.dt(), c.entry = loop.entry;
  c.accepted = loop.accepted, c.rejected = loop.rejected;
  std::copy(loop.state(), loop.state() + System::size, static_cast<T*>(c.end));
}

// Exact gradients of the computed solution: each step's operations in reverse, from its stages.
template <class T, class M, class Programs>
int discrete(Call& c) {
  constexpr long N = Programs::N, P = Programs::P;
  constexpr int all = M::stages + M::extra;
  Backward_<T, Programs> back(c);
  Trajectory<T, M, Programs> trajectory(c, back.f);
  Patience patience(c, N > 4096);
  Memory<T> of_z(N), of_z1(N), stage(N), product(N), part(std::max(P, 1L)), of_k(all * N);
  T* gradient = static_cast<T*>(c.gradient);
  const T* cotangents = static_cast<const T*>(c.cotangents);
  std::fill(gradient, gradient + P, T(0));
  std::int64_t entry = c.time_count;
  bool carried = false;  // the last stage has a cotangent, as the first one of the step after
  const double d = trajectory.direction();
  c.status = success;

  const auto products = [&](double t, const T* z, const T* a) {
    back.products(t, z, a, product, part);
    T* more = part;
    SIMD
    for (long i = 0; i < P; ++i) gradient[i] += more[i];
  };
  const auto add = [&](T* to, T factor, const T* from) {
    SIMD
    for (long i = 0; i < N; ++i) to[i] += factor * from[i];
  };

  for (std::int64_t n = trajectory.steps() - 1; n >= 0; --n) {
    if (patience.is_over()) {
      c.status = stopped;
      return 0;
    }
    auto& piece = trajectory.read(n);
    const double* times = trajectory.time(n);
    const T h = T(piece.dt());
    const T* k = piece.k;
    // of_z1 is there: what the step after, and outputs at its start, left.
    T *zbar = of_z, *z1bar = of_z1, *kbar = of_k;
    std::fill(zbar, zbar + N, T(0));
    std::fill(kbar, kbar + (carried ? M::stages - 1 : all) * N, T(0));
    if (carried) std::fill(kbar + M::stages * N, kbar + all * N, T(0));
    bool inside = false;
    for (; entry > c.initial_count && d * c.times[entry - 1] > d * piece.t; --entry) {
      const double time = c.times[entry - 1];
      long from, lo, hi;
      back.place(entry - 1, from, lo, hi);
      const T* g = cotangents + from;
      if (time == piece.t1) {
        for (long i = lo; i < hi; ++i) z1bar[i] += g[i - lo];
        continue;
      }
      inside = true;
      T w[all];
      piece.weights(time, w);
      for (long i = lo; i < hi; ++i) zbar[i] += g[i - lo];
      for (int s = 0; s < all; ++s) {
        const T factor = h * w[s];
        if (factor == T(0)) continue;
        SIMD
        for (long i = lo; i < hi; ++i) kbar[s * N + i] += factor * g[i - lo];
      }
    }
    const auto reverse = [&](int s, double t, const T* z) {
      products(t, z, kbar + s * N);
      add(zbar, T(1), product);
      for (int j = 0; j < s; ++j)
        if (M::a[s][j] != 0) add(kbar + j * N, h * T(M::a[s][j]), product);
    };
    const auto state = [&](int s) -> const T* {
      T* z = stage;
      std::copy(piece.z, piece.z + N, z);
      for (int j = 0; j < s; ++j)
        if (M::a[s][j] != 0) add(z, h * T(M::a[s][j]), k + j * N);
      return z;
    };
    const auto node = [&](int s) {
      return M::c[s] == 1.0 ? piece.last : piece.t + M::c[s] * piece.dt();
    };
    if (inside)
      for (int s = all - 1; s >= M::stages; --s) reverse(s, node(s), state(s));
    int last = M::stages - 1;
    if (M::fsal) {  // the new state is what the last stage is evaluated at
      if (carried || inside) {
        products(piece.last, piece.z1, kbar + last * N);
        add(z1bar, T(1), product);
      }
      --last;
    }
    add(zbar, T(1), z1bar);
    for (int s = 0; s <= last; ++s)
      if (M::b[s] != 0) add(kbar + s * N, h * T(M::b[s]), z1bar);
    for (int s = last; s >= 1; --s) reverse(s, node(s), state(s));
    carried = (int(times[3]) & copied) != 0;
    if (carried) {
      if (M::stages > 1) std::copy(kbar, kbar + N, kbar + (M::stages - 1) * N);
    } else {
      const Jumps jumps(c.jumps, c.jump_count);
      products(jumps.first(piece.t, piece.t1), piece.z, kbar);
      add(zbar, T(1), product);
    }
    std::copy(zbar, zbar + N, z1bar);
  }
  T* a = of_z1;
  back.jump(a, 0, entry);
  std::copy(a, a + N, static_cast<T*>(c.state_gradient));
  return 0;
}

// a' = −a·∂f/∂z along the trajectory.
template <class T, class F, class Programs>
struct AdjointSystem {
  static constexpr long size = Programs::N;
  Backward_<T, Programs>& back;
  Trajectory<T, F, Programs>& trajectory;
  T* z;

  void operator()(double t, const T* a, T* da) {
    trajectory.at(t, z);
    ++back.c.nfe, ++back.c.vjp;
    Programs::vjp_z(back.memory, z, T(t), a, da, nullptr, nullptr);
    SIMD
    for (long i = 0; i < size; ++i) da[i] = -da[i];
  }
};

template <class T, class F, class M, class Rule, class Programs>
int gauss(Call& c) {
  constexpr long N = Programs::N, P = Programs::P;
  Backward_<T, Programs> back(c);
  Trajectory<T, F, Programs> trajectory(c, back.f);
  Memory<T> z(N), a(N), part(std::max(P, 1L));
  AdjointSystem<T, F, Programs> system{back, trajectory, z};
  const Scale<T> scale{nullptr, nullptr, T(c.rtol), T(c.atol), false, {0, N}};
  const Jumps jumps(c.jumps, c.jump_count);
  Loop<T, M, AdjointSystem<T, F, Programs>> loop(system, c, scale, jumps);
  T* gradient = static_cast<T*>(c.gradient);
  std::fill(gradient, gradient + P, T(0));
  std::vector<double> edges;
  const auto on_step = [&](Piece<T, M, N>& piece, bool) {
    if (!P) return true;
    trajectory.breaks(piece.t, piece.t1, edges);
    for (std::size_t e = 0; e + 1 < edges.size(); ++e)
      for (int q = 0; q < Rule::points; ++q) {
        const double width = edges[e + 1] - edges[e], t = edges[e] + Rule::x[q] * width;
        piece.at(t, 0, N, a, system, loop.room());
        trajectory.at(t, z);
        ++c.nfe, ++c.vjp;
        Programs::vjp_p(back.memory, z, T(t), a, part, nullptr, nullptr);
        const T weight = T(Rule::w[q] * width);
        T* more = part;
        SIMD
        for (long i = 0; i < P; ++i) gradient[i] -= weight * more[i];  // the sweep runs backwards
      }
    return true;
  };
  sweep(c, loop, [&](std::int64_t lo, std::int64_t hi) { back.jump(loop.state(), lo, hi); }, on_step);
  std::copy(loop.state(), loop.state() + N, static_cast<T*>(c.state_gradient));
  return 0;
}

// The adjoint and the parameters' gradient in one system.
template <class T, class F, class Programs>
struct JointSystem {
  static constexpr long N = Programs::N, size = N + Programs::P;
  Backward_<T, Programs>& back;
  Trajectory<T, F, Programs>& trajectory;
  T* z;

  void operator()(double t, const T* y, T* dy) {
    trajectory.at(t, z);
    back.products(t, z, y, dy, dy + N);
    SIMD
    for (long i = 0; i < size; ++i) dy[i] = -dy[i];
  }
};

template <class T, class F, class M, class Programs>
int interpolating(Call& c) {
  constexpr long N = Programs::N, P = Programs::P;
  using System = JointSystem<T, F, Programs>;
  Backward_<T, Programs> back(c);
  Trajectory<T, F, Programs> trajectory(c, back.f);
  Memory<T> z(N);
  System system{back, trajectory, z};
  Scale<T> scale{nullptr, nullptr, T(c.rtol), T(c.atol), false, {0, N}};
  if (c.active) scale.edges.push_back(N + c.active);
  const Jumps jumps(c.jumps, c.jump_count);
  Loop<T, M, System> loop(system, c, scale, jumps);
  sweep(c, loop, [&](std::int64_t lo, std::int64_t hi) { back.jump(loop.state(), lo, hi); },
        [](Piece<T, M, System::size>&, bool) { return true; });
  std::copy(loop.state(), loop.state() + N, static_cast<T*>(c.state_gradient));
  std::copy(loop.state() + N, loop.state() + N + P, static_cast<T*>(c.gradient));
  return 0;
}

// State, adjoint and the parameters' gradient in one system.
template <class T, class Programs>
struct TripleSystem {
  static constexpr long N = Programs::N, size = 2 * N + Programs::P;
  Backward_<T, Programs>& back;

  void operator()(double t, const T* y, T* dy) {
    Programs::f(back.memory, y, T(t), nullptr, dy, nullptr, nullptr);
    back.products(t, y, y + N, dy + N, dy + 2 * N);
    SIMD
    for (long i = N; i < size; ++i) dy[i] = -dy[i];
  }
};

template <class T, class F, class M, class Programs>
int backsolve(Call& c) {
  constexpr long N = Programs::N, P = Programs::P;
  using System = TripleSystem<T, Programs>;
  Backward_<T, Programs> back(c);
  System system{back};
  Scale<T> scale{nullptr, nullptr, T(c.rtol), T(c.atol), false, {0, N, 2 * N}};
  if (c.active) scale.edges.push_back(2 * N + c.active);
  const Jumps jumps(c.jumps, c.jump_count);
  Loop<T, M, System> loop(system, c, scale, jumps);
  const T* final_state = static_cast<const T*>(c.final_state);
  std::copy(final_state, final_state + N, loop.state());
  const auto at_moment = [&](std::int64_t lo, std::int64_t hi) {
    if (hi > lo) back.reset(loop.state(), lo, hi);
    back.jump(loop.state() + N, lo, hi);
  };
  sweep(c, loop, at_moment, [](Piece<T, M, System::size>&, bool) { return true; });
  std::copy(loop.state() + N, loop.state() + 2 * N, static_cast<T*>(c.state_gradient));
  std::copy(loop.state() + 2 * N, loop.state() + 2 * N + P, static_cast<T*>(c.gradient));
  return 0;
}

}  // namespace pynode
