"""Step sizes on the tape, for ``through_steps=True``.

The loop decides with Python numbers as ever. Beside each number that follows from the state (a
step size, the time that a step starts at) there is here a 0-d tensor whose *value is zero* and
whose derivative is that of the number; what the loop computes with numbers, a twin computes with
number plus tensor. So the solution is the same, to rounding, and its derivative is that of the
whole program: of the tableau and of the step-size control.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from pynode.engines.torch.controller import ErrorNorm, Reduce, StepSize, propose_first
from pynode.engines.torch.runge_kutta import ExplicitStepper, Jumps, Piece, RightHandSide
from pynode.engines.torch.tableau import Tableau
from pynode.options import SolveOptions


class StepTape:
    """The zero-valued tensors, float64, that stepper, norm and control share.

    Attributes:
        time: of the time that the next step starts at.
        proposal: of the size that control proposes.
        size: of the size of the step last attempted.
        error: the error of that step, value and all.
    """

    def __init__(self, device: torch.device) -> None:
        self.zero = torch.zeros((), dtype=torch.float64, device=device)
        self.time = self.proposal = self.size = self.zero
        self.error = self.zero

    def shift(self, x: Tensor | float) -> Tensor:
        """The derivative of ``x`` alone."""
        return x - x.detach() if isinstance(x, Tensor) else self.zero


class TapedNorm(ErrorNorm):
    """An error norm that leaves its value on the tape."""

    def __init__(
        self, rtol: float | Tensor, atol: float | Tensor, reduce: Reduce, tape: StepTape
    ) -> None:
        super().__init__(rtol, atol, reduce, transformed=False)
        self._tape = tape

    def of_step(self, piece: Piece, c) -> float:  # type: ignore[no-untyped-def]
        self._tape.error = self.measure(piece, c).double()
        return float(self._tape.error.detach())

    def of_vector(self, x: Tensor, scale: Tensor) -> float:
        return self.reduce(x / scale).double()  # type: ignore[return-value]  # used as a number


class TapedStepSize(StepSize):
    """A step-size controller with a twin on the tape."""

    def __init__(self, options: SolveOptions, error_order: int, tape: StepTape) -> None:
        super().__init__(options, error_order)
        self._twin = StepSize(options, error_order)
        self._tape = tape
        self._proposed = 0.0

    def first(
        self, rhs: RightHandSide, t0: float, t1: float, z0: Tensor, f0: Tensor, norm: ErrorNorm
    ) -> float:
        def at_tensor(t: float | Tensor, z: Tensor) -> Tensor:
            return rhs(t.to(z) if isinstance(t, Tensor) else t, z)  # type: ignore[arg-type]

        dt = self.within(propose_first(at_tensor, t0, t1, z0, f0, self.error_order, norm))
        return self._propose(dt, float(dt.detach() if isinstance(dt, Tensor) else dt))

    def accepted(self, dt: float, error: float, cut: bool = False) -> float:
        value = super().accepted(dt, error, cut)
        twin = self._twin.accepted(*self._on_tape(dt, error), cut)
        # After a step that was cut short the loop keeps the larger of the two proposals.
        return value if cut and value <= self._proposed else self._propose(twin, value)

    def rejected(self, dt: float, error: float) -> float:
        value = super().rejected(dt, error)
        return self._propose(self._twin.rejected(*self._on_tape(dt, error)), value)

    def _on_tape(self, dt: float, error: float) -> tuple[float, float]:
        tape = self._tape
        if not math.isfinite(error):
            return dt, error
        return dt + tape.size, error + tape.shift(tape.error)  # type: ignore[return-value]

    def _propose(self, twin: float | Tensor, value: float) -> float:
        self._tape.proposal = self._tape.shift(twin)
        self._proposed = value
        return value


class TapedPiece(Piece):
    """A step whose start and size are on the tape; its stages are in units of ``dt``."""

    __slots__ = ("_moved", "_step")

    def __init__(self, *parts, moved: Tensor, step: Tensor) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*parts)
        self._moved, self._step = moved, step

    def frozen(self) -> TapedPiece:
        return self  # its stages are its own

    def at(self, t: float, rhs: RightHandSide) -> Tensor:
        return self.at_each([t], rhs)[0]

    def weights(self, times: list[float], rhs: RightHandSide) -> Tensor:
        self.extend(rhs)
        return self._weights(self._fractions(times))

    def _fractions(self, times: list[float]) -> Tensor:
        start, size = self.t + self._moved, self.dt + self._step
        return (torch.tensor(times, dtype=torch.float64, device=start.device) - start) / size

    def extend(self, rhs: RightHandSide) -> None:
        ratio = (1.0 + self._step / self.dt).to(self.z)

        def on_tape(s: float, z: Tensor) -> Tensor:
            time = s + self._moved + (s - self.t) / self.dt * self._step
            return ratio * rhs(time.to(z), z)  # type: ignore[arg-type]

        super().extend(on_tape)


class TapedStepper(ExplicitStepper):
    """Attempts steps whose start and size are on the tape.

    Args:
        stops: times that steps end on, whatever the state is.
    """

    def __init__(
        self,
        tableau: Tableau,
        rhs: RightHandSide,
        like: Tensor,
        jumps: Jumps,
        tape: StepTape,
        stops: Collection[float],
    ) -> None:
        super().__init__(tableau, rhs, like, True, jumps)
        self._tape, self._stops = tape, frozenset(stops)
        self._first: Tensor | None = None
        self._last: Tensor | None = None
        self._end = tape.zero

    def begin(self, t: float, towards: float, z: Tensor, first: Tensor | None = None) -> Tensor:
        self._first = super().begin(t, towards, z, first)
        return self._first

    def attempt(self, t: float, t1: float, z: Tensor) -> TapedPiece:
        c, tape, dt = self.coefficients, self._tape, t1 - t
        start, last = self._jumps.ends(t, t1)
        moved, sign = tape.time, math.copysign(1.0, dt)
        step = -moved if t1 in self._stops else sign * tape.proposal
        tape.size, self._end = sign * step, moved + step
        size = (dt + step).to(z)

        def rhs(s: float, node: float, x: Tensor) -> Tensor:
            return self.rhs((s + moved + node * step).to(x), x)  # type: ignore[arg-type]

        if self._first is None:
            self._first = rhs(start, 0.0, z)
        stages, z1 = [self._first], z
        for row, node in zip(c.a[1:], self._nodes, strict=True):
            z1 = z + size * (torch.stack(stages).t() @ row)
            stages.append(rhs(last if node == 1.0 else t + node * dt, node, z1))
        all_stages = torch.stack(stages)
        if not self.tableau.fsal:
            z1 = z + size * (all_stages.t() @ c.b)
        self._last = stages[-1] if self.tableau.fsal and t1 not in self._jumps else None
        scaled = all_stages * (size / dt)
        return TapedPiece(c, t, t1, z, z1, scaled, last, moved=moved, step=step)

    def advance(self) -> None:
        self._first, self._tape.time = self._last, self._end
