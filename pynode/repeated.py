"""A call like the one before it goes straight to the engine.

What is looked at around every solve (the field's calling form, the state, the times, options,
gradients, events) takes as long as a compiled solve of one small system. Of a call by the same
options, of a state of the same layout, at the same times, all that is known already.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pynode.autograd import engine_of
from pynode.field import UserField, calling_form
from pynode.options import SolveOptions
from pynode.precision import active_autocast
from pynode.problem import ODEProblem
from pynode.solution import Retcode, Statistics
from pynode.state import State, StateLayout


class Repeated:
    """A solve without gradients, to be made again from another state.

    Args:
        problem: of one real tensor, without args, events and ``t0``.
        options: joint steps, or an engine's own; no dense output, no callbacks.
    """

    def __init__(self, problem: ODEProblem, options: SolveOptions) -> None:
        times = copy.copy(problem.times)
        times.t = times.checked.t  # the caller may write over the given ones
        self._checked = times.checked
        self._problem, self._options = problem.stretch(None, times), options
        self._engine = engine_of(options, problem.layout.device)
        self._short = self._engine.repeated(self._problem, options)

    @staticmethod
    def of(problem: ODEProblem, options: SolveOptions) -> Repeated | None:
        """For calls after this one, None where one cannot be made like it."""
        own_steps = options.step_control == "per_sample" and options.engine == "torch"
        if torch.is_grad_enabled() or options.dense or own_steps:
            return None
        if options.callbacks is not None:  # a solve that fails is made twice
            return None
        plain = problem.args is None and not problem.events and type(problem.z0) is Tensor
        if not plain or not problem.layout.plain or problem.times.checked is None:
            return None
        return Repeated(problem, options)

    def __call__(
        self, field: UserField, z0: State, t: Any, options: SolveOptions
    ) -> tuple[Tensor, Statistics] | None:
        """The states at the times, and counts; None where the call is not like the one before it,
        or the solve failed: it is to be made the whole way then, which says why."""
        problem = self._problem
        layout = problem.layout
        alike = (
            type(z0) is Tensor
            and type(t) is Tensor
            and field is problem.field
            and options is self._options
            and StateLayout.of(z0) is layout
            and self._checked.are(t)
            and not torch.is_grad_enabled()
            and active_autocast(layout.device) is None
            # A short way looks whether anything of the field has changed.
            and (self._short is not None or calling_form(field, False) == problem.form)
        )
        if not alike:
            return None
        if self._short is not None:
            return self._short(z0)
        stats = Statistics()
        flat = self._engine.field(problem, options, None, stats, None)
        forward = self._engine.solve(problem, options, flat, layout.flatten(z0))
        if forward.retcode is not Retcode.SUCCESS:
            return None
        return layout.restore(forward.zs), stats
