r"""Exact gradients of the steps of a small state, from all its Jacobians at once.

For few numbers autograd's tape costs far more than the numbers: an operation of 2 of them takes as
long as one of 1000. So the accepted steps of a solve, recorded without a tape, are evaluated once
more as one batch (``vmap``), N products of which are the Jacobians of all stages. With them, a step

.. math:: z_1 = z + h \sum_i b_i k_i, \quad k_i = f(t_i, u_i), \quad u_i = z + h \sum_j a_{ij} k_j

pulls cotangents back by small matrices, those of all steps side by side, last stage first:

.. math::
    \kappa_i = \gamma_i + h b_i \lambda_1 + h \sum_{l > i} a_{li} J_l^T \kappa_l, \qquad
    \lambda = \lambda_1 + \gamma + \sum_i J_i^T \kappa_i ,

where λ₁ and λ are the cotangents of z₁ and z, γ those by the outputs inside the step. Only λ goes
from step to step. What the κ do to the parameters, one product of the batch says.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pynode.engines.torch.engine import Forward
from pynode.engines.torch.outputs import Outputs, outputs
from pynode.engines.torch.runge_kutta import Coefficients, Piece, coefficients
from pynode.engines.torch.steppers import METHODS
from pynode.engines.torch.tableau import Tableau
from pynode.engines.torch.trajectory import StepLog
from pynode.field import FlatField, closed_over_trainables, trainables_behind
from pynode.options import SolveOptions
from pynode.problem import ODEProblem
from pynode.solution import Statistics

Again = Callable[[Tensor, Any], Tensor]

MOST = 8
"""Entries of a state up to which N products of all stages cost little beside a tape."""

_UNFIT: weakref.WeakSet[Any] = weakref.WeakSet()
"""Fields that ``vmap`` cannot evaluate, or whose values depend on more than time and state."""


def serves(problem: ODEProblem, options: SolveOptions, field: FlatField) -> bool:
    """Whether a solve is of the kind described above: explicit steps of a small state, of which
    nothing but the outputs is differentiated."""
    method = METHODS[options.solver]
    plain = field.shape is not None and problem.layout.size <= MOST
    explicit = isinstance(method, Tableau) and not method.extra_a and options.coupling is None
    taped = options.dense or options.through_steps or options.callbacks or options.tstops
    return plain and explicit and not taped and not problem.times.per_sample and _fits(field.fn)


def _fits(fn: Any) -> bool:
    """Whether a field has not been found unfit, nor holds tensors that will be swapped back or were
    computed from others: for second derivatives it is evaluated again, on what it holds."""
    if isinstance(fn, nn.Module) and not all(isinstance(p, nn.Parameter) for p in fn.parameters()):
        return False
    if any(x.grad_fn is not None for x in closed_over_trainables(fn)):
        return False
    try:
        return _lasting(fn) not in _UNFIT
    except TypeError:  # no weak references, so that it could not be remembered
        return False


def _lasting(fn: Any) -> Any:
    """What stays of a field between two solves: of a bound method its function."""
    return getattr(fn, "__func__", fn)


class Steps:
    """The accepted steps of a solve, side by side.

    Attributes:
        h: (n,) their lengths.
        t, u: times (n·s,) and states (n·s, N) at which the stages were evaluated; ``k``, the
            values of the field there, for autograd.
    """

    def __init__(
        self, pieces: Sequence[Piece], c: Coefficients, plan: Outputs, stats: Statistics
    ) -> None:
        self._stats = stats
        z = torch.stack([piece.z for piece in pieces])
        stages = torch.stack([piece.stages for piece in pieces])
        rows = [[*row, *[0.0] * (len(c.tableau.b) - len(row))] for row in c.tableau.a]
        self.a, self.b = z.new_tensor(rows), c.b
        spans = torch.tensor([(p.t, p.t1) for p in pieces], dtype=torch.float64)
        starts, ends = spans.unsqueeze(2).unbind(1)
        nodes = torch.tensor(c.tableau.c, dtype=torch.float64)
        times = torch.where(nodes == 1.0, ends, starts + nodes * (ends - starts))
        self.h = (ends - starts)[:, 0].to(z)
        self.t = times.reshape(-1).to(z)
        inner = torch.einsum("ij,njd->nid", self.a, stages)
        u = z.unsqueeze(1) + self.h[:, None, None] * inner
        self.u = u.reshape(-1, z.shape[1]).requires_grad_()
        self._stages = stages.reshape(self.u.shape)
        self._read(spans, c, plan)
        self.k = self.u  # until they are evaluated

    def _read(self, spans: Tensor, c: Coefficients, plan: Outputs) -> None:
        """Which step each output is read from, and the weights of its stages."""
        self._begin = plan.until(plan.start)
        at = torch.tensor(plan.at[self._begin :], dtype=torch.float64)
        ends = plan.direction * spans[:, 1].contiguous()
        self._step = torch.searchsorted(ends, plan.direction * at).clamp_max(len(ends) - 1)
        t, t1 = spans[self._step].unbind(1)
        theta = (at - t) / (t1 - t)
        powers = torch.stack([theta**j for j in range(1, c.degree + 1)], dim=1)
        self._weights = (powers @ c.interpolant.t()).to(self.h)
        self._step = self._step.to(self.h.device)

    def evaluate(self, field: FlatField) -> bool:
        """Evaluate the field at all stages, for autograd; whether it gave what it gave before."""
        own = FlatField(field.fn, field.layout, field.args, Statistics(), form=field.form)
        with torch.enable_grad():
            try:
                self.k = torch.func.vmap(own)(self.t, self.u)
            except Exception:  # whatever a field does that vmap cannot
                return False
        eps = torch.finfo(self.u.dtype).eps ** 0.5
        return torch.allclose(self.k, self._stages, eps, eps * float(self._stages.abs().max()))

    def jacobians(self) -> Tensor:
        """(n, s, N, N): ∂k/∂u of every stage."""
        if not self.k.requires_grad:
            return self.k.new_zeros((len(self.h), len(self.b), *[self.k.shape[1]] * 2))
        rows = []
        for unit in torch.eye(self.k.shape[1]).to(self.k):
            (row,) = torch.autograd.grad(
                self.k, self.u, unit.expand_as(self.k), retain_graph=True, allow_unused=True
            )
            rows.append(torch.zeros_like(self.u) if row is None else row)
        found = torch.stack(rows, 1)
        return found.reshape(len(self.h), len(self.b), *found.shape[1:])

    def pull(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """dL/dz0 (N,) and dL/dk (n·s, N) from dL/dzs (T, N)."""
        n, s, size = len(self.h), len(self.b), grad.shape[1]
        self._stats.nfe_backward += n * s
        self._stats.vjp += n * s * (size + 1)
        read = grad[self._begin :]
        by_stage = torch.einsum("m,ms,md->msd", self.h[self._step], self._weights, read)
        # Of the columns, N are what λ₁ is multiplied with, one is what there is without it.
        kappa = grad.new_zeros((n, s, size, size + 1))
        kappa[..., size].index_add_(0, self._step, by_stage)
        kappa[..., :size] = torch.einsum("n,s,de->nsde", self.h, self.b, torch.eye(size).to(grad))
        pulled, transposed = torch.zeros_like(kappa), self.jacobians().mT
        for i in reversed(range(s)):
            later = torch.einsum("l,nlde->nde", self.a[i + 1 :, i], pulled[:, i + 1 :])
            kappa[:, i] += self.h[:, None, None] * later
            pulled[:, i] = transposed[:, i] @ kappa[:, i]
        step = pulled.sum(1)
        step[..., size].index_add_(0, self._step, read)
        lam, after = torch.zeros_like(grad[0]), []
        for own in step.flip(0).unbind():
            after.append(lam)
            lam = lam + torch.addmv(own[:, size], own[:, :size], lam)
        lambdas = torch.stack(after[::-1])
        found = kappa[..., size] + torch.einsum("nsde,ne->nsd", kappa[..., :size], lambdas)
        return lam + grad[: self._begin].sum(0), found.reshape(self.k.shape)


class _Gate(torch.autograd.Function):
    """The identity. Closed, nothing goes back through it: a gradient of what is behind it, taken
    beside that of the result, is then without the way through the result."""

    @staticmethod
    def forward(ctx: Any, closed: list[bool], x: Tensor) -> Tensor:
        ctx.closed = closed
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        return None, None if ctx.closed[0] else grad


class _Linearized(torch.autograd.Function):
    """The outputs of steps, which depend on the first state and on the stages."""

    @staticmethod
    def forward(
        ctx: Any, steps: Steps, again: Again, args: Any, zs: Tensor, z0: Tensor, k: Tensor,
        *rest: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.steps, ctx.again, ctx.args = steps, again, args
        ctx.save_for_backward(z0, *rest)
        return zs.view_as(zs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z0, *rest = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return (None, None, None, None, *ctx.steps.pull(grad), *[None] * len(rest))
        # Gradients that are differentiated again: of the same steps on the tape. z0 and args may
        # depend on each other and on what the field holds; each is to get its own part alone.
        closed = [True]
        twins = {id(x): _Gate.apply(closed, x) for x in _differentiable(ctx.args)}
        args = pytree.tree_map(lambda x: twins.get(id(x), x), ctx.args)
        start = _Gate.apply(closed, z0)
        inputs = [start, *twins.values(), *rest[len(twins) :]]
        wanted = [x for x in inputs if x.requires_grad]
        zs = ctx.again(start, args)
        found = torch.autograd.grad(zs, wanted, grad, create_graph=True, allow_unused=True)
        closed[0] = False
        grads = iter(found)
        of_z0, *others = (next(grads) if x.requires_grad else None for x in inputs)
        return (None, None, None, None, of_z0, None, *others)


def _differentiable(args: Any) -> list[Tensor]:
    """The tensors of args that require grad, each once."""
    leaves = pytree.tree_leaves(args)
    given = {id(x): x for x in leaves if isinstance(x, Tensor) and x.requires_grad}
    return list(given.values())


def attached(
    problem: ODEProblem,
    options: SolveOptions,
    field: FlatField,
    forward: Forward,
    z0: Tensor,
    again: Again,
) -> Tensor | None:
    """The outputs of a recorded solve with their gradients; None where the field cannot be
    evaluated so.

    Args:
        again: the outputs for z0 and args by the same steps on autograd's tape, for second
            derivatives.
    """
    method, log = METHODS[options.solver], forward.log
    assert isinstance(method, Tableau) and isinstance(log, StepLog)
    c, plan = coefficients(method, z0.dtype, z0.device), outputs(problem.times, problem.layout)
    steps = Steps(log.pieces, c, plan, field.stats)
    if not steps.evaluate(field):
        _UNFIT.add(_lasting(field.fn))
        return None
    given = _differentiable(field.args)
    found = trainables_behind(steps.k, field, [steps.u, *given])
    return _Linearized.apply(steps, again, field.args, forward.zs, z0, steps.k, *given, *found)
