"""The julia engine: fields lowered into Julia, solved by OrdinaryDiffEq, differentiated by
SciMLSensitivity."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode import catalogue
from pynode.dense import DenseOutput
from pynode.engines.julia import calls, places
from pynode.engines.julia.calls import bridge
from pynode.engines.julia.fields import (
    Asked,
    JuliaFlatField,
    Pieces,
    RemoteField,
    RemoteFields,
    floating,
    programs_of,
)
from pynode.engines.julia.form import RepeatedSolve, SolveForm, block_of, counted
from pynode.engines.julia.julia_field import JuliaField
from pynode.engines.julia.reads import Reads
from pynode.errors import GradientError, InputError, JuliaError
from pynode.field import FlatField
from pynode.options import SolveOptions
from pynode.precision import Autocast
from pynode.problem import ODEProblem
from pynode.solution import Retcode, Statistics

UNSUPPORTED = {
    "norm": ("rms", "its solvers use the RMS norm"),
    "adjoint_seminorm": (False, "SciMLSensitivity has no seminorm"),
    "checkpoints": (None, "it keeps the dense output of the forward solve"),
    "jac": (None, "Jacobians come from the lowered field"),
    "safety": (0.9, "each of its solvers has a step-size controller of its own"),
    "shrink": (0.2, "each of its solvers has a step-size controller of its own"),
    "grow": (10.0, "each of its solvers has a step-size controller of its own"),
    "dt_min": (0.0, "its solvers choose the smallest step themselves"),
    "grid": ((), "fixed steps go by dt, and tstops are landed on"),
    "through_steps": (False, "its steps are taken as they are"),
    "callbacks": (None, "nothing is called back during its steps"),
    "batched_time": (None, "the field is lowered for one time"),
    "batched_args": (None, "args belong to all samples"),
}
"""Options that mean nothing to this engine, their default, and why: another value is an error."""


@dataclass
class KeptSolve:
    """A solve that Julia keeps: for its gradient, and as dense output.

    Attributes:
        number: by which Julia knows it.
        remote, tensors: its field, and what the field's parameter vector was made of.
        reads: what was read off it.
        each: B where each sample was solved by itself, else 0.
    """

    number: int
    remote: RemoteField
    tensors: list[Tensor]
    reads: Reads
    each: int
    size: int
    dtype: torch.dtype
    device: torch.device
    t0: float
    t1: float

    def __post_init__(self) -> None:
        weakref.finalize(self, bridge().forget_solve, self.number)

    def at(self, t: float) -> Tensor:
        """The state (N,) at a time inside."""
        out = torch.empty(self.size, dtype=self.dtype, device=self.device)
        places.hand_over(out)
        bridge().evaluate(self.number, np.array([t]), out)
        return out


@dataclass
class Forward:
    """A forward pass on flat states: see :class:`pynode.engines.torch.engine.Forward`."""

    zs: Tensor
    t: float
    retcode: Retcode
    log: KeptSolve | None
    message: str = ""
    sample: int | None = None
    marks: None = None
    reached: int = 0
    samples: None = None
    taped: None = None

    @property
    def differentiable(self) -> bool:
        return self.retcode is Retcode.SUCCESS


class JuliaEngine:
    """Solves and differentiates in Julia, where the state lies."""

    name = "julia"

    def __init__(self) -> None:
        self._fields = RemoteFields()
        self._checked: tuple[SolveOptions, bool, tuple[str, ...]] | None = None

    def field(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        args: Any,
        stats: Statistics,
        autocast: Autocast | None,
    ) -> FlatField:
        """The problem's field on flat states, with counts in ``stats``."""
        if autocast is not None:
            raise InputError("engine='julia' does not work under torch.autocast: leave it")
        return JuliaFlatField(problem.field, problem.layout, args, stats, form=problem.form)

    def evaluates_again(self, options: SolveOptions) -> bool:
        """Whether the backward pass evaluates the field as it is then: a lowered one keeps the
        parameters that it was solved with."""
        return options.lowering == "callback"

    def trainable(
        self, problem: ODEProblem, options: SolveOptions, field: FlatField, z0: Tensor
    ) -> tuple[list[Tensor], None]:
        """Tensors that require grad and that the field depends on beside its args."""
        remote = self._remote(problem, options, field, z0.detach())
        return [x for x in remote.found if x.requires_grad], None

    def solve(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        field: FlatField,
        z0: Tensor,
        *,
        first: Tensor | None = None,
        record: bool = False,
        keep: int | None = None,
        taped: bool = False,
        transformed: bool = False,
        watch: None = None,
    ) -> Forward:
        """Solve for a flat state z0 (N,)."""
        remote, times, size = self._remote(problem, options, field, z0), problem.times, z0.numel()
        tensors = remote.tensors(field.args)
        form, z0 = remote.form, z0.contiguous()
        if form is None or not form.fits(options, problem.layout, times, z0.dtype):
            form = remote.form = SolveForm(options, problem.layout, times, z0.dtype, remote.each)
        reads, keep = form.reads, 0
        if record:
            places.go_back_here(z0)
            keep = 1 if options.sensitivity == "discrete" and not options.dense else 2
        found = z0.new_empty(len(reads.times), reads.width)
        block, code, number, sample = form.solve(remote, tensors, z0, found, keep)
        field.stats.add(counted(block))
        retcode, t = _retcode(code), block.floats[4]
        kept = None
        if number:
            kept = KeptSolve(
                number, remote, tensors, reads, form.each, size, z0.dtype, z0.device,
                times.start, t,
            )  # fmt: skip
        zs = reads.outputs(found, size)
        if retcode is Retcode.SUCCESS:
            return Forward(zs, t, retcode, kept)
        blamed, message = _explain(retcode, t, sample, options, problem, found)
        return Forward(zs, t, retcode, kept, message, blamed)

    def repeated(self, problem: ODEProblem, options: SolveOptions) -> RepeatedSolve | None:
        """A solve like the last one of this field, from another state."""
        last, layout = self._fields.last(problem.field), problem.layout
        form = None if last is None else last.remote.form
        if last is None or form is None:
            return None
        if not form.fits(options, layout, problem.times, layout.dtype):
            return None
        return RepeatedSolve(problem, last)

    def dense_output(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        field: FlatField,
        forward: Forward,
        no_gradient: str,
    ) -> DenseOutput:
        """What ``sol(s)`` reads from."""
        return DenseOutput(forward.log, problem.layout, no_gradient)  # type: ignore[arg-type]

    def keeps(self, options: SolveOptions) -> tuple[bool, int | None]:
        """What the sensitivity's backward pass needs of the forward one: (record, keep)."""
        return True, None

    def adjoint(
        self,
        problem: ODEProblem,
        options: SolveOptions,
        field: FlatField,
        tensors: list[Tensor],
        forward: Forward,
        zs: Tensor,
        grad: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """dL/dz0 (N,) and the gradients of ``tensors`` from dL/dzs (T, N)."""
        kept, back = forward.log, options.backward()
        assert kept is not None
        if problem.times.per_sample:
            grad = torch.nan_to_num(grad)
        seeds = kept.reads.cotangents(grad)
        if not math.isfinite(seeds.sum()) and not bool(seeds.isfinite().all()):
            raise GradientError("the gradient of the loss holds NaN or infinity")
        of_z0 = zs.new_empty(kept.size)
        of_p = Pieces([torch.empty_like(x, dtype=zs.dtype) for x in kept.tensors], zs.dtype)
        block = block_of(back, zs.dtype, kept.size, kept.each)
        ints = block.ints
        ints[calls.PIECES], ints[calls.PARAMETERS] = len(of_p.tensors), of_p.address
        ints[calls.TIMES], ints[calls.WIDTH] = seeds.shape
        ints[calls.COTANGENTS] = seeds.data_ptr()
        ints[calls.GRAD_Z0] = of_z0.data_ptr()
        solver = None if back.solver == options.solver else back.solver
        places.hand_over(seeds)
        bridge().gradient(kept.number, options.sensitivity, solver, block)
        field.stats.nfe_backward += block.ints[calls.NFE]
        field.stats.vjp += block.ints[calls.ACCEPTED]
        found = {id(x): grad for x, grad in zip(kept.tensors, of_p.tensors, strict=True)}
        return of_z0, [
            found[id(x)].to(x.dtype) if id(x) in found else torch.zeros_like(x) for x in tensors
        ]

    def _check(self, options: SolveOptions, z0: Tensor) -> tuple[bool, tuple[str, ...]]:
        """Whether the solver is a stiff one, and the programs that are needed."""
        if z0.dtype not in (torch.float32, torch.float64):
            raise InputError(f"engine='julia' is for float32 and float64 states, not {z0.dtype}")
        last = self._checked
        if last is not None and options is last[0]:
            return last[1:]
        for name in ("rtol", "atol"):
            if isinstance(getattr(options, name), Tensor):
                raise InputError(f"engine='julia' takes one number for {name}, not a tensor")
        check_options(options, UNSUPPORTED)
        stiff = catalogue.solver(options.solver).stiff
        needed = stiff, programs_of(options.sensitivity, stiff)
        self._checked = (options, *needed)
        return needed

    def _remote(
        self, problem: ODEProblem, options: SolveOptions, field: FlatField, z0: Tensor
    ) -> RemoteField:
        assert isinstance(field, JuliaFlatField)
        if field.remote is not None:
            return field.remote
        stiff, names = self._check(options, z0)
        place = places.place_of(z0.device)
        if place != places.CPU:
            places.check(options, isinstance(field.fn, JuliaField))
            places.check_together(floating(field.args), z0.device)
        rows = problem.layout.rows or 1
        alone = stiff or options.step_control == "per_sample" or isinstance(field.fn, JuliaField)
        each = alone and rows > 1 and options.lowering == "program"
        asked = Asked(names, each, place)
        field.remote = self._fields.get(field, z0, problem.times.start, options.lowering, asked)
        return field.remote


def check_options(options: SolveOptions, names: Iterable[str]) -> None:
    """Refuse a controller that Julia does not have, and options of these names that it does not."""
    if options.controller == "pid" or (options.controller, options.solver) == ("i", "auto"):
        raise InputError(
            f"engine='julia' has no controller={options.controller!r} for {options.solver}: by "
            "default each of its solvers has one of its own; 'i' is for all but fbdf and auto"
        )
    for name in names:
        default, why = UNSUPPORTED[name]
        if getattr(options, name) != default:
            raise InputError(f"engine='julia' has no option {name}: {why}")


_RETCODES = {str(code): code for code in Retcode}


def _retcode(code: str) -> Retcode:
    found = _RETCODES.get(code)
    if found is None:
        raise JuliaError(f"Julia ended the solve with {code!r}, which pynode does not know")
    return found


CAUSES = {
    Retcode.MAX_STEPS: "max_steps={options.max_steps} steps were not enough. If the problem is "
    "stiff, use a stiff solver; else raise max_steps or loosen rtol and atol",
    Retcode.DT_UNDERFLOW: "the step size fell below what floating-point numbers resolve there. "
    "The solution may blow up near that time, or the field jump: give tstops=[...] where it "
    "jumps, or loosen rtol and atol",
    Retcode.NON_FINITE: "the field or the state became NaN or infinite. Evaluate the field there; "
    "look for log, sqrt or division at the edge of their domain, or exploding parameters",
}


def _explain(
    retcode: Retcode,
    t: float,
    sample: int,
    options: SolveOptions,
    problem: ODEProblem,
    found: Tensor,
) -> tuple[int | None, str]:
    method = f"{options.solver} (julia), rtol={options.rtol}, atol={options.atol}"
    where = f", sample {sample}" if sample >= 0 else ""
    cause: Any = CAUSES.get(retcode, str(retcode))
    text = f"the solve with {method} stopped at t={t:.6g}{where}: {cause.format(options=options)}."
    return (sample if sample >= 0 else None), text
