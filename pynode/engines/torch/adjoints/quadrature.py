"""Interpolating adjoint, then the parameters' gradient by adaptive Gauss-Kronrod quadrature.

The rule is Kronrod's extension of three Gauss points to seven (Kronrod 1965). It starts from the
pieces into which the steps of both solves cut the interval, short where something happens, and
bisects the worst piece between two evaluation times until the estimated error of the integral
meets the tolerance.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Tensor

from pynode.engines.torch.adjoints.sweep import AdjointProblem, sweep
from pynode.engines.torch.controller import rms
from pynode.engines.torch.runge_kutta import Piece
from pynode.errors import SolveError

_X = (
    0.960491268708020283423507092629080,
    0.774596669241483377035853079956480,
    0.434243749346802558002071502844628,
    0.0,
)
_KRONROD = (
    0.104656226026467265193823857192073,
    0.268488089868333440728569280666710,
    0.401397414775962222905051818618432,
    0.450916538658474142345110087045571,
)
_GAUSS = (0.0, 5.0 / 9.0, 0.0, 8.0 / 9.0)
RULE = tuple(
    (sign * x, kronrod, gauss)
    for x, kronrod, gauss in zip(_X, _KRONROD, _GAUSS, strict=True)
    for sign in ((1.0, -1.0) if x else (1.0,))
)
"""(point in [-1, 1], Kronrod weight, Gauss weight)"""


def quadrature(problem: AdjointProblem) -> tuple[Tensor, Tensor]:
    vjp, trajectory = problem.vjp, problem.trajectory
    assert trajectory is not None
    gradient = problem.zs.new_zeros(vjp.size)
    pieces: list[Piece] = []

    rhs = problem.adjoint_system()

    def adjoint_at(t: float) -> Tensor:
        d = 1.0 if pieces[0].dt > 0 else -1.0
        i = bisect_right(pieces, d * t, key=lambda piece: d * piece.t) - 1
        return pieces[max(i, 0)].at(t, rhs)

    def integrand(t: float) -> Tensor:
        return vjp.parameters(t, trajectory.at(t), adjoint_at(t))

    def on_stretch() -> None:
        options = problem.options
        edges = [t for piece in pieces for t in trajectory.breaks(piece.t, piece.t1)[:-1]]
        edges.append(pieces[-1].t1)
        # The sweep runs against the integral.
        spans = list(zip(edges[1:], edges[:-1], strict=True))
        rtol, atol = float(options.rtol), float(options.atol)
        gradient.add_(integrate(integrand, spans, rtol, atol, options.max_steps))
        pieces.clear()

    def at_moment(a: Tensor, lo: int, hi: int) -> None:
        problem.outputs.jump(a, problem.grad, lo, hi)

    record = (lambda piece: pieces.append(piece.frozen())) if vjp.size else None
    start = problem.zs.new_zeros(problem.size)
    a = sweep(problem, rhs, start, at_moment, rms, record, on_stretch if vjp.size else None)
    return a, gradient


def integrate(
    f: Callable[[float], Tensor],
    spans: list[tuple[float, float]],
    rtol: float,
    atol: float,
    most: int,
) -> Tensor:
    """∫ f over all ``spans`` (from, to), bisecting the one with the largest error first.

    Raises:
        SolveError: ``most`` bisections did not suffice.
    """
    parts = [(*_rule(f, lo, hi), lo, hi) for lo, hi in spans]
    heap = [(-error, i, lo, hi, value) for i, (value, error, lo, hi) in enumerate(parts)]
    heapq.heapify(heap)
    total = torch.stack([part[0] for part in parts]).sum(dim=0)
    error = sum(part[1] for part in parts)
    count, limit = len(heap), len(heap) + 2 * most
    while error > atol + rtol * float(rms(total)):
        if count >= limit:
            raise SolveError(
                f"the quadrature of the parameters' gradient from {spans[-1][0]:g} to "
                f"{spans[0][1]:g} did not reach its tolerance by {most} bisections (error "
                f"{error:.1e}): loosen adjoint_rtol, or use sensitivity='gauss'",
                "max_steps",
                spans[-1][0],
            )
        worst, _, a, b, value = heapq.heappop(heap)
        middle = 0.5 * (a + b)
        if middle in (a, b) or -worst <= 1e-15 * float(rms(total)):  # rounding is reached
            heapq.heappush(heap, (worst, count, a, b, value))
            break
        total, error = total - value, error + worst
        for left, right in ((a, middle), (middle, b)):
            part, part_error = _rule(f, left, right)
            total, error = total + part, error + part_error
            heapq.heappush(heap, (-part_error, count, left, right, part))
            count += 1
    return torch.stack([entry[-1] for entry in heap]).sum(dim=0)


def _rule(f: Callable[[float], Tensor], lo: float, hi: float) -> tuple[Tensor, float]:
    """Kronrod's value, and its distance from Gauss's, as RMS."""
    centre, half = 0.5 * (lo + hi), 0.5 * (hi - lo)
    values = torch.stack([f(centre + half * x) for x, _, _ in RULE])
    kronrod = half * values.new_tensor([k for _, k, _ in RULE]) @ values
    gauss = half * values.new_tensor([g for _, _, g in RULE]) @ values
    return kronrod, float(rms(kronrod - gauss))
