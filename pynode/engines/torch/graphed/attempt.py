"""Attempted steps of an explicit Runge-Kutta method in fixed memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.engines.torch.graphed.control import GIVEN, STATE, Control
from pynode.engines.torch.graphed.field import TracedField
from pynode.engines.torch.graphed.graphs import Replayed, counts, fused
from pynode.engines.torch.tableau import Tableau

LOG_BYTES = 1 << 26
MOST_ROWS = 64
TIMES = 3
"""Numbers of a logged step: its start, its end, and when the field is evaluated there."""


class Stages:
    """The stages of a method, those that only dense output needs included, on flat states.

    Attributes:
        a: (stages, stages), row i what stage i is made of.
        b: (stages,), what the step is made of.
        nodes, host_nodes: (stages,), float64, on the device and on the host.
    """

    def __init__(self, method: Tableau, extended: bool, like: Tensor) -> None:
        self.method = method
        nodes = [*method.c, *(method.extra_c if extended else ())]
        rows = [*method.a, *(method.extra_a if extended else ()), method.b]
        table = [[*row, *([0.0] * (len(nodes) - len(row)))] for row in rows]
        matrix = torch.tensor(table, dtype=like.dtype, device=like.device)
        self.a, self.b = matrix[:-1], matrix[-1]
        self.host_nodes = torch.tensor(nodes, dtype=torch.float64)
        self.nodes = self.host_nodes.to(like.device)
        # In place of stages to come: one kernel serves all rows. Each is a tensor of its own, for
        # torch.compile makes a new kernel where other arguments coincide.
        self._blank = [torch.zeros_like(like) for _ in nodes]
        self._combined = fused(_combined, like, like.new_zeros(()), self.b, *self._blank)

    def __len__(self) -> int:
        return len(self.nodes)

    def input(self, i: int, z: Tensor, h: Tensor, stages: Sequence[Tensor]) -> Tensor:
        """The state at which stage i is evaluated."""
        if i == 0:
            return z
        return self._combined(z, h, self.a[i], *stages[:i], *self._blank[i:])

    def end(self, z: Tensor, h: Tensor, stages: Sequence[Tensor], inputs: list[Tensor]) -> Tensor:
        """The state after the step."""
        if self.method.fsal:
            return inputs[self.method.stages - 1]
        return self._combined(z, h, self.b, *stages)


def _combined(z: Tensor, h: Tensor, weights: Tensor, *stages: Tensor) -> Tensor:
    """z + h Σ w_i k_i with the sum first: added one by one, each term would round to z's ulp."""
    total = torch.zeros_like(z)
    for w, k in zip(weights.unbind(), stages, strict=True):
        total = total + w * k
    return z + h * total


class Attempt:
    """One attempted step, over and over, without the host.

    Attributes:
        state, given: numbers of the solve, see ``control.py``.
        z, k: the state, and the field there.
        rtol, atol: (N,) or 0-d.
        log: (rows, 1 + stages, N): of accepted steps the state at their start, and the stages.
        marks: (rows, 3): their times.
    """

    def __init__(
        self,
        field: TracedField,
        method: Tableau,
        like: Tensor,
        *,
        adaptive: bool,
        largest: bool,
        per_entry: bool,
        extended: bool,
    ) -> None:
        self._field, self.method, device = field, method, like.device
        self.extended = extended
        self.stages = Stages(method, extended, like)
        self._control = Control(method, self.stages.nodes, like, adaptive, largest)
        rows = 1 + len(self.stages)
        self.capacity = LOG_BYTES // (rows * like.numel() * like.element_size())
        self.capacity = min(max(self.capacity, 1), MOST_ROWS)
        # In one piece, so that the host writes and reads all numbers at once.
        sizes = len(GIVEN), len(STATE), TIMES * self.capacity
        numbers = torch.ones(sum(sizes), dtype=torch.float64, device=device)
        self.given, self.state, marks = numbers.split(sizes)
        self.marks = marks.view(self.capacity, TIMES)
        self._written, self._read = numbers[: sum(sizes[:2])], numbers[sizes[0] :]
        self.z, self.k = torch.zeros_like(like), torch.zeros_like(like)
        self.log = like.new_zeros((self.capacity, rows, like.numel()))
        shape = (like.numel(),) if per_entry else ()
        self.rtol, self.atol = like.new_ones(shape), like.new_ones(shape)
        self._fuse(like)
        self.attempt = Replayed(self._attempt, device)
        self.begin = Replayed(self._begin, device)
        self.choose = Replayed(self._choose, device) if adaptive else None

    def write(self, given: dict[str, float], state: dict[str, float]) -> None:
        """Set the numbers of the solve."""
        numbers = [*(given[name] for name in GIVEN), *(state[name] for name in STATE)]
        self._written.copy_(torch.tensor(numbers, dtype=torch.float64))

    def empty_log(self) -> None:
        """The next accepted step goes to the first row."""
        self.state[STATE.index("row")] = 0.0

    def read(self) -> tuple[dict[str, float], list[list[float]]]:
        """The numbers of the solve, and the times of logged steps: one wait for the device."""
        numbers = self._read.tolist()
        counts.waits += 1
        state = dict(zip(STATE, numbers, strict=False))
        marks = numbers[len(STATE) :]
        rows = int(state["row"])
        return state, [marks[TIMES * i : TIMES * (i + 1)] for i in range(rows)]

    def _fuse(self, like: Tensor) -> None:
        c, several = self._control, [like] * (len(self.stages) - 1)
        self._plan = fused(c.plan, self.state, self.given)
        plan = c.plan(self.state, self.given)
        self._judge = fused(self._judged, *self._buffers, *plan, like, *several)
        start = (self.given, like, like, self.rtol, self.atol)
        self._probe = fused(c.probe, *start)
        _, _, h0, d1 = c.probe(*start)
        self._first = fused(c.first, self.state, *start, like, h0, d1)

    @property
    def _buffers(self) -> tuple[Tensor, ...]:
        return self.state, self.given, self.z, self.k, self.rtol, self.atol

    def _begin(self) -> None:
        """The field at the start of a stretch."""
        t = self.given[GIVEN.index("first")].to(self.z.dtype)
        self.k.copy_(self._field.f(t, self.z))

    def _choose(self) -> None:
        """The same, and the first step size."""
        self._begin()
        start = (self.given, self.z, self.k, self.rtol, self.atol)
        t, near, h0, d1 = self._probe(*start)
        f = self._field.f(t, near)
        self.state.copy_(self._first(self.state, *start, f, h0, d1))

    def _attempt(self) -> None:
        plan = self._plan(self.state, self.given)
        times, h, s, f = plan[4].unbind(), plan[5], self.stages, self._field.f
        stages = [self.k if self.method.fsal else f(times[0], self.z)]
        inputs = [self.z]
        for i in range(1, len(s)):
            inputs.append(s.input(i, self.z, h, stages))
            stages.append(f(times[i], inputs[i]))
        z1 = s.end(self.z, h, stages, inputs)
        if not self.method.fsal:
            self.k.copy_(stages[0])
        row = self.state[STATE.index("row")].long().reshape(1)
        packed, marks = self._judge(*self._buffers, *plan, z1, *stages[1:])
        self.log.index_copy_(0, row, packed)
        self.marks.index_copy_(0, row, marks)

    def _judged(
        self,
        state: Tensor,
        given: Tensor,
        z: Tensor,
        k: Tensor,
        rtol: Tensor,
        atol: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Accept the step or not, in place; returns its row of the log.

        ``k`` is the first stage; no tensor is handed over twice, since a kernel may write one
        before another one reads its twin.
        """
        plan, z1, stages = rest[:6], rest[6], [k, *rest[7:]]
        packed = torch.stack([z, *stages]).unsqueeze(0)
        marks = torch.stack([state[0], plan[0], plan[3]]).unsqueeze(0)
        error = self._control.error(z, z1, plan[5], rtol, atol, stages)
        accept, after = self._control.judge(state, given, plan, error)
        if self.method.fsal:
            k.copy_(torch.where(accept, stages[self.method.stages - 1], k))
        z.copy_(torch.where(accept, z1, z))
        state.copy_(after)
        return packed, marks
