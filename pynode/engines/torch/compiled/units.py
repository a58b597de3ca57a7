"""A field's compiled code, kept for as long as the field."""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pynode import catalogue
from pynode.engines.torch.compiled.build import load
from pynode.engines.torch.compiled.call import PADDING
from pynode.engines.torch.compiled.source import KINDS, source
from pynode.engines.torch.compiled.stamp import stamp
from pynode.engines.torch.methods import TABLEAUS
from pynode.errors import LoweringError
from pynode.field import FlatField, closed_over, trainable_tensors
from pynode.lowering import cache, lower
from pynode.lowering.lowered import LoweredField
from pynode.lowering.pipeline import parameters_of
from pynode.options import SolveOptions
from pynode.solution import Statistics


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

    def parameters(self, like: Tensor) -> Tensor:
        """Present values of the parameters, with room beyond their end."""
        parts = [x.detach().reshape(-1) for x in self.lowered.tensors]
        return torch.cat([*parts, like.new_zeros(PADDING)])

    def is_current(self) -> bool:
        """Whether no tensor whose values are in the programs has changed."""
        return all(cache.same(tensor, copy) for tensor, copy in self.lowered.constants)

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

_FOUND: weakref.WeakKeyDictionary[Any, tuple[Any, list[Tensor]]]
_FOUND = weakref.WeakKeyDictionary()
_UNITS: weakref.WeakKeyDictionary[Any, dict[Any, Unit]] = weakref.WeakKeyDictionary()
_FUNCTIONS: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def unit_of(field: CompiledField, z0: Tensor, t0: float) -> Unit:
    """The field's programs, without code yet."""
    if field.unit is None:
        fn, key = field.fn, None
        if isinstance(fn, nn.Module) and field.args is None:
            layout = field.layout
            key = (stamp(fn), tuple(layout.shapes), tuple(layout.dtypes), str(layout.spec))
            known = _UNITS.get(fn, {}).get(key)
            if known is not None and known.is_current():
                field.unit = known
                return known
        field.unit = _new_unit(field, z0, t0)
        if key is not None:
            shelf = _UNITS.setdefault(fn, {})
            if len(shelf) >= MOST:  # parameters that are other tensors each time, say
                shelf.clear()
            shelf[key] = field.unit
    return field.unit


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
        text = re.sub(r'[,;.(]* ?(or )?(use )?\(?lowering="callback".*$', "", str(error))
        raise LoweringError(
            f"compile=True: {text}. compile=False runs the field as it is, more slowly"
        ) from error
    finally:
        for x in frozen:
            x.requires_grad_(False)


def _tensors(field: FlatField, z0: Tensor, t0: float) -> tuple[list[Tensor], list[Tensor]]:
    """Trainable tensors that the field depends on beside args, and others that it holds.

    To find the first takes an evaluation, which would cost as much as a whole small solve: it is
    done anew only if the field holds other tensors now.
    """
    all_held = closed_over(field.fn)
    now = tuple((id(x), x.requires_grad) for x in all_held)
    known = _FOUND.get(field.fn)
    if known is None or known[0] != now:
        quiet = FlatField(field.fn, field.layout, field.args, Statistics())
        found = trainable_tensors(quiet, t0, z0.detach())[0]
        known = now, found
        with contextlib.suppress(TypeError):  # without weak references nothing is kept
            _FOUND[field.fn] = known
    found = known[1]
    mine = {id(x) for x in (*found, *pytree.tree_leaves(field.args))}
    others = [x for x in all_held if id(x) not in mine and _may_change(x, z0)]
    return found, others


def _may_change(x: Tensor, z0: Tensor) -> bool:
    return x.dtype == z0.dtype and not x.requires_grad and not x.is_inference()
