"""An initial value problem, checked at the door."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError
from pynode.events import Event, checked
from pynode.field import UserField, calling_form
from pynode.options import SolveOptions
from pynode.state import State, StateLayout
from pynode.times import OneSolveError, OwnTimes, Times


@functools.cache
def _rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


@dataclass(frozen=True)
class ODEProblem:
    """dz/dt = f(t, z), z(t0) = z0, with the times at which z is wanted.

    Attributes:
        field: f(t, z), f(t, z, args) or f(z), returning dz/dt in the structure of z. ``t`` is a
            0-d tensor of the state's real dtype (see ``step_control`` for (B,)). Under
            ``torch.autocast`` only the field runs in lower precision (keep rtol above about a
            tenth of that precision's rounding, or fix the steps): what it returns is cast up, all
            else keeps the state's dtype.
        z0: a tensor of any shape and floating or complex dtype, or a tuple or dict of them.
        t: (T,), increasing or decreasing, for times that all samples share; or (B, T), padded
            with NaN at the end, or a list of 1-D tensors, for each sample's own (B is then the
            first dimension of z0). Two or more distinct times, ``t0`` counted.
        args: handed to the field: any nest of tuples, lists and dicts of tensors and other
            things; gradients flow to its tensors.
        t0: the time at which z0 holds; default: the first time. With
            ``step_control="per_sample"`` also (B,), and each sample has its own first time.
        events: what is to be watched for, see :class:`pynode.Event`. The last time is the
            horizon: a terminal event that has not fired by then does not.

    Raises:
        InputError: something does not fit; the message says what, and what to do.
    """

    field: UserField
    z0: State
    t: Any
    args: Any = None
    t0: float | Tensor | None = None
    events: Sequence[Event] = ()
    form: str = field(init=False, repr=False)
    layout: StateLayout = field(init=False, repr=False)
    _times: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        form = calling_form(self.field, self.args is not None)
        layout = StateLayout.of(self.z0)
        times: Times | InputError
        try:
            times = Times(self.t, self.t0)
            if times.samples is not None:
                layout = StateLayout(self.z0)
                layout.batch(times.samples)
        except InputError as error:
            try:
                self.per_sample()
            except InputError as own:
                raise (own if isinstance(error, OneSolveError) else error) from None
            times = error  # Only steps of each sample's own can do with such times.
        vars(self).update(form=form, layout=layout, _times=times, events=checked(self.events))

    def with_times(self, times: Times | OwnTimes) -> ODEProblem:
        """The same problem, asked for other times."""
        other = copy.copy(self)
        object.__setattr__(other, "_times", times)
        return other

    def with_field(self, field: UserField) -> ODEProblem:
        """The same problem of another field that is called in the same way."""
        other = copy.copy(self)
        object.__setattr__(other, "field", field)
        return other

    def stretch(self, z0: State, times: OwnTimes) -> ODEProblem:
        """The same problem from other states at other times on."""
        other = copy.copy(self)
        object.__setattr__(other, "z0", z0)
        object.__setattr__(other, "_times", times)
        return other

    @property
    def times(self) -> Any:
        """The checked times: :class:`Times`, or :class:`OwnTimes` after :meth:`per_sample`.

        Raises:
            InputError: the samples' initial times or directions differ, so that one solve for
                the whole batch cannot serve them.
        """
        if isinstance(self._times, InputError):
            raise self._times
        return self._times

    def per_sample(self) -> ODEProblem:
        """The same problem for solves in which every sample steps by itself.

        Raises:
            InputError: the state has no batch dimension, or the times do not fit it.
        """
        layout = StateLayout(self.z0)
        if any(not shape for shape in layout.shapes):
            raise InputError(
                f"steps per sample need a batch: the state is a {layout.describe()}, but the first "
                "dimension of each of its tensors must be the batch"
            )
        layout.batch(layout.shapes[0][0])
        assert layout.rows is not None
        twin = copy.copy(self)
        object.__setattr__(twin, "layout", layout)
        object.__setattr__(twin, "_times", OwnTimes(self.t, self.t0, layout.rows))
        return twin

    def tolerances(self, options: SolveOptions) -> tuple[float | Tensor, float | Tensor]:
        """rtol and atol as numbers or flat tensors (N,).

        Raises:
            InputError: a tolerance does not broadcast against the state.
        """
        rtol, atol = options.rtol, options.atol
        eps = _rounding(self.layout.dtype)
        if not isinstance(rtol, Tensor) and not isinstance(atol, Tensor) and rtol >= eps:
            return rtol, atol
        found = self._tolerance("rtol", rtol), self._tolerance("atol", atol)
        rtol = found[0]
        largest = float(rtol.max()) if isinstance(rtol, Tensor) else rtol
        if options.is_adaptive and largest < eps:
            tight = not isinstance(found[1], Tensor) and found[1] < eps
            if tight:
                warnings.warn(
                    f"rtol={options.rtol} is below the rounding of {self.layout.dtype} "
                    f"({eps:.1e}): steps will be wasted. Use float64, or loosen rtol.",
                    stacklevel=2,
                )
        return found

    def _tolerance(self, name: str, value: float | Tensor) -> float | Tensor:
        if not isinstance(value, Tensor):
            return value
        layout = self.layout
        if not layout.single:
            raise InputError(f"{name} is a tensor, but the state a structure: give one number")
        try:
            full = value.to(layout.device, layout.dtype).expand(layout.shapes[0])
        except RuntimeError:
            raise InputError(
                f"{name} of shape {tuple(value.shape)} does not broadcast against the state of "
                f"shape {layout.shapes[0]}"
            ) from None
        full = full.reshape(-1)
        return full.repeat_interleave(2) if layout.dtypes[0].is_complex else full
