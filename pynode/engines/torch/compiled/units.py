"""A field's compiled code, kept for as long as the field."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode import catalogue
from pynode.engines.torch.compiled.build import load
from pynode.engines.torch.compiled.call import PADDING
from pynode.engines.torch.compiled.form import SolveForm
from pynode.engines.torch.compiled.source import KINDS, source
from pynode.engines.torch.methods import TABLEAUS
from pynode.errors import LoweringError
from pynode.field import FlatField, closed_over
from pynode.lowering import cache, lower
from pynode.lowering.dependencies import shelf_of, trainable_of
from pynode.lowering.lowered import LoweredField
from pynode.lowering.pipeline import parameters_of
from pynode.lowering.unchanged import Unchanged
from pynode.options import SolveOptions
from pynode.state import StateLayout
from pynode.times import Times


@dataclass
class Unit:
    """Code for one field, shape and dtype.

    Attributes:
        found: trainable tensors that the field depends on beside its args.
        held: those, tensors of args that require grad, and other floating tensors of the state's
            dtype that the field holds: their values go in anew each time, so that changed ones
            cost no compilation.
        active: of the parameter vector, so many leading entries are trainable.
        lowered: the programs; ``lowered.tensors`` are what the parameter vector is made of.
    """

    found: list[Tensor]
    held: list[Tensor]
    active: int
    lowered: LoweredField
    functions: dict[Any, Any] = field(default_factory=dict)
    _forms: dict[bool, SolveForm] = field(default_factory=dict)
    _views: tuple[list[int], list[Tensor]] | None = None

    def form(
        self,
        options: SolveOptions,
        rtol: float | Tensor,
        atol: float | Tensor,
        layout: StateLayout,
        times: Times,
        backwards: bool = False,
    ) -> SolveForm:
        """What solves alike share: of the last one, if it was such a one."""
        last = self._forms.get(backwards)
        if last is None or not last.fits(options, layout, times, layout.dtype):
            last = SolveForm(options, rtol, atol, layout, times, layout.dtype, backwards)
            self._forms[backwards] = last
        return last

    def parameters(self) -> Tensor:
        """Present values of the parameters, with room beyond their end."""
        tensors = self.lowered.tensors
        addresses = list(map(Tensor.data_ptr, tensors))
        views = self._views
        if views is None or views[0] != addresses or not all(map(Tensor.is_contiguous, tensors)):
            parts = [x.detach().reshape(-1) for x in tensors]
            room = torch.zeros(PADDING, dtype=getattr(torch, self.lowered.dtype))
            views = addresses, [*parts, room]
            # A view follows its tensor for as long as that lies there; a copy does not.
            self._views = views if all(map(Tensor.is_contiguous, tensors)) else None
        return torch.cat(views[1])

    def split(self, flat: Tensor) -> dict[int, Tensor]:
        """A vector (P,) in the parameters' shapes, by the identity of the parameters."""
        pieces = self.lowered.split(flat)
        return {id(x): piece for x, piece in zip(self.lowered.tensors, pieces, strict=True)}


class CompiledField(FlatField):
    """A field on flat states that knows its code, once it has some."""

    unit: Unit | None = None

    def for_backward(self) -> CompiledField:
        twin = CompiledField(self.fn, self.layout, self.args, self.stats, True, self.autocast)
        twin.unit = self.unit
        return twin


MOST = 64
"""Units kept for one field; the code is kept in any case."""

_UNITS: weakref.WeakKeyDictionary[Any, dict[Any, tuple[Unchanged, Unit]]]
_UNITS = weakref.WeakKeyDictionary()
_FUNCTIONS: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def unit_of(field: CompiledField, z0: Tensor, t0: float) -> Unit:
    """The field's programs, without code yet: those that are kept, if it still holds the same."""
    if field.unit is not None:
        return field.unit
    if field.args is not None:
        field.unit = _new_unit(field, z0, t0)
        return field.unit
    key = field.layout.key
    shelf = shelf_of(_UNITS, field.fn)
    known = shelf.get(key)
    if known is not None and known[0].holds(field.fn):
        field.unit = known[1]
        return known[1]
    field.unit = unit = _new_unit(field, z0, t0)
    if len(shelf) >= MOST:
        shelf.clear()
    shelf[key] = Unchanged(field.fn, unit.found, unit.lowered.constants), unit
    return unit


def _new_unit(field: CompiledField, z0: Tensor, t0: float) -> Unit:
    found, others = _tensors(field, z0, t0)
    leaves = pytree.tree_leaves(field.args)
    found_in_args = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
    trainable = [*found, *found_in_args]
    held = [*trainable, *others]
    lowered = _lower(field, z0, t0, KINDS["forward"], held)
    kept = _FUNCTIONS.setdefault(lowered.programs["f"], {})
    return Unit(found, held, sum(x.numel() for x in trainable), lowered, kept)


def function_of(
    field: CompiledField, kind: str, options: SolveOptions, z0: Tensor, t0: float
) -> tuple[Unit, Any]:
    """The field's unit, and its compiled function of a kind."""
    unit = unit_of(field, z0, t0)
    backward = options.adjoint_solver or options.solver
    key = kind, options.solver, backward
    if key not in unit.functions:
        names = KINDS[kind]
        if any(name not in unit.lowered.programs for name in names):
            unit.lowered = _lower(field, z0, t0, names, unit.held)
        rule = _gauss_rule(catalogue.solver(backward).order) if kind == "gauss" else ()
        tableaus = TABLEAUS[options.solver], TABLEAUS[backward]
        unit.functions[key] = load(source(kind, unit.lowered, *tableaus, rule))
    return unit, unit.functions[key]


def _gauss_rule(order: int) -> list[tuple[float, float]]:
    points, weights = np.polynomial.legendre.leggauss(order // 2 + 1)
    return [
        (0.5 * (1 + x), 0.5 * w) for x, w in zip(points.tolist(), weights.tolist(), strict=True)
    ]


def _lower(
    field: FlatField, z0: Tensor, t0: float, names: Sequence[str], held: list[Tensor]
) -> LoweredField:
    frozen: list[Tensor] = []
    try:
        tensors = parameters_of(field, z0, t0, held)
        known = cache.recall(field, z0, tensors)
        if known is not None and all(name in known.programs for name in names):
            return replace(known, tensors=tuple(tensors))
        frozen = [x for x in held if not x.requires_grad]
        for x in frozen:  # programs differentiate by all that may change
            x.requires_grad_(True)
        return lower(field, z0, t0, names, tensors=held)
    except LoweringError as error:
        raise refusal(error) from error
    finally:
        for x in frozen:
            x.requires_grad_(False)


def refusal(error: Exception) -> LoweringError:
    """Why a field cannot be compiled, with the way out that compile=True has."""
    text = re.sub(r'[,;.(]* ?(or )?(use )?\(?lowering="callback".*$', "", str(error))
    return LoweringError(
        f"compile=True: {text}. compile=False runs the field as it is, more slowly"
    )


def _tensors(field: FlatField, z0: Tensor, t0: float) -> tuple[list[Tensor], list[Tensor]]:
    """Trainable tensors that the field depends on beside args, and others that it holds."""
    found = trainable_of(field, z0, t0)
    mine = {id(x) for x in (*found, *pytree.tree_leaves(field.args))}
    others = [x for x in closed_over(field.fn) if id(x) not in mine and _may_change(x, z0)]
    return found, others


def _may_change(x: Tensor, z0: Tensor) -> bool:
    return x.dtype == z0.dtype and not x.requires_grad and not x.is_inference()
