// The forward solve: states at the evaluation times, and the steps recorded for the backward one.
#pragma once
#include "runge_kutta.h"

namespace pynode {

enum Flags { extended = 1, copied = 2 };  // extra stages are there; the first stage was copied

// The field's programs with their memory. `Programs` is generated.
template <class T, class Programs>
struct Workspace {
  const T* p;
  Gemm<T> gemm;
  std::int64_t threads;
  Memory<T> work, packed;

  explicit Workspace(const Call& call)
      : p(static_cast<const T*>(call.params)), gemm(reinterpret_cast<Gemm<T>>(const_cast<void*>(call.gemm))),
        threads(call.threads), work(Programs::work), packed(Programs::packed) {
    Programs::pack_parameters(p, packed);
  }
};

template <class T, class Programs>
struct FieldSystem {
  static constexpr long size = Programs::N;
  Workspace<T, Programs>& memory;
  std::int64_t& nfe;

  void operator()(double t, const T* z, T* dz) {
    ++nfe;
    Programs::f(memory, z, T(t), nullptr, dz, nullptr, nullptr);
  }
};

// Steps on their way into the blocks.
template <class T, class M, long N>
class Recorder {
 public:
  static constexpr long width = (1 + M::stages + M::extra) * N;
  explicit Recorder(Call& call) : c_(call) {}

  bool operator()(const Piece<T, M, N>& piece, bool was_copied) {
    if (row_ == capacity_) {
      ++block_;
      capacity_ = c_.first_block << block_;
      row_ = 0;
      if (block_ && c_.ask(ask_memory)) return false;
    }
    double* times = c_.step_times[block_] + 4 * row_;
    times[0] = piece.t, times[1] = piece.t1, times[2] = piece.last;
    times[3] = (piece.extended && M::extra ? extended : 0) | (was_copied ? copied : 0);
    T* data = static_cast<T*>(c_.step_data[block_]) + row_ * width;
    std::copy(piece.z, piece.z + N, data);
    const int rows = M::stages + (piece.extended ? M::extra : 0);
    std::copy(piece.k, piece.k + rows * N, data + N);
    ++row_;
    ++c_.steps;
    return true;
  }

 private:
  Call& c_;
  int block_ = -1;
  std::int64_t row_ = 0, capacity_ = 0;
};

template <class T, class M, class Programs>
int solve(Call& c) {
  constexpr long N = Programs::N;
  Workspace<T, Programs> memory(c);
  FieldSystem<T, Programs> f{memory, c.nfe};
  const Scale<T> scale{static_cast<const T*>(c.rtols), static_cast<const T*>(c.atols), T(c.rtol), T(c.atol),
                       c.largest != 0, {0, N}};
  const Jumps jumps(c.jumps, c.jump_count);
  Loop<T, M, FieldSystem<T, Programs>> loop(f, c, scale, jumps);
  Recorder<T, M, N> record(c);
  T* outputs = static_cast<T*>(c.outputs);
  const T* z0 = static_cast<const T*>(c.z0);
  const double direction = c.stops[c.stop_count - 1] > c.t0 ? 1.0 : -1.0;
  std::copy(z0, z0 + N, loop.state());

  const auto place = [&](std::int64_t i, long& to, long& lo, long& hi) {
    to = c.places ? c.places[3 * i] : i * N;
    lo = c.places ? c.places[3 * i + 1] : 0;
    hi = c.places ? lo + c.places[3 * i + 2] : N;
  };
  long to, lo, hi;
  for (c.reached = 0; c.reached < c.initial_count; ++c.reached) {
    place(c.reached, to, lo, hi);
    std::copy(z0 + lo, z0 + hi, outputs + to);
  }
  const auto on_step = [&](Piece<T, M, N>& piece, bool was_copied) {
    for (; c.reached < c.time_count && direction * c.times[c.reached] <= direction * piece.t1; ++c.reached) {
      place(c.reached, to, lo, hi);
      piece.at(c.times[c.reached], lo, hi, outputs + to, f, loop.room());
    }
    return c.record ? record(piece, was_copied) : true;
  };
  c.status = loop.run(c.t0, c.stops, c.stop_count, on_step);
  c.t = loop.t(), c.next_dt = loop.dt(), c.entry = loop.entry;
  c.accepted = loop.accepted, c.rejected = loop.rejected;
  std::copy(loop.state(), loop.state() + N, static_cast<T*>(c.end));
  return 0;
}

}  // namespace pynode
