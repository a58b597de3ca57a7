"""The field on Julia's side: lowered into a program, called back, or written in Julia itself."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import json
import warnings
import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pynode.engines.julia.calls import bridge
from pynode.engines.julia.julia_field import JuliaField
from pynode.engines.torch.adjoints.vjp import VJP
from pynode.errors import InputError
from pynode.field import FlatField, closed_over, trainable_tensors
from pynode.lowering.lower import lower
from pynode.solution import Statistics
from pynode.state import StateLayout


@dataclass
class RemoteField:
    """A field that Julia keeps.

    Attributes:
        number: by which Julia knows it.
        found: the trainable tensors that it depends on beside its args.
        each: whether it is the field of one sample, to be solved for each by itself.
    """

    number: int
    found: list[Tensor]
    each: bool

    def tensors(self, args: Any) -> list[Tensor]:
        """What the flat parameter vector is made of: ``found``, then the numbers in ``args``."""
        return [*self.found, *_floating(args)]


def flat(tensors: list[Tensor], like: Tensor) -> Tensor:
    """Present values as one vector (P,) of the dtype of ``like``."""
    if not tensors:
        return like.new_empty(0)
    return torch.cat([x.detach().reshape(-1) for x in tensors]).to(like.dtype)


def split(vector: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """A vector (P,) in the shapes and dtypes of ``tensors``."""
    pieces = vector.split([x.numel() for x in tensors])
    return [piece.reshape(x.shape).to(x.dtype) for piece, x in zip(pieces, tensors, strict=True)]


class RemoteFields:
    """Fields by what they are: each is lowered once, and again only if something in it changed."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Any, dict[Any, RemoteField]]
        self._known = weakref.WeakKeyDictionary()

    def get(
        self, field: FlatField, z0: Tensor, t0: float, way: str, stiff: bool, each: bool
    ) -> RemoteField:
        """The field on Julia's side.

        Args:
            field: on flat states.
            way: ``"program"`` or ``"callback"``.
            stiff: with a Jacobian.
            each: of one sample; ``z0`` is the state of all.

        Raises:
            LoweringError: the field cannot be lowered.
            InputError: ``each``, but the samples depend on each other.
        """
        owner, key = _identity(field, z0, way, stiff, each)
        known = self._known.setdefault(owner, {})
        if key not in known:
            known[key] = _open(field, z0, t0, way, stiff, each)
            weakref.finalize(owner, bridge().forget_field, known[key].number)
        return known[key]


def _identity(field: FlatField, z0: Tensor, way: str, stiff: bool, each: bool) -> tuple[Any, Any]:
    """The object that a field lives as long as, and all else that its program depends on."""
    fn, layout = field.fn, field.layout
    owner = fn.__self__ if inspect.ismethod(fn) else fn
    method = fn.__func__ if inspect.ismethod(fn) else None
    leaves, spec = pytree.tree_flatten(field.args)
    args = tuple(_signature(leaf) for leaf in leaves)
    state = (layout.spec, tuple(layout.shapes), tuple(layout.dtypes), layout.rows, z0.dtype)
    return owner, (way, stiff, each, method, state, spec, args, tuple(_held(fn)))


def _signature(x: Any) -> Any:
    """Of a leaf of args; the values of floating tensors are handed over at each solve."""
    if isinstance(x, Tensor):
        kind = (tuple(x.shape), x.dtype)
        return kind if x.is_floating_point() else (*kind, x.cpu().numpy().tobytes())
    return x if isinstance(x, Hashable) else id(x)


def _held(fn: Any) -> Iterator[Any]:
    """What a field holds: tensors, and plain numbers and switches, whose values are built in."""
    for x in closed_over(fn):
        yield (id(x), True) if x.requires_grad else (id(x), x._version)
    if isinstance(fn, nn.Module):
        for module in fn.modules():
            yield from (v for v in module.__dict__.values() if type(v) in _PLAIN)
    for cell in getattr(fn, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # a name not bound yet
            if type(cell.cell_contents) in _PLAIN:
                yield cell.cell_contents


_PLAIN = (int, float, bool, str)


def _open(
    field: FlatField, z0: Tensor, t0: float, way: str, stiff: bool, each: bool
) -> RemoteField:
    julia = bridge()
    if isinstance(field.fn, JuliaField):
        return RemoteField(julia.open_source(field.fn.source), [field.fn.p], each)
    if way == "callback":
        return _open_callback(field, z0, t0)
    own = one_sample(field, z0, t0) if each else field
    like = z0.reshape(field.layout.rows or 1, -1)[0] if each else z0
    names = ("f", "vjp_z", "vjp_p", *(("jac", "tgrad") if stiff else ()))
    lowered = lower(own, like, t0, names)
    number = julia.open_program(json.dumps(lowered.to_json()))
    count = len(lowered.tensors) - len(_floating(field.args))
    return RemoteField(number, list(lowered.tensors[:count]), each)


def one_sample(field: FlatField, z0: Tensor, t0: float) -> FlatField:
    """The field of one sample, in a batch of one.

    Raises:
        InputError: it is not the field of all, restricted to one: the samples depend on each
            other, or each has args of its own.
    """
    layout = field.layout
    rows = layout.restore(z0.detach())
    own = FlatField(field.fn, StateLayout(_row(rows, 0)), field.args, Statistics())
    flat_rows = z0.detach().reshape(layout.rows or 1, -1)
    with torch.no_grad():
        together = field(t0, z0.detach()).reshape(flat_rows.shape)
        for b in {0, len(flat_rows) - 1}:
            try:
                alone = own(t0, flat_rows[b])
                same = torch.allclose(alone, together[b], rtol=1e-4, atol=1e-6, equal_nan=True)
            except (RuntimeError, ValueError):
                same = False
            if not same:
                raise InputError(
                    f"sample {b} alone has another derivative than in the batch: the samples "
                    "depend on each other, or each has args of its own. Stiff solvers of "
                    "engine='julia' solve each sample by itself: use engine='torch', or solve "
                    "in a loop"
                )
    return own


def _row(state: Any, b: int) -> Any:
    return pytree.tree_map(lambda x: x[b : b + 1], state)


def _floating(args: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(args) if isinstance(x, Tensor) and x.is_floating_point()]


# Called back ---------------------------------------------------------------------------------


def _open_callback(field: FlatField, z0: Tensor, t0: float) -> RemoteField:
    warnings.warn(
        'lowering="callback": Julia calls torch for every evaluation of the field, which costs '
        "some 100 µs each; a lowered field takes about one",
        stacklevel=2,
    )
    found, _ = trainable_tensors(
        FlatField(field.fn, field.layout, field.args, Statistics()), t0, z0
    )
    tensors = [*found, *_floating(field.args)]
    # Evaluations are counted by Julia.
    own = FlatField(field.fn, field.layout, field.args, Statistics())
    products = VJP(own, tensors, z0)
    n, kind = z0.numel(), ctypes.c_float if z0.dtype == torch.float32 else ctypes.c_double

    def view(address: int, count: int) -> Tensor:
        memory = (kind * count).from_address(int(address))
        return torch.from_numpy(np.ctypeslib.as_array(memory))

    def f(out: int, u: int, p: int, t: float) -> None:
        with torch.no_grad():
            view(out, n).copy_(own(float(t), view(u, n).clone()))

    def vjp_z(out: int, lam: int, u: int, p: int, t: float) -> None:
        product = products.state(float(t), view(u, n).clone(), view(lam, n).clone())
        view(out, n).copy_(product)

    def vjp_p(out: int, lam: int, u: int, p: int, t: float) -> None:
        product = products.parameters(float(t), view(u, n).clone(), view(lam, n).clone())
        view(out, products.size).copy_(product)

    number = bridge().open_callback(z0.dtype == torch.float32, f, vjp_z, vjp_p)
    return RemoteField(number, found, False)
