"""Interpolating adjoint, then the parameters' gradient by adaptive Gauss-Kronrod quadrature.

Rule and error estimate: QUADPACK's (G7, K15), Piessens et al. 1983. The integral between two
evaluation times is refined until its estimated error meets the tolerance.
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
    0.991455371120812639206854697526329,
    0.949107912342758524526189684047851,
    0.864864423359769072789712788640926,
    0.741531185599394439863864773280788,
    0.586087235467691130294144838258730,
    0.405845151377397166906606412076961,
    0.207784955007898467600689403773245,
    0.0,
)
_KRONROD = (
    0.022935322010529224963732008058970,
    0.063092092629978553290700663189204,
    0.104790010322250183839876322541518,
    0.140653259715525918745189590510238,
    0.169004726639267902826583426598550,
    0.190350578064785409913256402421014,
    0.204432940075298892414161999234649,
    0.209482141084727828012999174891714,
)
_GAUSS = (
    0.0,
    0.129484966168869693270611432679082,
    0.0,
    0.279705391489276667901467771423780,
    0.0,
    0.381830050505118944950369775488975,
    0.0,
    0.417959183673469387755102040816327,
)
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

    def rhs(t: float, a: Tensor) -> Tensor:
        return vjp.state(t, trajectory.at(t), a).neg_()

    def adjoint_at(t: float) -> Tensor:
        d = 1.0 if pieces[0].dt > 0 else -1.0
        i = bisect_right(pieces, d * t, key=lambda piece: d * piece.t) - 1
        return pieces[max(i, 0)].at(t, rhs)

    def integrand(t: float) -> Tensor:
        return vjp.parameters(t, trajectory.at(t), adjoint_at(t))

    def on_stretch() -> None:
        options = problem.options
        lo, hi = pieces[-1].t1, pieces[0].t  # the sweep runs against the integral
        rtol, atol = float(options.rtol), float(options.atol)
        gradient.add_(integrate(integrand, lo, hi, rtol, atol, options.max_steps))
        pieces.clear()

    def at_moment(a: Tensor, lo: int, hi: int) -> None:
        problem.outputs.jump(a, problem.grad, lo, hi)

    record = (lambda piece: pieces.append(piece.frozen())) if vjp.size else None
    start = problem.zs.new_zeros(problem.size)
    a = sweep(problem, rhs, start, at_moment, rms, record, on_stretch if vjp.size else None)
    return a, gradient


def integrate(
    f: Callable[[float], Tensor], lo: float, hi: float, rtol: float, atol: float, most: int
) -> Tensor:
    """∫ f from lo to hi, by bisecting the interval with the largest error first.

    Raises:
        SolveError: ``most`` intervals did not suffice.
    """
    first = _rule(f, lo, hi)
    heap = [(-first[1], 0, lo, hi, first[0])]
    total, error = first[0], first[1]
    count = 1
    while error > atol + rtol * float(rms(total)):
        if count >= most:
            raise SolveError(
                f"the quadrature of the parameters' gradient from {lo:g} to {hi:g} did not reach "
                f"its tolerance in {most} intervals (error {error:.1e}): loosen adjoint_rtol, or "
                "use sensitivity='gauss'",
                "max_steps",
                lo,
            )
        worst, _, a, b, value = heapq.heappop(heap)
        middle = 0.5 * (a + b)
        if middle in (a, b):  # the interval cannot be halved any more: rounding is reached
            break
        total, error = total - value, error + worst
        for left, right in ((a, middle), (middle, b)):
            part, part_error = _rule(f, left, right)
            total, error = total + part, error + part_error
            heapq.heappush(heap, (-part_error, count, left, right, part))
            count += 1
    return torch.stack([entry[-1] for entry in heap]).sum(dim=0) if len(heap) > 1 else total


def _rule(f: Callable[[float], Tensor], lo: float, hi: float) -> tuple[Tensor, float]:
    """Kronrod's value, and its distance from Gauss's, as RMS."""
    centre, half = 0.5 * (lo + hi), 0.5 * (hi - lo)
    values = torch.stack([f(centre + half * x) for x, _, _ in RULE])
    kronrod = half * values.new_tensor([k for _, k, _ in RULE]) @ values
    gauss = half * values.new_tensor([g for _, _, g in RULE]) @ values
    return kronrod, float(rms(kronrod - gauss))
