"""Where a step goes, whether it is accepted, and how long the next one is, on the device.

The rules of ``controller.py`` and ``integrate.py``, with tensors for numbers and masks for
branches, so that no step waits for the host. Numbers are float64, all in two vectors: what a solve
changes (``STATE``), and what it is given (``GIVEN``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pynode.engines.torch.tableau import Tableau

STATE = (
    "t", "dt", "past", "before", "refused", "accepted", "rejected", "status", "row", "count",
    "size",
)  # fmt: skip
"""``past`` and ``before``: the last two errors; ``refused``: 1 after a rejection; ``row``: of the
log, where the next accepted step goes; ``count``: steps of this stretch; ``size``: the length of
the last attempt."""

GIVEN = (
    "start", "first", "end", "last", "direction", "stretch", "longest", "far", "b1", "b2", "b3",
    "elementary", "safety", "shrink", "grow", "dt_min", "dt_max", "attempts", "has_dt",
)  # fmt: skip
"""``start`` and ``end`` of the stretch, ``first`` and ``last``: when the field is evaluated there;
``far``: the end of the solve; ``longest``: the largest step that may land on the end."""

RUNNING, DONE, MAX_STEPS, DT_UNDERFLOW, NON_FINITE = range(5)


class Control:
    """The formulas for one method; ``adaptive`` or with fixed steps.

    Args:
        nodes: of all stages, those that only dense output needs included.
        largest: the error norm is the largest entry, not the root mean square.
    """

    def __init__(
        self, method: Tableau, nodes: Tensor, like: Tensor, adaptive: bool, largest: bool
    ) -> None:
        self.method, self.adaptive, self.largest = method, adaptive, largest
        self._nodes = nodes
        self._tiny = torch.finfo(like.dtype).tiny
        self._dtype, self._root = like.dtype, math.sqrt(like.numel())

    def plan(self, state: Tensor, given: Tensor) -> tuple[Tensor, ...]:
        """An attempt: its end t1, h = t1 - t, whether it lands on the end of the stretch, when the
        field is evaluated at t1, the times of all stages, and h in the state's dtype."""
        s = dict(zip(STATE, state.unbind(), strict=True))
        g = dict(zip(GIVEN, given.unbind(), strict=True))
        lands = self._lands(s["t"], s["dt"], g)
        if self.adaptive:
            free = s["t"] + g["direction"] * s["dt"]
        else:  # not t + dt: rounding would add up
            free = g["start"] + g["direction"] * (s["count"] + 1.0) * s["dt"]
        running = s["status"] == RUNNING
        t1 = torch.where(running, torch.where(lands, g["end"], free), s["t"])
        last = torch.where(lands, g["last"], t1)
        h = t1 - s["t"]
        first = torch.where(s["t"] == g["start"], g["first"], s["t"])
        times = torch.where(self._nodes == 1.0, last, s["t"] + self._nodes * h)
        times = torch.where(self._nodes == 0.0, first, times)
        return t1, h, lands.to(h), last, times.to(self._dtype), h.to(self._dtype)

    def _lands(self, t: Tensor, dt: Tensor, g: dict[str, Tensor]) -> Tensor:
        sliver = 4 * _ulp(torch.maximum(t.abs(), g["end"].abs()))
        return torch.minimum(dt * g["stretch"], g["longest"]) + sliver >= (g["end"] - t).abs()

    def scale(self, z: Tensor, z1: Tensor, rtol: Tensor, atol: Tensor) -> Tensor:
        # Without atol an entry that is 0 has the scale 0, and 0/0 is no error.
        return (atol + rtol * torch.maximum(z.abs(), z1.abs())).clamp_min(self._tiny)

    def norm(self, x: Tensor) -> Tensor:
        if self.largest:
            return torch.linalg.vector_norm(x, ord=math.inf)
        return torch.linalg.vector_norm(x / self._root)

    def error(
        self, z: Tensor, z1: Tensor, h: Tensor, rtol: Tensor, atol: Tensor, stages: list[Tensor]
    ) -> Tensor:
        """Of a step in units of the tolerance, 0-d float64; NaN for one that is not finite."""
        if not self.adaptive:
            return (z1 * 0.0).sum().double()
        scale = self.scale(z, z1, rtol, atol)
        assert self.method.error is not None
        high = self._estimate(self.method.error, stages, h, z1, scale)
        if self.method.error_low is None:
            return high.double()
        # DOP853's combination (Hairer, Norsett, Wanner, Solving ODEs I, eq. II.10.17).
        low = self._estimate(self.method.error_low, stages, h, z1, scale)
        root = torch.sqrt(high * high + 0.01 * low * low)
        return (high * high / root.clamp_min(self._tiny)).double()

    def _estimate(
        self, row: tuple[float, ...], stages: list[Tensor], h: Tensor, z1: Tensor, scale: Tensor
    ) -> Tensor:
        total = sum(w * k for w, k in zip(row, stages, strict=False) if w)
        # An infinite state has an infinite scale, and so an error of 0: a share of the state that
        # no other would feel makes it NaN.
        return self.norm((h.abs() * total + self._tiny * z1) / scale)

    def judge(
        self, state: Tensor, given: Tensor, plan: tuple[Tensor, ...], error: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Whether the attempt is accepted, and the state after it."""
        s = dict(zip(STATE, state.unbind(), strict=True))
        g = dict(zip(GIVEN, given.unbind(), strict=True))
        t1, h, lands = plan[0], plan[1], plan[2] > 0
        size, running = h.abs(), s["status"] == RUNNING
        finite = error.isfinite()
        error = torch.where((size <= g["dt_min"]) & finite, error.clamp_max(1.0), error)
        accept = running & (error <= 1.0)
        new = dict(s)
        new["t"] = torch.where(accept, t1, s["t"])
        if self.adaptive:
            self._resize(s, g, size, error, accept, lands, new)
        smallest = torch.maximum(8 * _ulp(s["t"].abs()), g["dt_min"]).clamp_min(1e-30)
        stuck = (new["dt"] < smallest) | (size <= g["dt_min"])
        stuck = stuck if self.adaptive else torch.ones_like(stuck)
        one, zero = torch.ones_like(size), torch.zeros_like(size)
        for name, happened in (("accepted", accept), ("rejected", running & ~accept)):
            new[name] = s[name] + torch.where(happened, one, zero)
        for name in ("row", "count"):
            new[name] = s[name] + torch.where(accept, one, zero)
        new["size"] = torch.where(running, size, s["size"])
        status = torch.where(accept & lands, one * DONE, self._next_status(new, g))
        status = torch.where(~accept & ~finite & stuck, one * NON_FINITE, status)
        new["status"] = torch.where(running, status, s["status"])
        return accept, torch.stack([new[name] for name in STATE])

    def _resize(
        self,
        s: dict[str, Tensor],
        g: dict[str, Tensor],
        size: Tensor,
        error: Tensor,
        accept: Tensor,
        lands: Tensor,
        new: dict[str, Tensor],
    ) -> None:
        """The next step size; see :class:`~pynode.engines.torch.controller.StepSize`."""
        e = error.clamp_min(1e-10)
        factor = g["safety"] * e ** -g["b1"] * s["past"] ** -g["b2"] * s["before"] ** -g["b3"]
        most = torch.where(s["refused"] > 0, torch.ones_like(size), g["grow"])
        longer = self._within(size * torch.minimum(torch.maximum(factor, g["shrink"]), most), g)
        # A step cut short by a stop says little about the size that the next may have.
        cut = lands & (size < s["dt"])
        longer = torch.where(cut, torch.maximum(longer, s["dt"]), longer)
        less = torch.maximum(g["shrink"], g["safety"] * error ** -g["elementary"])
        much = torch.where(error.isinf(), 0.25 * torch.ones_like(size), 0.1 * torch.ones_like(size))
        shorter = self._within(size * torch.where(error.isfinite(), less, much), g)
        running = s["status"] == RUNNING
        new["dt"] = torch.where(running, torch.where(accept, longer, shorter), s["dt"])
        remember = accept & ~cut
        new["past"] = torch.where(remember, e, s["past"])
        new["before"] = torch.where(remember, s["past"], s["before"])
        refused = torch.where(accept, torch.zeros_like(size), torch.ones_like(size))
        new["refused"] = torch.where(running, refused, s["refused"])

    def _next_status(self, new: dict[str, Tensor], g: dict[str, Tensor]) -> Tensor:
        """Whether another attempt may be made after this one."""
        one = torch.ones_like(new["t"])
        tight = ~self._lands(new["t"], new["dt"], g) & (new["dt"] < 8 * _ulp(new["t"].abs()))
        status = torch.where(tight, one * DT_UNDERFLOW, one * RUNNING)
        spent = new["accepted"] + new["rejected"] >= g["attempts"]
        return torch.where(spent, one * MAX_STEPS, status)

    def _within(self, dt: Tensor, g: dict[str, Tensor]) -> Tensor:
        return torch.minimum(torch.maximum(dt, g["dt_min"]), g["dt_max"])

    # The first step size (Hairer, Norsett, Wanner, Solving ODEs I, section II.4) ----------------

    def probe(
        self, given: Tensor, z: Tensor, f: Tensor, rtol: Tensor, atol: Tensor
    ) -> tuple[Tensor, ...]:
        """Where to evaluate the field once more: time, state, and the distance h0."""
        g = dict(zip(GIVEN, given.unbind(), strict=True))
        scale, span = self.scale(z, z, rtol, atol), (g["far"] - g["start"]).abs()
        d0, d1 = self.norm(z / scale).double(), self.norm(f / scale).double()
        tiny = torch.full_like(span, 1e-6)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), tiny, 0.01 * d0 / d1)
        h0 = torch.where((h0 > 0.0) & h0.isfinite(), h0, tiny)  # a norm may overflow
        h0 = torch.minimum(h0, span)
        # Not start + span, which rounding may put behind the end.
        t = torch.where(h0 == span, g["far"], g["start"] + g["direction"] * h0)
        near = z + (g["direction"] * h0).to(z.dtype) * f
        return t.to(z.dtype), near, h0, d1

    def first(
        self,
        state: Tensor,
        given: Tensor,
        z: Tensor,
        f: Tensor,
        rtol: Tensor,
        atol: Tensor,
        near: Tensor,
        h0: Tensor,
        d1: Tensor,
    ) -> Tensor:
        """The state with the first step size in it."""
        g = dict(zip(GIVEN, given.unbind(), strict=True))
        s = dict(zip(STATE, state.unbind(), strict=True))
        span = (g["far"] - g["start"]).abs()
        d2 = self.norm((near - f) / self.scale(z, z, rtol, atol)).double() / h0
        largest = torch.maximum(d1, d2)
        small = (h0 * 1e-3).clamp_min(1e-6)
        h1 = (0.01 / largest) ** (1.0 / (self.method.error_order + 1))
        h1 = torch.where(largest <= 1e-15, small, h1)
        h = torch.minimum(torch.minimum(100.0 * h0, h1), span)
        h = self._within(torch.where((d1 + d2).isfinite(), h, h0), g)
        s["dt"] = torch.where(g["has_dt"] > 0, s["dt"], h)
        good = f.isfinite().all()
        s["status"] = torch.where(good, s["status"], torch.full_like(h, NON_FINITE))
        return torch.stack([s[name] for name in STATE])


def _ulp(x: Tensor) -> Tensor:
    """The spacing of numbers at x >= 0."""
    return torch.nextafter(x, torch.full_like(x, math.inf)) - x
