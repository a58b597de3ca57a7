// What Python hands over, and gets back: the twin of `Call` in call.py.
#pragma once
#include <cstdint>

namespace pynode {

enum Question : int { ask_signals, ask_memory };

struct Call {
  // The problem. Times go from t0 on; entry i of the outputs is put to places[3i], and is the
  // places[3i+2] numbers of the state from places[3i+1] on (the whole state without places).
  const void *z0, *params;
  double t0;
  const double* stops;
  std::int64_t stop_count;
  const double* jumps;
  std::int64_t jump_count;
  const double* times;
  std::int64_t time_count, initial_count;
  const std::int64_t* places;
  void* outputs;
  // Step control.
  double rtol, atol;
  const void *rtols, *atols;
  std::int64_t largest;
  double exponents[3], safety, shrink, grow, dt_min, dt_max, dt, stretch;
  std::int64_t has_dt, adaptive, max_steps;
  // Recorded steps: blocks of capacities first, 2 first, 4 first, ...; of each step four numbers
  // (t, t1, last time of evaluation, flags), and its state and stages.
  std::int64_t record, first_block, steps;
  double** step_times;
  void** step_data;
  // The backward pass: cotangents of the outputs, the gradients, and how many leading entries of
  // the parameters' gradient take part in error control.
  const void* cotangents;
  const void* final_state;
  void *state_gradient, *gradient;
  std::int64_t active;
  // From Python: whether to stop, and more memory for steps. A BLAS, where there is one, and the
  // threads that it has.
  int (*ask)(int question);
  const void* gemm;
  std::int64_t threads;
  // What came out. `end` is the last state.
  void* end;
  double t, next_dt;
  std::int64_t status, entry, accepted, rejected, nfe, vjp, reached;
};

// Where step i is kept.
inline void locate(const Call& c, std::int64_t step, int& block, std::int64_t& row) {
  block = 0;
  row = step;
  for (std::int64_t size = c.first_block; row >= size; size *= 2) row -= size, ++block;
}

}  // namespace pynode
