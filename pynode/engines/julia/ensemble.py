"""Ensembles in one kernel, a trajectory a thread, by DiffEqGPU's EnsembleGPUKernel."""

from __future__ import annotations

import json
import weakref
from array import array
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode import catalogue
from pynode.engines.julia import calls, runtime
from pynode.engines.julia.calls import Block, bridge
from pynode.engines.julia.fields import RemoteField
from pynode.errors import GradientError, InputError, JuliaError, SolveError
from pynode.field import FlatField, UserField, trainable_tensors
from pynode.lowering import lower
from pynode.options import SolveOptions
from pynode.problem import ODEProblem
from pynode.solution import Retcode, SampleOutcomes, Solution, Statistics
from pynode.state import State, StateLayout

PACKAGES = {"cpu": ("DiffEqGPU",), "cuda": ("DiffEqGPU", "CUDA")}
"""What a backend needs in Julia."""

TAKEN = {"engine", "solver", "rtol", "atol", "dt", "adaptive", "throw", "dense", "step_control"}
"""Options that a kernel can do something with."""

_REMOTES: weakref.WeakKeyDictionary[Any, RemoteField] = weakref.WeakKeyDictionary()


def ensemble(
    field: UserField,
    z0s: State,
    t: Any,
    params: Any,
    t0: Any,
    backend: str,
    options: SolveOptions,
) -> Solution:
    """As :func:`pynode.ensemble`, in one kernel on ``backend``, ``"cpu"`` or ``"cuda"``.

    Raises:
        InputError: what was asked for has no counterpart in a kernel.
        GradientError: gradients were asked for; a kernel has none.
        JuliaError: the Julia packages are not there, or the kernel failed.
    """
    problem = ODEProblem(field, z0s, t, params, t0)
    _check(problem, backend, options)
    layout, z0 = problem.layout, problem.layout.flatten(problem.z0).detach().contiguous()
    count = layout.rows or 1
    leaves = [x for x in pytree.tree_leaves(params) if isinstance(x, Tensor)]
    one = StateLayout(_first(problem.z0))
    own = FlatField(field, one, _first(params), Statistics())
    start = z0.reshape(count, -1)[0]
    with torch.enable_grad():
        found = trainable_tensors(own, problem.times.start, start)[0]
    if torch.is_grad_enabled() and any(
        x.requires_grad for x in [*pytree.tree_leaves(z0s), *leaves, *found]
    ):
        raise GradientError(
            "an ensemble in one kernel has no gradients: call it under torch.no_grad(), or leave "
            "backend= out"
        )
    remote = _remote(own, start, problem.times.start, found, catalogue.solver(options.solver).stiff)
    shared = _flat(found, z0)
    p = torch.cat(
        [shared.expand(count, -1), *(x.detach().reshape(count, -1).to(z0.dtype) for x in leaves)],
        dim=1,
    ).contiguous()
    zs = _run(remote, problem, options, backend, z0.cpu(), p.cpu())  # Julia copies them itself
    return _solution(problem, options, zs)


def _check(problem: ODEProblem, backend: str, options: SolveOptions) -> None:
    if backend not in PACKAGES:
        raise InputError(f"backend={backend!r} is not one of {', '.join(PACKAGES)}")
    default = SolveOptions.from_keywords(
        {"solver": options.solver, "engine": "julia", "step_control": options.step_control}
    )
    for name in vars(default):
        if name not in TAKEN and getattr(options, name) != getattr(default, name):
            raise InputError(f"an ensemble in one kernel has no option {name}")
    for name in ("rtol", "atol"):
        if isinstance(getattr(options, name), Tensor):
            raise InputError(f"an ensemble in one kernel takes one number for {name}")
    if problem.times.per_sample:
        raise InputError("an ensemble in one kernel takes times (T,) that all trajectories share")
    if problem.layout.rows is None:
        raise InputError("an ensemble's z0s have shape (B, ...): one entry for each trajectory")
    if problem.layout.dtype not in (torch.float32, torch.float64):
        raise InputError(f"kernels are for float32 and float64, not {problem.layout.dtype}")
    if any(not x.is_floating_point() for x in pytree.tree_leaves(problem.args) if _is(x)):
        raise InputError("params of an ensemble in one kernel hold floating-point numbers only")


def _flat(tensors: list[Tensor], like: Tensor) -> Tensor:
    """Present values as one vector (P,) of the dtype of ``like``."""
    if not tensors:
        return like.new_empty(0)
    return torch.cat([x.flatten() for x in tensors]).detach().to(like.dtype)


def _remote(
    own: FlatField, start: Tensor, t0: float, found: list[Tensor], stiff: bool
) -> RemoteField:
    names = ("f", *(("jac", "tgrad") if stiff else ()))
    lowered = lower(own, start, t0, names, tensors=found)
    last = lowered.programs[names[-1]]
    if last not in _REMOTES:
        number = bridge().open_program(json.dumps(lowered.to_json()))
        _REMOTES[last] = RemoteField(number, found, True)
    return _REMOTES[last]


def _run(
    remote: RemoteField,
    problem: ODEProblem,
    options: SolveOptions,
    backend: str,
    z0: Tensor,
    p: Tensor,
) -> Tensor:
    """The states (T, B·N), on the CPU as ``z0`` and ``p`` are."""
    runtime.load(*PACKAGES[backend])
    times, layout = problem.times, problem.layout
    values = [float(x) for x in times.values]
    moments = array("d", values if values[0] == times.start else [times.start, *values])
    count = layout.rows or 1
    zs = z0.new_empty(len(moments), z0.numel())
    block = Block()
    ints, floats = block.ints, block.floats
    ints[calls.N], ints[calls.SAMPLES], ints[calls.P] = z0.numel() // count, count, p.shape[1]
    ints[calls.Z0], ints[calls.PARAMETERS] = z0.data_ptr(), p.data_ptr()
    ints[calls.TIMES], ints[calls.TS] = len(moments), moments.buffer_info()[0]
    ints[calls.ZS], ints[calls.FLOAT32] = zs.data_ptr(), z0.dtype == torch.float32
    ints[calls.ADAPTIVE] = options.is_adaptive
    floats[0], floats[1] = options.rtol, options.atol  # type: ignore[assignment]
    if options.dt is not None:
        floats[2] = options.dt
    try:
        bridge().ensemble(remote.number, options.solver, backend, block)
    except JuliaError as error:
        if "dt<dtmin" in str(error):
            raise JuliaError(
                "a trajectory's steps became too small, which ends the whole kernel: its solution "
                "may blow up. Loosen rtol and atol, shorten the times, or leave backend= out, "
                "which tells which trajectory it is"
            ) from error
        raise
    return zs[len(moments) - len(values) :]


def _solution(problem: ODEProblem, options: SolveOptions, zs: Tensor) -> Solution:
    count, layout = problem.layout.rows or 1, problem.layout
    finite = zs.reshape(len(zs), count, -1).isfinite().all(dim=2)
    outputs = finite.cumprod(dim=0).sum(dim=0)
    messages = {
        b: f"trajectory {b} became NaN or infinite after its output {int(outputs[b])}"
        for b in (outputs < len(zs)).nonzero().flatten().tolist()
    }
    retcodes = [Retcode.NON_FINITE if b in messages else Retcode.SUCCESS for b in range(count)]
    none = torch.zeros(count, dtype=torch.int64)
    ts = problem.times.t.detach().to("cpu", torch.float64)
    reached = torch.where(outputs > 0, ts[(outputs - 1).clamp_min(0)], problem.times.start)
    solution = Solution(
        ts=problem.times.given,
        zs=layout.restore(zs.to(layout.device)),
        stats=Statistics(),
        retcode=Retcode.NON_FINITE if messages else Retcode.SUCCESS,
        message="; ".join(list(messages.values())[:3]),
        samples=SampleOutcomes(retcodes, reached, outputs, none, none, none, 0, messages),
    )
    if options.throw and messages:
        worst = min(messages)
        raise SolveError(
            solution.message,
            str(solution.retcode),
            float(reached[worst]),
            worst,
            solution,
            tuple(sorted(messages)),
        )
    return solution


def _first(tree: Any) -> Any:
    return pytree.tree_map(lambda x: x[:1] if isinstance(x, Tensor) else x, tree)


def _is(x: Any) -> bool:
    return isinstance(x, Tensor)
