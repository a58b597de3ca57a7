"""The one seam between autograd and the engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode.engines import engine as engine_named
from pynode.engines.torch.engine import Forward, TorchEngine
from pynode.engines.torch.per_sample.engine import PerSampleEngine
from pynode.errors import GradientError, SolveError
from pynode.field import FlatField, trainable_tensors
from pynode.field import closed_over_trainables as closed_over
from pynode.options import SolveOptions
from pynode.problem import ODEProblem
from pynode.solution import Solution
from pynode.time_gradients import (
    carry,
    initial_time_gradient,
    output_time_gradient,
    shift_outputs,
    zero_shift,
)


def run(problem: ODEProblem, options: SolveOptions) -> Solution:
    """Solve, with gradients as the sensitivity says.

    Raises:
        SolveError: the solve failed and ``options.throw`` is set.
    """
    engine = engine_named(options.engine)
    if options.step_control == "per_sample":
        if _transforms_active():
            raise GradientError(
                "step_control='per_sample' does not work under torch.func transforms or "
                "forward-mode AD: use step_control='joint'"
            )
        engine, problem = PerSampleEngine(), problem.per_sample()
    z0 = problem.layout.flatten(problem.z0)
    if options.sensitivity == "discrete" and options.checkpoints is None:
        return _taped(engine, problem, options, z0)
    if _transforms_active():
        raise GradientError(
            f"sensitivity={options.sensitivity!r} does not work under torch.func transforms or "
            "forward-mode AD: use sensitivity='discrete' without checkpoints"
        )
    if not torch.is_grad_enabled():
        field = engine.field(problem, options, problem.args)
        return _plain(engine, problem, options, field, z0)
    return _with_adjoint(engine, problem, options, z0)


def _plain(
    engine: TorchEngine,
    problem: ODEProblem,
    options: SolveOptions,
    field: FlatField,
    z0: Tensor,
    first: Tensor | None = None,
) -> Solution:
    """No gradients: the engine's fastest way."""
    with torch.no_grad():
        z0 = z0.detach()
        forward = engine.solve(problem, options, field, z0, first=first, record=options.dense)
    return _finish(engine, problem, options, field, forward, forward.zs, "")


def _taped(engine: TorchEngine, problem: ODEProblem, options: SolveOptions, z0: Tensor) -> Solution:
    """Discrete gradients: autograd follows the engine's steps."""
    times = problem.times
    field = engine.field(problem, options, problem.args)
    transformed = _transforms_active()
    if not transformed:
        if not torch.is_grad_enabled():
            return _plain(engine, problem, options, field, z0)
        inputs = [z0, times.t, times.t0, *_args_tensors(problem.args)]
        if not any(x.requires_grad for x in inputs) and not closed_over(field.fn):
            found, first = trainable_tensors(field, times.start, z0)
            if not found:
                return _plain(engine, problem, options, field, z0, first)
    if times.t0.requires_grad:
        start = times.t0.to(z0) if times.t0.ndim == 0 else times.start
        z0 = carry(field, start, z0, -zero_shift(times.t0), problem.layout.rows)
    forward = engine.solve(
        problem, options, field, z0, record=options.dense, taped=True, transformed=transformed
    )
    zs = forward.zs
    if times.t.requires_grad and forward.differentiable:
        zs = shift_outputs(field, problem, zs)
    _count_taped_backward(zs, field, forward.taped)
    return _finish(engine, problem, options, field, forward, zs, "")


def _count_taped_backward(zs: Tensor, field: FlatField, taped: int | None) -> None:
    """One vector-Jacobian product for each evaluation on the tape, once backward runs."""
    evaluations = field.stats.nfe if taped is None else taped

    def count(grad: Tensor) -> None:
        field.stats.vjp = evaluations

    if zs.requires_grad and not _transforms_active():
        zs.register_hook(count)


@dataclass
class _Call:
    """What the backward pass has to know of a solve."""

    engine: TorchEngine
    problem: ODEProblem
    options: SolveOptions
    field: FlatField
    leaves: list[Tensor]
    closed_over: list[int]
    first: Tensor
    forward: Forward | None = None


def _with_adjoint(
    engine: TorchEngine, problem: ODEProblem, options: SolveOptions, z0: Tensor
) -> Solution:
    """Gradients by the engine's own backward pass."""
    times = problem.times
    originals, leaves, args = _detached_args(problem.args)
    field = engine.field(problem, options, args)
    static = [id(x) for x in closed_over(field.fn)]
    found, first = trainable_tensors(field, times.start, z0)
    tensors = [*originals, *found]
    if not any(x.requires_grad for x in (z0, times.t, times.t0, *tensors)):
        return _plain(engine, problem, options, field, z0, first)
    call = _Call(engine, problem, options, field, [*leaves, *found], static, first)
    zs = _Seam.apply(call, z0, times.t0, times.t, *tensors)
    assert call.forward is not None
    why = f"sol(s) carries no gradient with sensitivity={options.sensitivity!r}"
    return _finish(engine, problem, options, field, call.forward, zs, why)


class _Seam(torch.autograd.Function):
    """engine.solve forwards, engine.adjoint backwards."""

    @staticmethod
    def forward(
        ctx: Any, call: _Call, z0: Tensor, t0: Tensor, t: Tensor, *tensors: Tensor
    ) -> Tensor:
        engine, options = call.engine, call.options
        record, keep = engine.keeps(options)
        call.forward = engine.solve(
            call.problem,
            options,
            call.field,
            z0.detach(),
            first=call.first,
            record=record or options.dense,
            keep=keep,
        )
        ctx.call = call
        ctx.save_for_backward(call.forward.zs, z0, *tensors)
        return call.forward.zs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        zs, z0, *tensors = ctx.saved_tensors
        call: _Call = ctx.call
        _check_backward(call)
        with torch.no_grad():
            grads = _backward(call, zs.detach(), z0.detach(), grad.detach(), ctx.needs_input_grad)
        if torch.is_grad_enabled():
            grads = _only_once(call.options.sensitivity, grads, [grad, z0, *tensors])
        return (None, *grads)


def _backward(
    call: _Call, zs: Tensor, z0: Tensor, grad: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    problem, field = call.problem, call.field.for_backward()
    assert call.forward is not None
    grad = grad.contiguous()
    grad_z0, grads = call.engine.adjoint(
        problem, call.options, field, call.leaves, call.forward, zs, grad
    )
    grad_t0 = initial_time_gradient(field, problem, z0, grad_z0) if needed[2] else None
    grad_t = output_time_gradient(field, problem, zs, grad) if needed[3] else None
    return grad_z0, grad_t0, grad_t, *grads


def _check_backward(call: _Call) -> None:
    assert call.forward is not None
    if not call.forward.differentiable:
        raise GradientError(f"the solve failed, so it has no gradient: {call.forward.message}")
    if [id(x) for x in closed_over(call.field.fn)] != call.closed_over:
        raise GradientError(
            "the field's parameters are other tensors now than in the forward pass (swapped in "
            "by torch.func.functional_call, or reassigned). The adjoint evaluates the field "
            "again and would use the wrong ones: use sensitivity='discrete'"
        )


class _Once(torch.autograd.Function):
    """Passes gradients on, and says so when they are differentiated again."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise GradientError(
            f"sensitivity={ctx.name!r} gives first derivatives only: for double backward use "
            "sensitivity='discrete' without checkpoints"
        )


def _only_once(
    name: str, grads: tuple[Tensor | None, ...], inputs: list[Tensor]
) -> tuple[Tensor | None, ...]:
    present = [g for g in grads if g is not None]
    marked = iter(_Once.apply(name, len(present), *present, *inputs))
    return tuple(None if g is None else next(marked) for g in grads)


def _finish(
    engine: TorchEngine,
    problem: ODEProblem,
    options: SolveOptions,
    field: FlatField,
    forward: Forward,
    zs: Tensor,
    no_gradient: str,
) -> Solution:
    solution = Solution(
        ts=problem.times.given,
        zs=problem.layout.restore(zs),
        stats=field.stats,
        retcode=forward.retcode,
        message=forward.message,
        samples=forward.samples,
    )
    if options.dense and forward.log:
        solution.dense = engine.dense_output(problem, options, field, forward, no_gradient)
    if options.throw and not solution.success:
        raise SolveError(
            forward.message,
            str(forward.retcode),
            forward.t,
            forward.sample,
            solution,
            forward.samples.failed if forward.samples else (),
        )
    return solution


def _args_tensors(args: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(args) if isinstance(x, Tensor)]


def _detached_args(args: Any) -> tuple[list[Tensor], list[Tensor], Any]:
    """Tensors of args that require grad, fresh leaves for them, and args made of the latter."""
    items, spec = pytree.tree_flatten(args)
    originals, leaves = [], []
    for i, item in enumerate(items):
        if isinstance(item, Tensor) and item.requires_grad:
            items[i] = item.detach().requires_grad_()
            originals.append(item)
            leaves.append(items[i])
    return originals, leaves, pytree.tree_unflatten(items, spec)


def _transforms_active() -> bool:
    """Whether a torch.func transform or forward-mode AD is going on."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )
