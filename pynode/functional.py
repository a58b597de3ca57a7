"""Solving without a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from pynode.errors import InputError
from pynode.events import Event
from pynode.field import UserField
from pynode.hybrid import run
from pynode.options import SolveOptions
from pynode.problem import ODEProblem
from pynode.solution import Solution
from pynode.state import State


def solve(
    field: UserField | ODEProblem,
    z0: State = None,
    t: Any = None,
    args: Any = None,
    *,
    t0: float | Tensor | None = None,
    events: Sequence[Event] = (),
    dense: bool = True,
    **options: Any,
) -> Solution:
    """Solve dz/dt = f(t, z), z(t0) = z0.

    Args:
        field, z0, t, args, t0, events: see :class:`pynode.ODEProblem`, one of which may be given
            instead of them.
        dense: keep dense output for ``sol(s)``; it holds the stages of every step.
        options: fields of :class:`pynode.options.SolveOptions` (solver, rtol, dt, ...).

    Returns:
        A :class:`pynode.Solution` with ``zs`` of shape (T, *z0.shape).

    Raises:
        InputError: an argument does not fit.
        EventError: a condition or jump returned what cannot be used.
        FieldError: the field returned something that is no derivative of the state.
        SolveError: the solve failed (unless ``throw=False``).
    """
    chosen = SolveOptions.from_keywords({**options, "dense": dense})
    if isinstance(field, ODEProblem):
        if events:
            raise InputError("an ODEProblem holds its own events: give them there")
        return run(field, chosen)
    return run(ODEProblem(field, z0, t, args, t0, events), chosen)


def odeint(
    field: UserField,
    z0: State,
    t: Any,
    args: Any = None,
    *,
    t0: float | Tensor | None = None,
    **options: Any,
) -> State:
    """As :func:`solve`, but only the states: (T, *z0.shape)."""
    return solve(field, z0, t, args, t0=t0, dense=False, **options).zs


def ensemble(
    field: UserField,
    z0s: State,
    t: Any,
    params: Any = None,
    *,
    t0: float | Tensor | None = None,
    backend: str | None = None,
    **options: Any,
) -> Solution:
    """Solve many initial value problems of one field at once, each with steps of its own.

    Args:
        field: f(t, z), f(t, z, params) or f(z) for a batch: z of shape (n, ...), params with one
            entry for each of the n. n is the number of trajectories still on their way.
        z0s: initial states, (B, ...), or a tuple or dict of them.
        t: times that all share (T,), or each trajectory's own (B, T), see
            :class:`pynode.ODEProblem`.
        params: any nest of tensors (B, ...), each trajectory's own parameters. (What all share,
            the field may hold itself.)
        t0: one time, or (B,), at which z0s hold; default: the first times.
        backend: with ``engine="julia"``, solve all in one kernel, a thread each, on ``"cpu"`` or
            ``"cuda"`` (DiffEqGPU's EnsembleGPUKernel): for thousands of small systems without
            gradients, see docs/julia.md.
        options: as for :func:`solve`, ``events`` among them.

    Returns:
        A :class:`pynode.Solution` with ``zs`` of shape (T, B, ...), and how each trajectory ended
        in ``samples``.

    Raises:
        InputError: a tensor of ``params`` has another first dimension than ``z0s``.
        SolveError: a trajectory failed (unless ``throw=False``), after the others had ended.
    """
    if options.setdefault("step_control", "per_sample") != "per_sample":
        raise InputError("an ensemble's members step by themselves: leave step_control out")
    count = _common_length("z0s", z0s, None)
    if params is not None:
        _common_length("params", params, count)
    if backend is not None:
        chosen = SolveOptions.from_keywords({"dense": False, **options})
        if chosen.engine != "julia":
            raise InputError("backend= is for engine='julia': others go by the tensors' device")
        from pynode.engines.julia.ensemble import ensemble as in_one_kernel

        return in_one_kernel(field, z0s, t, params, t0, backend, chosen)
    if params is not None:
        options.setdefault("batched_args", True)
    options.setdefault("dense", False)
    return solve(field, z0s, t, params, t0=t0, **options)


def _common_length(name: str, tree: Any, count: int | None) -> int:
    """The first dimension that all tensors of a nest share; ``count``, if it is given."""
    for leaf in pytree.tree_leaves(tree):
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            raise InputError(
                f"{name} must hold tensors with one entry for each trajectory, not "
                f"{'a number' if isinstance(leaf, Tensor) else type(leaf).__name__}"
            )
        if count is not None and len(leaf) != count:
            raise InputError(
                f"{name} holds a tensor of shape {tuple(leaf.shape)}, but there are {count} "
                "trajectories: its first dimension must be theirs"
            )
        count = len(leaf)
    if count is None:
        raise InputError(f"{name} holds no tensor")
    return count
