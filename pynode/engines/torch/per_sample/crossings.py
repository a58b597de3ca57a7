"""Where conditions of each sample cross zero in its own steps.

As in ``crossings.py``: sampled at Chebyshev points of each sample's step, roots bracketed on its
dense output. All samples are looked at together: a condition is always called with all of them,
those that it is not asked about standing still, and the roots of all are narrowed down side by
side, so that a search takes as many calls as its hardest root.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.crossings import Crossing, crossing
from pynode.engines.torch.per_sample.field import as_time
from pynode.engines.torch.per_sample.outputs import inside
from pynode.engines.torch.per_sample.step import RowStep
from pynode.engines.torch.scan import (
    SAME,
    Asking,
    Scan,
    Scanned,
    chebyshev_points,
    keeps_sign,
)
from pynode.errors import EventError
from pynode.events import Event
from pynode.solution import Statistics
from pynode.state import StateLayout


class RowWatch:
    """Looks for events of B samples, from their starts to the first event that ends each.

    Args:
        events: what to look for.
        layout, args, stats: of the solve; evaluations of conditions are counted.
        dtype: of times.
        fired: the crossings that the samples' stretches before this one ended with.

    Attributes:
        dt: (B,), the step sizes to begin with, then to go on with; None to have them chosen.
        attempts: (B,), steps attempted in all stretches so far.
        found: crossings that fired, those of a sample in order; ``entry`` is the sample.
        marks: states (M, D) at these.
        stop: (B,), the times at which events ended samples; NaN where none did.
        stalled: samples whose event fires again and again without time going on; its name.
    """

    def __init__(
        self,
        events: Sequence[Event],
        layout: StateLayout,
        args: Any,
        stats: Statistics,
        dtype: torch.dtype,
        fired: Iterable[Crossing] = (),
    ) -> None:
        assert layout.rows is not None
        self.events, self.layout, self.args, self.stats = events, layout, args, stats
        self.dtype, self.rows = dtype, layout.rows
        self.dt: np.ndarray | None = None
        self.attempts = np.zeros(self.rows, dtype=np.int64)
        self.found: list[Crossing] = []
        self._marks: list[Tensor] = []
        self.stop = np.full(self.rows, np.nan)
        self.stalled: dict[int, str] = {}
        self._eps = torch.finfo(dtype).eps
        self._started = {c.index: c for c in fired}
        self._fired = dict(self._started)

    def following(self, fired: Iterable[Crossing]) -> RowWatch:
        """The watch over the stretches after these, which ``fired`` ended."""
        after = RowWatch(self.events, self.layout, self.args, self.stats, self.dtype, fired)
        after.dt, after.attempts = self.dt, self.attempts
        return after

    @property
    def marks(self) -> Tensor:
        """The states (M, D) at the crossings found."""
        return torch.cat([self._park[:0], *self._marks])

    def begin(self, t: np.ndarray, z: Tensor, moving: np.ndarray) -> None:
        """Note on which side of zero each condition starts, of the samples that are ``moving``."""
        self._park, self._park_t = torch.nan_to_num(z.detach()), as_time(t, z)
        everyone = np.arange(self.rows)
        values = np.stack(
            [self._call(i, everyone, t, z.detach()) for i in range(len(self.events))], axis=1
        )
        finite = z.detach().isfinite().all(dim=1).cpu().numpy()  # others fail by themselves
        self._check(values, (moving & finite)[:, None], everyone, t)
        self._last, self._sides = values, np.sign(values)
        for c in self._fired.values():
            if abs(values[c.entry, c.event]) <= c.noise:
                self._sides[c.entry, c.event] = 0.0

    def __call__(self, step: RowStep) -> tuple[np.ndarray, np.ndarray]:
        """Look at an accepted step of n samples, with all its stages.

        Returns:
            Which of them (n,) an event ended, and up to when (n,) the step counts.
        """
        rows, n = step.rows, len(step.rows)
        points, to_coefficients = chebyshev_points(max(step.coefficients.degree + 1, 4))
        times = np.stack([step.t, *(step.t + x * step.dt for x in points[1:-1]), step.t1])
        g = np.concatenate([self._last[rows][None], self._at_nodes(step, times[1:])])
        flat = g.reshape(len(g), -1)
        coefficients = to_coefficients @ flat
        sides = self._sides[rows].reshape(-1)
        quiet, side = keeps_sign(coefficients, sides)
        sides[quiet] = side[quiet]
        self._sides[rows] = sides.reshape(n, -1)
        slack = SAME * self._eps * np.maximum(np.abs(step.t), np.abs(step.t1))
        found = self._scan(step, times, flat, coefficients, np.flatnonzero(~quiet), slack)
        self._last[rows] = g[-1]
        if self._fired:
            stale = {int(row) for row in rows}
            self._fired = {i: c for i, c in self._fired.items() if c.entry not in stale}
        return self._keep(step, found, slack)

    def _scan(
        self,
        step: RowStep,
        times: np.ndarray,
        g: np.ndarray,
        coefficients: np.ndarray,
        loud: np.ndarray,
        slack: np.ndarray,
    ) -> dict[int, list[Crossing]]:
        """The crossings at each position of the step, of the ``loud`` conditions."""
        eps, count = torch.finfo(step.z.dtype).eps, len(self.events)
        scans: dict[int, Asking[Scanned]] = {}
        for k in loud.tolist():
            p, event = divmod(k, count)
            row = int(step.rows[p])
            span = float(step.t[p]), float(step.dt[p]), float(step.t1[p])
            scan = Scan(*span, times[:, p].tolist(), eps, float(slack[p]))
            last = self._fired.get(row * count + event)
            side = float(self._sides[row, event])
            scans[k] = scan(g[:, k], coefficients[:, k], side, self.events[event].direction, last)

        def values(keys: list[int], t: list[float]) -> list[float]:
            return self._values(step, keys, t)

        found: dict[int, list[Crossing]] = {}
        for k, scanned in side_by_side(scans, values).items():
            p, event = divmod(k, count)
            row = int(step.rows[p])
            index = row * count + event
            self._sides[row, event] = scanned.side
            if scanned.stalled:
                self.stalled[row] = self.events[event].name
            before = self._started.get(index)
            found.setdefault(p, []).extend(
                crossing(root, index, event, row, before) for root in scanned.roots
            )
        return found

    def _keep(
        self, step: RowStep, found: dict[int, list[Crossing]], slack: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keep what happens up to the first event that ends each sample."""
        ended, until = np.zeros(len(step.rows), dtype=bool), step.t1.copy()
        kept: list[tuple[int, Crossing]] = []
        for p, crossings in sorted(found.items()):
            row, sign = int(step.rows[p]), math.copysign(1.0, step.dt[p])
            if row in self.stalled:
                ended[p], until[p], self.stop[row] = True, step.t[p], step.t[p]
                continue
            crossings.sort(key=lambda c, sign=sign: c.t * sign)  # type: ignore[misc]
            end = next((c.t for c in crossings if self.events[c.event].ends), None)
            for c in crossings:
                if end is not None:
                    if abs(c.t - end) <= slack[p]:
                        c = replace(c, t=end)
                    elif (c.t - end) * sign > 0:
                        continue
                kept.append((p, c))
            if end is not None:
                ended[p], self.stop[row] = True, end
                until[p] = min(sign * (end + sign * slack[p]), sign * step.t1[p]) * sign
        if kept:
            positions = np.array([p for p, _ in kept])
            self.found += [c for _, c in kept]
            self._marks.append(inside(step, positions, np.array([c.t for _, c in kept])))
        return ended, until

    def _at_nodes(self, step: RowStep, times: np.ndarray) -> np.ndarray:
        """All conditions (m, n, E) at times (m, n) inside the step."""
        found = []
        everyone = np.arange(len(step.rows))
        states = inside(step, np.tile(everyone, len(times)), times.reshape(-1))
        for t, z in zip(times, states.view(len(times), *step.z.shape), strict=True):
            values = [self._call(i, step.rows, t, z) for i in range(len(self.events))]
            found.append(np.stack(values, axis=1))
            self._check(found[-1], np.ones((len(t), 1), dtype=bool), step.rows, t)
        return np.stack(found)

    def _values(self, step: RowStep, keys: list[int], times: list[float]) -> list[float]:
        """Conditions ``keys`` (position and event in one) at times of their own."""
        positions, events = np.divmod(np.array(keys), len(self.events))
        t, found = np.array(times), np.empty(len(keys))
        states = inside(step, positions, t)
        for event in np.unique(events).tolist():
            some = np.flatnonzero(events == event)
            rows = step.rows[positions[some]]
            z = states[torch.from_numpy(some).to(states.device)]
            values = self._call(event, rows, t[some], z)
            self._check(values[:, None], np.ones((len(rows), 1), dtype=bool), rows, t[some], event)
            found[some] = values
        return found.tolist()

    def _call(self, event: int, rows: np.ndarray, t: np.ndarray, z: Tensor) -> np.ndarray:
        """One condition (n,) of the samples ``rows`` (n,) at times (n,) and states (n, D)."""
        with torch.no_grad():
            time, full, index = self.embed(rows, as_time(t, z), z)
            state = self.layout.restore(full.reshape(-1))
            value = self.events[event].of_samples(time, state, self.args)[index]
        self.stats.conditions += 1
        return value.to("cpu", torch.float64).numpy()

    def embed(self, rows: np.ndarray, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Times (B,) and states (B, D) of all samples from those of some, the others parked.

        Returns:
            Times, states, and ``rows`` as an index into them.
        """
        index = torch.from_numpy(rows).to(z.device)
        return (
            self._park_t.index_copy(0, index, t.to(self._park_t)),
            self._park.index_copy(0, index, z),
            index,
        )

    def _check(
        self, values: np.ndarray, of: np.ndarray, rows: np.ndarray, t: np.ndarray, event: int = 0
    ) -> None:
        bad = ~np.isfinite(values) & of
        if not bad.any():
            return
        p, i = (int(x[0]) for x in np.nonzero(bad))
        raise EventError(
            f"the condition of event {self.events[event + i].name!r} is NaN or infinite at "
            f"t={t[p]:.6g} (sample {rows[p]}): look for log, sqrt or division at the edge of their "
            "domain; it is evaluated a little beyond the event too"
        )


def side_by_side(
    scans: dict[int, Asking[Scanned]],
    values: Callable[[list[int], list[float]], list[float]],
) -> dict[int, Scanned]:
    """What all scans come to, the questions of all answered together, round by round."""
    done: dict[int, Scanned] = {}
    asked: dict[int, float] = {}
    answers: dict[int, float | None] = dict.fromkeys(scans)
    while answers:
        asked.clear()
        for k, answer in answers.items():
            try:
                asked[k] = scans[k].send(answer)  # type: ignore[arg-type]  # None starts it
            except StopIteration as end:
                done[k] = end.value
        keys = list(asked)
        answers = dict(zip(keys, values(keys, list(asked.values())), strict=True)) if keys else {}
    return done
