"""Events: moments of a solve that a function of the state decides, not the caller."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pynode.errors import EventError, InputError
from pynode.state import State, StateLayout


@dataclass(frozen=True)
class Event:
    """Something that happens when a condition crosses zero.

    An event fires when its condition changes its sign along the solve, or reaches zero exactly.
    One that is zero at t0, or just after its own jump, fires only after it has left zero; a jump
    that carries another event's condition over zero does not fire that event.

    Attributes:
        condition: g(t, z), g(t, z, args) or g(z), returning a 0-d tensor; or (K,), K conditions
            that are watched apart (one for each sample, say), of an event that is not terminal.
            With ``step_control="per_sample"`` it is called with t (B,) and z (B, ...) of all
            samples, each at a time of its own (one that has ended stays where it ended), and
            returns (B,), each entry of its sample alone.
        direction: +1 fires where g rises through zero, -1 where it falls, 0 at both, seen in the
            direction of integration.
        terminal: the solve (with steps per sample: of this sample) ends here; default: unless
            there is a ``jump``.
        jump: z⁺ = jump(t, z, args), in the structure of z, with which the solve goes on (t and
            args may be left out, as in ``condition``). A parameter named ``mask`` receives, as a
            boolean tensor of the condition's shape, which of its entries crossed. With steps per
            sample, samples that did not cross keep their states whatever it returns.
        name: for messages and the record; default: the condition's own name.

    Raises:
        InputError: an argument has no meaning.
    """

    condition: Callable[..., Tensor]
    direction: int = 0
    terminal: bool = None  # type: ignore[assignment]  # a bool once it has been checked
    jump: Callable[..., State] | None = None
    name: str = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        for what in ("condition", "jump"):
            fn = getattr(self, what)
            if not callable(fn) and not (what == "jump" and fn is None):
                raise InputError(f"an event's {what} is a {type(fn).__name__}: give a function")
        if self.direction not in (-1, 0, 1):
            raise InputError(
                f"direction={self.direction!r} of an event: 1 (rising), -1 (falling) or 0 (both)"
            )
        if self.terminal is None:
            set_(self, "terminal", self.jump is None)
        if self.name is None:
            set_(self, "name", getattr(self.condition, "__name__", type(self.condition).__name__))
        set_(self, "_condition", _Caller(self.condition, f"the condition of event {self.name!r}"))
        if self.jump is not None:
            set_(self, "_jump", _Caller(self.jump, f"the jump of event {self.name!r}"))

    @property
    def ends(self) -> bool:
        """Whether the solve cannot just go on after it."""
        return self.terminal or self.jump is not None

    def values(self, t: Tensor, z: State, args: Any) -> Tensor:
        """The condition at (t, z) as (K,), K being 1 for a 0-d one.

        Raises:
            EventError: it returned something else than a 0-d or 1-d tensor of real numbers.
        """
        value = self._condition(t, z, args)  # type: ignore[attr-defined]
        what = f"the condition of event {self.name!r} returned"
        if not isinstance(value, Tensor):
            raise EventError(f"{what} a {type(value).__name__}: return a 0-d tensor")
        if value.ndim > 1 or not value.numel():
            raise EventError(
                f"{what} shape {tuple(value.shape)}: return a 0-d tensor, or (K,) for conditions "
                "that are watched apart"
            )
        if not value.is_floating_point():
            raise EventError(
                f"{what} dtype {value.dtype}: return real numbers that change sign at the event"
            )
        if value.ndim and self.terminal:
            raise EventError(
                f"{what} shape {tuple(value.shape)}, but the event is terminal: one condition "
                "ends the whole solve. Return a 0-d tensor (values.amin(), say), give several "
                "events, or terminal=False. (Samples that end apart would need steps of their own.)"
            )
        if value.ndim and self.jump is not None and not self._jump.masked:  # type: ignore[attr-defined]
            raise EventError(
                f"{what} shape {tuple(value.shape)}: its jump needs a parameter named mask, to be "
                "told which of these crossed"
            )
        return value.reshape(-1)

    def of_samples(self, t: Tensor, z: State, args: Any) -> Tensor:
        """The condition of each sample (B,) at times (B,).

        Raises:
            EventError: it returned something else than real numbers (B,).
        """
        value = self._condition(t, z, args)  # type: ignore[attr-defined]
        what = f"the condition of event {self.name!r} returned"
        if not isinstance(value, Tensor):
            raise EventError(f"{what} a {type(value).__name__}: return a tensor of shape (B,)")
        if value.shape != t.shape:
            raise EventError(
                f"{what} shape {tuple(value.shape)} for {len(t)} samples: with steps per sample it "
                f"is called with t of shape {tuple(t.shape)} and all samples' states, and must "
                f"return {tuple(t.shape)}, one number a sample"
            )
        if not value.is_floating_point():
            raise EventError(
                f"{what} dtype {value.dtype}: return real numbers that change sign at the event"
            )
        return value

    def after(
        self,
        t: Tensor,
        z: State,
        args: Any,
        mask: Tensor,
        layout: StateLayout,
        per_sample: bool = False,
    ) -> State:
        """The state that the jump makes of z.

        Args:
            per_sample: only the samples in ``mask`` matter.

        Raises:
            EventError: it does not fit the state.
        """
        new = self._jump(t, z, args, mask)  # type: ignore[attr-defined]
        if isinstance(z, dict) and isinstance(new, dict) and set(new) == set(z):
            new = {key: new[key] for key in z}
        leaves, spec = pytree.tree_flatten(new)
        fits = spec == layout.spec and all(
            isinstance(x, Tensor) and tuple(x.shape) == shape and x.dtype == dtype
            for x, shape, dtype in zip(leaves, layout.shapes, layout.dtypes, strict=True)
        )
        if not fits:
            got = (
                f"a tensor of shape {tuple(new.shape)} and dtype {new.dtype}"
                if isinstance(new, Tensor)
                else f"a {type(new).__name__}"
            )
            raise EventError(
                f"the jump of event {self.name!r} returned {got}, but the state is a "
                f"{layout.describe()}: return a state"
            )
        if per_sample:
            leaves, t = [x[mask] for x in leaves], t[mask]
        if not all(bool(x.detach().isfinite().all()) for x in leaves):
            at = ", ".join(f"t={s:.6g}" for s in t.detach().reshape(-1)[:3].tolist())
            raise EventError(f"the jump of event {self.name!r} returned NaN or infinity at {at}")
        return new


class _Caller:
    """A user's function of t, z, args and a mask, of which it may leave out some."""

    def __init__(self, fn: Callable[..., Any], what: str) -> None:
        self.fn = fn
        target = fn.forward if isinstance(fn, nn.Module) else fn
        try:
            parameters = inspect.signature(target).parameters
        except (TypeError, ValueError):
            self.masked, self.count, self.optional = False, 2, False
            return
        self.masked = "mask" in parameters
        positional = [
            p
            for p in parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "mask"
        ]
        required = sum(p.default is p.empty for p in positional)
        if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
            required = max(required, 2)
        if required not in (1, 2, 3):
            raise InputError(
                f"{what} takes {required} positional parameters: define it as a function of "
                "(t, z), (t, z, args) or (z)"
            )
        # A third one with a default receives args when there are any, as a field's does.
        self.count = required
        self.optional = required == 2 and len(positional) == 3

    def __call__(self, t: Tensor, z: State, args: Any, mask: Tensor | None = None) -> Any:
        named = {"mask": mask} if self.masked and mask is not None else {}
        if self.count == 1:
            return self.fn(z, **named)
        if self.count == 3 or (self.optional and args is not None):
            return self.fn(t, z, args, **named)
        return self.fn(t, z, **named)


@dataclass(frozen=True)
class EventRecord:
    """What one event did during a solve. Times and states carry gradients.

    Attributes:
        name: the event's.
        times: (n,), when it fired, in the order of the solve; with steps per sample those of one
            sample after those of another.
        states: (n, *z0.shape), the states then, before any jump, in the structure of z0.
        states_after: the states after its jump; the same where it has none.
        entries: (n,) whole numbers, which entry of a (K,) condition, or which sample with steps
            per sample, crossed; 0 for a 0-d condition.
    """

    name: str
    times: Tensor
    states: State
    states_after: State
    entries: Tensor

    def __len__(self) -> int:
        return len(self.times)

    def of(self, entry: int) -> EventRecord:
        """The firings of one entry of a (K,) condition, or of one sample, only."""
        at = (self.entries == entry).nonzero().reshape(-1)

        def pick(x: Tensor) -> Tensor:
            return x[at.to(x.device)]

        return EventRecord(
            self.name,
            pick(self.times),
            pytree.tree_map(pick, self.states),
            pytree.tree_map(pick, self.states_after),
            pick(self.entries),
        )

    def __repr__(self) -> str:
        return f"EventRecord({self.name!r}, times={self.times.detach().tolist()})"


def checked(events: Any) -> tuple[Event, ...]:
    """Events as given by a user, as a tuple.

    Raises:
        InputError: they are no events.
    """
    if isinstance(events, Event):
        return (events,)
    if events is None or events == ():
        return ()
    if not isinstance(events, Sequence) or not all(isinstance(e, Event) for e in events):
        raise InputError("events must be a sequence of pynode.Event")
    return tuple(events)


def record(
    event: Event,
    layout: StateLayout,
    like: Tensor,
    firings: list[tuple[Tensor, Tensor, Tensor, int]],
    z0: Tensor,
) -> EventRecord:
    """The record of one event from its (time, state, state after, entry), states flat.

    Args:
        like: a time, for dtype and device of an empty record.
        z0: a flat state, for the same.
    """
    if not firings:
        none = layout.restore(z0.detach().new_empty((0, layout.size)))
        return EventRecord(event.name, like.new_empty(0), none, none, torch.empty(0).long())
    times, before, after, entries = zip(*firings, strict=True)
    return EventRecord(
        event.name,
        torch.stack(times),
        layout.restore(torch.stack(before)),
        layout.restore(torch.stack(after)),
        torch.tensor(entries),
    )
