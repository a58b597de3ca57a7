"""A field's graphs, kept for as long as the field holds what they were made from."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from pynode.engines.torch.graphed.attempt import Attempt
from pynode.engines.torch.graphed.backward import ReverseStep
from pynode.engines.torch.graphed.field import TracedField
from pynode.engines.torch.methods import TABLEAUS
from pynode.errors import LoweringError
from pynode.field import FlatField
from pynode.lowering.dependencies import shelf_of, trainable_of
from pynode.lowering.holdings import PLAIN
from pynode.lowering.pipeline import one_thread
from pynode.lowering.unchanged import Unchanged
from pynode.options import SolveOptions

MOST = 16
"""Units kept for one field: each holds memory on the device."""


class Unit:
    """The graphs of one field, for one shape of state and one way to call it.

    Attributes:
        found: tensors that require grad and that the field depends on beside its args.
        lock: held while a solve uses the fixed memory.
        expected: attempts that the last solve took for each of its stretches.
    """

    def __init__(self, field: FlatField, found: list[Tensor], z0: Tensor, t0: float) -> None:
        self.found, self.lock = found, threading.RLock()
        self.field = TracedField(field, found, z0, t0)
        self._like = z0.detach().clone()
        self._attempts: dict[Hashable, Attempt] = {}
        self._reverses: dict[Hashable, ReverseStep] = {}
        self.expected: dict[Attempt, list[int]] = {}

    def attempt(self, options: SolveOptions, per_entry: bool, extended: bool) -> Attempt:
        """Forward steps; ``extended`` with the stages that only dense output needs."""
        method = TABLEAUS[options.solver]
        extended = extended and bool(method.extra_a)
        largest = options.norm == "max"
        key = method.name, options.is_adaptive, largest, per_entry, extended
        if key not in self._attempts:
            self._attempts[key] = Attempt(
                self.field,
                method,
                self._like,
                adaptive=options.is_adaptive,
                largest=largest,
                per_entry=per_entry,
                extended=extended,
            )
        return self._attempts[key]

    def reverse(self, attempt: Attempt, field: FlatField) -> ReverseStep:
        """Steps in reverse, of the same stages."""
        key = attempt.method.name, len(attempt.stages)
        if key not in self._reverses:
            with one_thread:
                vjp = self.field.vjp(field)
            parts = (vjp, self.field.size, attempt.stages, self._like)
            self._reverses[key] = ReverseStep(*parts)
        return self._reverses[key]


_UNITS: weakref.WeakKeyDictionary[Any, dict[Hashable, tuple[Unchanged, Unit]]]
_UNITS = weakref.WeakKeyDictionary()


def unit_of(field: FlatField, z0: Tensor, t0: float) -> Unit:
    """The field's unit: one that is kept, if the field still holds the same."""
    shelf, key = shelf_of(_UNITS, field.fn), _key(field, z0)
    known = shelf.get(key)
    if known is not None and known[0].holds(field.fn):
        return known[1]
    found = trainable_of(field, z0, t0)
    with one_thread:
        unit = Unit(field, found, z0, t0)
    if len(shelf) >= MOST:
        shelf.clear()
    shelf[key] = Unchanged(field.fn, found, ()), unit
    return unit


def _key(field: FlatField, z0: Tensor) -> Hashable:
    """What graphs depend on beside the field itself: state, autocast, structure of args."""
    layout = field.layout
    leaves, spec = pytree.tree_flatten(field.args)
    args = tuple(_of_leaf(leaf) for leaf in leaves)
    state = (tuple(layout.shapes), tuple(layout.dtypes), str(layout.spec), str(z0.device))
    return state, field.autocast, str(spec), args


def _of_leaf(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, str(leaf.device), leaf.requires_grad
    if isinstance(leaf, PLAIN):
        return type(leaf), leaf
    raise LoweringError(
        f"compile=True: args hold a {type(leaf).__name__}, which graphs cannot follow when it "
        "changes. Use tensors, numbers and strings there, or compile=False"
    )
