"""The field on Julia's side: lowered into a program, called back, or written in Julia itself."""

from __future__ import annotations

import contextlib
import ctypes
import json
import warnings
import weakref
from array import array
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode.engines.julia import places
from pynode.engines.julia.calls import bridge
from pynode.engines.julia.julia_field import JuliaField
from pynode.engines.torch.adjoints.vjp import VJP
from pynode.errors import InputError
from pynode.field import FlatField, trainable_tensors
from pynode.lowering import LoweredField, lower
from pynode.lowering.dependencies import trainable_of
from pynode.lowering.unchanged import Unchanged
from pynode.solution import Statistics
from pynode.state import StateLayout


@dataclass
class RemoteField:
    """A field that Julia keeps.

    Attributes:
        number: by which Julia knows it.
        found: the trainable tensors that it depends on beside its args.
        each: whether it is the field of one sample, to be solved for each by itself.
        close: let Julia forget it when this object goes.
        form: what its last solve shares with others like it, see :class:`SolveForm`.
    """

    number: int
    found: list[Tensor]
    each: bool
    close: bool = True
    form: Any = None
    _pieces: Pieces | None = None

    def __post_init__(self) -> None:
        if self.close:
            weakref.finalize(self, bridge().forget_field, self.number)

    def pieces(self, tensors: list[Tensor], z0: Tensor) -> Pieces:
        """What :meth:`tensors` gave as a parameter vector; the last one if nothing has moved.

        Raises:
            InputError: one does not lie where the state does.
        """
        last = self._pieces
        if last is None or not last.are(tensors):
            places.check_together(tensors, z0.device)
            last = self._pieces = Pieces(tensors, z0.dtype)
        return last

    def tensors(self, args: Any) -> list[Tensor]:
        """What the flat parameter vector is made of: ``found``, then the numbers in ``args``."""
        return self.found if args is None else [*self.found, *floating(args)]


class Pieces:
    """The parameter vector as Julia reads or writes it: piece by piece, where the tensors lie.

    Attributes:
        tensors: contiguous and of one dtype, the given ones where they are that.
    """

    def __init__(self, tensors: list[Tensor], dtype: torch.dtype) -> None:
        self.tensors = [
            x if x.dtype is dtype and x.is_contiguous() else x.detach().to(dtype).contiguous()
            for x in tensors
        ]
        self._given, self._addresses = tensors, list(map(Tensor.data_ptr, self.tensors))
        sizes = map(Tensor.numel, self.tensors)
        self._places = array("q", chain.from_iterable(zip(self._addresses, sizes, strict=True)))

    def are(self, tensors: list[Tensor]) -> bool:
        """Whether these are the given tensors, lying where they did, of the shapes they had."""
        return (
            tensors is self._given
            and list(map(Tensor.data_ptr, tensors)) == self._addresses
            and all(map(Tensor.is_contiguous, tensors))
        )

    @property
    def address(self) -> int:
        """Of address and size of each piece."""
        return self._places.buffer_info()[0]


class JuliaFlatField(FlatField):
    """A field on flat states that knows its twin on Julia's side, once it has one."""

    remote: RemoteField | None = None


class Asked(NamedTuple):
    """What a lowered field is to be on Julia's side.

    Attributes:
        names: of the programs that are needed.
        each: of one sample, though the state is of all.
        place: where Julia is to keep it.
    """

    names: tuple[str, ...]
    each: bool
    place: str = places.CPU


@dataclass
class Last:
    """The field on Julia's side as it was last asked for, and whether it still is that."""

    layout: StateLayout
    asked: Asked
    unchanged: Unchanged
    remote: RemoteField

    def answers(self, layout: StateLayout, asked: Asked) -> bool:
        """Whether it was asked for so; equal layouts are mostly one object."""
        return self.asked == asked and (self.layout is layout or alike(self.layout, layout))


def alike(a: StateLayout, b: StateLayout) -> bool:
    same = (a.shapes, a.dtypes, a.rows, a.plain) == (b.shapes, b.dtypes, b.rows, b.plain)
    return same and (a.plain or a.spec == b.spec)


class RemoteFields:
    """Fields on Julia's side, each sent there once (what is lowered, ``lower`` keeps)."""

    def __init__(self) -> None:
        # Of each place, and whether of one sample: a batch of one has the very program of a sample.
        self._programs: dict[tuple[str, bool], weakref.WeakKeyDictionary[Any, RemoteField]]
        self._programs = defaultdict(weakref.WeakKeyDictionary)
        self._sources: weakref.WeakKeyDictionary[Any, RemoteField]
        self._sources = weakref.WeakKeyDictionary()
        self._last: weakref.WeakKeyDictionary[Any, Last] = weakref.WeakKeyDictionary()

    def get(self, field: FlatField, z0: Tensor, t0: float, way: str, asked: Asked) -> RemoteField:
        """The field on Julia's side.

        Args:
            field: on flat states.
            way: ``"program"`` or ``"callback"``.
            asked: a lowered one only may be elsewhere than on the CPU.

        Raises:
            LoweringError: the field cannot be lowered.
            InputError: it is to be of each sample, but the samples depend on each other.
        """
        if isinstance(field.fn, JuliaField):
            if field.fn not in self._sources:
                number = bridge().open_source(field.fn.source)
                self._sources[field.fn] = RemoteField(number, [field.fn.p], asked.each)
            return replace(self._sources[field.fn], each=asked.each, close=False)
        if way == "callback":
            return _open_callback(field, z0, t0)
        return self._lowered(field, z0, t0, asked)

    def last(self, fn: Any) -> Last | None:
        """The lowered field as it was last asked for."""
        return self._last.get(fn)

    def _lowered(self, field: FlatField, z0: Tensor, t0: float, asked: Asked) -> RemoteField:
        """The lowered field: the last one again if nothing that it depends on has changed."""
        last = self._last.get(field.fn) if field.args is None else None
        if (
            last is not None
            and last.answers(field.layout, asked)
            and last.unchanged.holds(field.fn)
        ):
            return last.remote
        remote, lowered = self._lowered_by_value(field, z0, t0, asked)
        if field.args is None:
            with contextlib.suppress(TypeError):  # without weak references nothing is kept
                unchanged = Unchanged(field.fn, remote.found, lowered.constants)
                self._last[field.fn] = Last(field.layout, asked, unchanged, remote)
        return remote

    def _lowered_by_value(
        self, field: FlatField, z0: Tensor, t0: float, asked: Asked
    ) -> tuple[RemoteField, LoweredField]:
        names, each, place = asked
        own, like = field, z0.detach()
        if each:
            like = like.reshape(field.layout.rows or 1, -1)
            layout = StateLayout(_row(field.layout.restore(z0.detach()), 0))
            own = FlatField(field.fn, layout, field.args, Statistics())
            like = like[0]
        found = trainable_of(field, z0, t0)
        lowered = lower(own, like, t0, names, tensors=found)
        last, opened = lowered.programs[names[-1]], self._programs[place, each]
        if last not in opened:
            if each:
                check_samples(field, own, z0, t0)
            opened[last] = RemoteField(_open(lowered, place), found, each)
        return opened[last], lowered


def _open(lowered: LoweredField, place: str) -> int:
    """Send a lowered field to Julia; gives its number."""
    text = json.dumps(lowered.to_json())
    if place == places.CPU:
        return bridge().open_program(text)
    places.load(place)
    return bridge().open_program_on(text, place)


def programs_of(sensitivity: str, stiff: bool) -> tuple[str, ...]:
    """The programs that solves and gradients run."""
    products = ("pullback",) if sensitivity == "discrete" else ("vjp_z", "vjp_p")
    return ("f", *products, *(("jac", "tgrad") if stiff else ()))


def check_samples(field: FlatField, own: FlatField, z0: Tensor, t0: float) -> None:
    """Whether ``own``, of one sample, is ``field`` restricted to one.

    Raises:
        InputError: it is not: the samples depend on each other, or each has args of its own.
    """
    rows = z0.detach().reshape(field.layout.rows or 1, -1)
    quiet = FlatField(field.fn, field.layout, field.args, Statistics())
    with torch.no_grad():
        together = quiet(t0, z0.detach()).reshape(rows.shape)
        for b in {0, len(rows) - 1}:
            try:
                alone = own(t0, rows[b])
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


def _row(state: Any, b: int) -> Any:
    return pytree.tree_map(lambda x: x[b : b + 1], state)


def floating(args: Any) -> list[Tensor]:
    """The tensors of numbers in a nest."""
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
    tensors = [*found, *floating(field.args)]
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
