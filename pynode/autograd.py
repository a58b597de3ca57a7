"""The one seam between autograd and the engines."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pynode.engines import engine as engine_named
from pynode.engines.torch import linearized
from pynode.engines.torch.crossings import Watch
from pynode.engines.torch.engine import Forward, TorchEngine
from pynode.engines.torch.per_sample.crossings import RowWatch
from pynode.engines.torch.per_sample.engine import PerSampleEngine
from pynode.engines.torch.per_sample.marks import Merged
from pynode.errors import GradientError, SolveError
from pynode.field import FlatField, trainable_tensors
from pynode.field import closed_over_trainables as closed_over
from pynode.options import SolveOptions
from pynode.precision import active_autocast, without_autocast
from pynode.problem import ODEProblem
from pynode.solution import Retcode, Solution, Statistics
from pynode.time_gradients import (
    carry,
    initial_time_gradient,
    output_time_gradient,
    shift_outputs,
    zero_shift,
)
from pynode.times import Times
from pynode.transforms import transforms_active

AnyWatch = Watch | RowWatch
_NOTHING = nullcontext()
_SWAPPED = (
    "the field's parameters are other tensors now than in the forward pass (swapped in by "
    "torch.func.functional_call, or reassigned), and the backward pass would use the wrong ones: "
)


@dataclass
class Part:
    """A solve from one state on, through no event that ends it.

    Attributes:
        forward: the engine's result.
        zs: its outputs (T, N), with gradients as the sensitivity says.
        marks: the states (M, N) at the events that were found, likewise.
        dense: its dense output, where kept.
    """

    forward: Forward
    zs: Tensor
    marks: Tensor | None
    dense: Any = None


def run(problem: ODEProblem, options: SolveOptions) -> Solution:
    """Solve a problem without events, with gradients as the sensitivity says.

    Raises:
        GradientError: steps per sample under a torch.func transform.
        SolveError: the solve failed and ``options.throw`` is set.
    """
    if options.step_control == "per_sample" and transforms_active():
        raise GradientError(
            "step_control='per_sample' does not work under torch.func transforms or "
            "forward-mode AD: use step_control='joint'"
        )
    if options.step_control == "per_sample" and options.engine == "torch":
        problem = problem.per_sample()
    stats = Statistics()
    part = integrate(problem, options, stats)
    forward = part.forward
    solution = Solution(
        ts=problem.times.given,
        zs=problem.layout.restore(part.zs),
        stats=stats,
        retcode=forward.retcode,
        message=forward.message,
        dense=part.dense,
        samples=forward.samples,
    )
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


def engine_of(options: SolveOptions, device: torch.device) -> Any:
    """The engine that solves by these options for a state on that device."""
    # Compiled engines are imported when asked for: they trace fields, which needs much of torch.
    if options.compile and device.type == "cuda":
        from pynode.engines.torch.graphed.engine import GraphedEngine

        return GraphedEngine()
    if options.compile:
        from pynode.engines.torch.compiled.engine import CompiledEngine

        return CompiledEngine()
    if options.step_control == "per_sample" and options.engine == "torch":
        return PerSampleEngine()
    return engine_named(options.engine)


def integrate(
    problem: ODEProblem,
    options: SolveOptions,
    stats: Statistics,
    watch: AnyWatch | None = None,
    engine: TorchEngine | None = None,
) -> Part:
    """Solve on flat states, up to an event that ends it where there is a ``watch``.

    Args:
        engine: the one that the options name, where it is to be used again.
    """
    device = problem.layout.device
    autocast = active_autocast(device)
    engine = engine or engine_of(options, device)
    field = engine.field(problem, options, problem.args, stats, autocast)
    with without_autocast(device, autocast):
        return _integrate(engine, problem, options, field, watch)


def _integrate(
    engine: TorchEngine,
    problem: ODEProblem,
    options: SolveOptions,
    field: FlatField,
    watch: AnyWatch | None,
) -> Part:
    z0 = problem.layout.flatten(problem.z0)
    on_tape = options.checkpoints is None and not options.compile and options.engine == "torch"
    if options.sensitivity == "discrete" and on_tape:
        return _taped(engine, problem, options, field, z0, watch)
    if transforms_active():
        raise GradientError(
            f"sensitivity={options.sensitivity!r} does not work under torch.func transforms or "
            "forward-mode AD: use sensitivity='discrete' of engine='torch', without checkpoints"
        )
    if not torch.is_grad_enabled():
        return _plain(engine, problem, options, field, z0, watch)
    return _with_adjoint(engine, problem, options, field, z0, watch)


def _plain(
    engine: TorchEngine,
    problem: ODEProblem,
    options: SolveOptions,
    field: FlatField,
    z0: Tensor,
    watch: AnyWatch | None,
    first: Tensor | None = None,
) -> Part:
    """No gradients: the engine's fastest way."""
    with torch.no_grad() if torch.is_grad_enabled() else _NOTHING:
        z0 = z0.detach() if z0.requires_grad else z0
        forward = engine.solve(
            problem, options, field, z0, first=first, record=options.dense, watch=watch
        )
    return _part(engine, problem, options, field, forward, forward.zs, forward.marks)


def _taped(
    engine: TorchEngine,
    problem: ODEProblem,
    options: SolveOptions,
    field: FlatField,
    z0: Tensor,
    watch: AnyWatch | None,
) -> Part:
    """Discrete gradients: autograd follows the engine's steps."""
    times = problem.times
    transformed = transforms_active()
    if transformed and options.through_steps:
        raise GradientError(
            "through_steps=True does not work under torch.func transforms or forward-mode AD"
        )
    if not transformed:
        if not torch.is_grad_enabled():
            return _plain(engine, problem, options, field, z0, watch)
        inputs = [z0, times.t, times.t0, *_args_tensors(problem.args)]
        if not any(x.requires_grad for x in inputs) and not closed_over(field.fn):
            found, first = trainable_tensors(field, times.start, z0)
            if not found:
                return _plain(engine, problem, options, field, z0, watch, first)
    if times.t0.requires_grad:
        start = times.t0.to(z0) if times.t0.ndim == 0 else times.start
        z0 = carry(field, start, z0, -zero_shift(times.t0), problem.layout.rows)
    linear = None
    if watch is None and not transformed and linearized.serves(problem, options, field):
        linear = _linearized(engine, problem, options, field, z0)
    forward = linear or engine.solve(
        problem,
        options,
        field,
        z0,
        record=options.dense,
        taped=True,
        transformed=transformed,
        watch=watch,
    )
    zs = forward.zs
    if times.t.requires_grad and forward.differentiable:
        n = len(zs) if watch is None else forward.reached
        if n == len(zs):
            zs = shift_outputs(field, problem, zs)
        elif n:  # what lies beyond an event is NaN
            shifted = shift_outputs(field, problem.with_times(times.head(n)), zs[:n])
            zs = torch.cat([shifted, zs[n:]])
    for results in (zs, forward.marks) if linear is None else ():
        _count_taped_backward(results, field, forward.taped)
    return _part(engine, problem, options, field, forward, zs, forward.marks)


def _linearized(
    engine: TorchEngine, problem: ODEProblem, options: SolveOptions, field: FlatField, z0: Tensor
) -> Forward | None:
    """A solve with discrete gradients but no tape, see ``engines/torch/linearized.py``; None, and
    nothing counted, where that way is closed."""

    def solve(problem: ODEProblem, z0: Tensor, args: Any, stats: Statistics, **how: Any) -> Forward:
        own = engine.field(problem, options, args, stats, field.autocast)
        return engine.solve(problem, options, own, z0, **how)

    def again(z0: Tensor, args: Any) -> Tensor:
        asked = problem
        if [id(x) for x in closed_over(field.fn)] != before:
            if module is None:
                raise GradientError(_SWAPPED + "differentiate again before they are swapped back")
            own = module  # with what it held
            asked = problem.with_field(lambda *call: torch.func.functional_call(own, held, call))
        return solve(asked, z0, args, Statistics(), taped=True).zs

    before, stats = [id(x) for x in closed_over(field.fn)], Statistics()
    module = field.fn if isinstance(field.fn, nn.Module) else None
    held = {} if module is None else dict([*module.named_parameters(), *module.named_buffers()])
    with torch.no_grad():
        forward = solve(problem, z0.detach(), problem.args, stats, record=True)
    if forward.retcode is not Retcode.SUCCESS:
        return None
    zs = linearized.attached(problem, options, field, forward, z0, again)
    if zs is None:
        return None
    field.stats.add(stats)
    return replace(forward, zs=zs)


def _count_taped_backward(results: Tensor | None, field: FlatField, taped: int | None) -> None:
    """One vector-Jacobian product for each evaluation on the tape, once backward runs."""
    evaluations = field.stats.nfe if taped is None else taped

    def count(grad: Tensor) -> None:
        field.stats.vjp = max(field.stats.vjp, evaluations)

    if results is not None and results.requires_grad and not transforms_active():
        results.register_hook(count)


@dataclass
class _Call:
    """What the backward pass has to know of a solve."""

    engine: TorchEngine
    problem: ODEProblem
    options: SolveOptions
    field: FlatField
    leaves: list[Tensor]
    closed_over: list[int] | None
    first: Tensor | None
    watch: AnyWatch | None
    forward: Forward | None = None


def _with_adjoint(
    engine: TorchEngine,
    problem: ODEProblem,
    options: SolveOptions,
    field: FlatField,
    z0: Tensor,
    watch: AnyWatch | None,
) -> Part:
    """Gradients by the engine's own backward pass."""
    times = problem.times
    originals, leaves, args = _detached_args(problem.args)
    field = engine.field(problem, options, args, field.stats, field.autocast)
    again = engine.evaluates_again(options) or times.t.requires_grad or times.t0.requires_grad
    static = [id(x) for x in closed_over(field.fn)] if again else None
    found, first = engine.trainable(problem, options, field, z0)
    tensors = [*originals, *found]
    if not any(x.requires_grad for x in (z0, times.t, times.t0, *tensors)):
        return _plain(engine, problem, options, field, z0, watch, first)
    call = _Call(engine, problem, options, field, [*leaves, *found], static, first, watch)
    zs, marks = _Seam.apply(call, z0, times.t0, times.t, *tensors)
    assert call.forward is not None
    why = f"sol(s) carries no gradient with sensitivity={options.sensitivity!r}"
    return _part(engine, problem, options, field, call.forward, zs, marks, why)


class _Seam(torch.autograd.Function):
    """engine.solve forwards, engine.adjoint backwards."""

    @staticmethod
    def forward(
        ctx: Any, call: _Call, z0: Tensor, t0: Tensor, t: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor | None]:
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
            watch=call.watch,
        )
        ctx.call = call
        zs, marks = call.forward.zs, call.forward.marks
        ctx.save_for_backward(zs, marks, z0, *tensors)
        return zs, marks

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_marks: Tensor | None) -> tuple[Tensor | None, ...]:
        zs, marks, z0, *tensors = ctx.saved_tensors
        call: _Call = ctx.call
        _check_backward(call)
        with torch.no_grad(), without_autocast(zs.device):
            grads = _backward(
                call, zs.detach(), marks, grad.detach(), grad_marks, z0, ctx.needs_input_grad
            )
        if torch.is_grad_enabled():
            inputs = [grad, z0, *tensors] + ([] if grad_marks is None else [grad_marks])
            grads = _only_once(call.options.sensitivity, grads, inputs)
        return (None, *grads)


def _backward(
    call: _Call,
    zs: Tensor,
    marks: Tensor | None,
    grad: Tensor,
    grad_marks: Tensor | None,
    z0: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    problem, field, forward = call.problem, call.field.for_backward(), call.forward
    assert forward is not None
    grad, z0 = grad.contiguous(), z0.detach()
    asked, zs_asked, grad_asked = problem, zs, grad
    if isinstance(call.watch, RowWatch):
        assert forward.samples is not None and grad_marks is not None
        merged = Merged(problem.times, forward.samples.outputs.numpy(), call.watch.found)
        asked = problem.with_times(merged.times)
        zs_asked, grad_asked = zs[:1], merged.join(torch.nan_to_num(grad), grad_marks)
        reached = torch.from_numpy(merged.counts)
        forward = replace(forward, samples=replace(forward.samples, outputs=reached))
    elif call.watch is not None:
        assert marks is not None and grad_marks is not None
        asked, order = _with_marks(problem, forward.reached, call.watch)
        zs_asked = torch.cat([zs[: forward.reached], marks.detach()])[order]
        grad_asked = torch.cat([grad[: forward.reached], grad_marks.detach()])[order]
        forward = replace(forward, zs=zs_asked, final=zs_asked[-1])
    grad_z0, grads = call.engine.adjoint(
        asked, call.options, field, call.leaves, forward, zs_asked, grad_asked
    )
    grad_t0 = initial_time_gradient(field, problem, z0, grad_z0) if needed[2] else None
    grad_t = _output_times(call, field, zs, grad) if needed[3] else None
    return grad_z0, grad_t0, grad_t, *grads


def _with_marks(problem: ODEProblem, reached: int, watch: Watch) -> tuple[ODEProblem, list[int]]:
    """The problem with outputs at the events too, and the order of (outputs, events) in it."""
    times = problem.times
    values = [*times.values[:reached], *(crossing.t for crossing in watch.found)]
    order = sorted(range(len(values)), key=lambda i: times.direction * values[i])
    merged = torch.tensor([values[i] for i in order], dtype=torch.float64)
    return problem.with_times(Times(merged, times.t0)), order


def _output_times(call: _Call, field: FlatField, zs: Tensor, grad: Tensor) -> Tensor:
    problem, forward = call.problem, call.forward
    assert forward is not None
    if not isinstance(call.watch, Watch):
        return output_time_gradient(field, problem, zs, grad)
    grad_t, n = torch.zeros_like(problem.times.t), forward.reached
    if n:
        reached = problem.with_times(problem.times.head(n))
        grad_t[:n] = output_time_gradient(field, reached, zs[:n], grad[:n])
    return grad_t


def _check_backward(call: _Call) -> None:
    assert call.forward is not None
    if not call.forward.differentiable:
        raise GradientError(f"the solve failed, so it has no gradient: {call.forward.message}")
    if call.closed_over is None:  # the field is not evaluated again
        return
    if [id(x) for x in closed_over(call.field.fn)] != call.closed_over:
        raise GradientError(
            f"{_SWAPPED}use sensitivity='discrete', which does not evaluate the field again"
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
            "sensitivity='discrete' of engine='torch', without checkpoints, with compile=False"
        )


def _only_once(
    name: str, grads: tuple[Tensor | None, ...], inputs: list[Tensor]
) -> tuple[Tensor | None, ...]:
    present = [g for g in grads if g is not None]
    marked = iter(_Once.apply(name, len(present), *present, *inputs))
    return tuple(None if g is None else next(marked) for g in grads)


class _FirstOnly(torch.autograd.Function):
    """The identity, for values whose second derivatives would be wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        if torch.is_grad_enabled():
            (grad,) = _only_once(ctx.name, (grad,), [grad])  # type: ignore[assignment]
        return grad, None


def first_derivatives_only(x: Tensor, sensitivity: str) -> Tensor:
    """x, refusing to be differentiated twice."""
    return _FirstOnly.apply(x, sensitivity)


def _part(
    engine: TorchEngine,
    problem: ODEProblem,
    options: SolveOptions,
    field: FlatField,
    forward: Forward,
    zs: Tensor,
    marks: Tensor | None,
    no_gradient: str = "",
) -> Part:
    dense = None
    if options.dense and forward.log:
        dense = engine.dense_output(problem, options, field, forward, no_gradient)
    return Part(forward, zs, marks, dense)


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
