"""Exact gradients of the computed solution: recorded steps in reverse, each a replayed graph.

For a step z1 = z + h Σ b_i k_i with k_i = f(t_i, z_i) and z_i = z + h Σ a_ij k_j, from the
cotangent of z1 and those of the stages (what dense output made of them), last stage first:
λ_i = dL/dk_i, and λ_iᵀ∂f/∂z goes to z and, times h a_ij, to the stages before.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pynode.engines.torch.graphed.attempt import Stages
from pynode.engines.torch.graphed.graphs import Replayed, fused
from pynode.engines.torch.graphed.log import Block, Interpolant

VJP = Callable[[Tensor, Tensor, Tensor], list[Tensor]]
"""(t, z, λ) to λᵀ∂f/∂z and λᵀ∂f/∂θ."""


class ReverseStep:
    """One step in reverse, in fixed memory.

    Attributes:
        row: (1 + stages, N): state and stages of the step.
        cotangents: (1 + stages, N): dL of them by the outputs inside the step.
        times: (1 + stages,): h, and the times of the stages.
        a: (N,): dL/dz1, afterwards dL/dz.
        carried: (N,): dL of the field at the step's end, afterwards at its start, where the last
            stage of a step is the first one of the next.
        gradient: (P,): what the parameters have got so far.
    """

    def __init__(self, vjp: VJP, parameters: int, stages: Stages, like: Tensor) -> None:
        self._vjp, self._stages = vjp, stages
        count = len(stages)
        self.row = like.new_zeros((1 + count, like.numel()))
        self.cotangents = torch.zeros_like(self.row)
        self.times = like.new_ones(1 + count)
        self.a, self.carried = torch.zeros_like(like), torch.zeros_like(like)
        self.gradient = like.new_zeros(parameters)
        lam = like.new_zeros((count, like.numel()))
        self._seed = fused(self._seeded, self.a, self.carried, self.cotangents, self.times)
        buffers = (self.a, self.gradient, self.times)
        self._spread = fused(_spread, lam, *buffers, stages.b, like, self.gradient)
        self.step = Replayed(self._reverse, like.device)
        self.close = Replayed(self._close, like.device)

    def _seeded(self, a: Tensor, carried: Tensor, cotangents: Tensor, times: Tensor) -> Tensor:
        """dL of the stages (stages, N) by the outputs, by z1 and by the next step."""
        method = self._stages.method
        lam = cotangents[1:] + times[0] * self._stages.b.unsqueeze(1) * a
        if method.fsal:
            lam[method.stages - 1].add_(carried)
        a.add_(cotangents[0])
        return lam

    def _reverse(self) -> None:
        s, z, stages = self._stages, self.row[0], self.row[1:].unbind()
        times, fsal = self.times.unbind(), self._stages.method.fsal
        lam = self._seed(self.a, self.carried, self.cotangents, self.times)
        for i in reversed(range(1 if fsal else 0, len(s))):
            z_i = s.input(i, z, times[0], stages)
            of_state, of_parameters = self._vjp(times[1 + i], z_i, lam[i])
            buffers = (self.a, self.gradient, self.times)
            self._spread(lam, *buffers, s.a[i], of_state, of_parameters)
        if fsal:
            self.carried.copy_(lam[0])

    def _close(self) -> None:
        """The evaluation of the field that a stretch begins with, at ``times[1]``."""
        of_state, of_parameters = self._vjp(self.times[1], self.row[0], self.carried)
        self.a.add_(of_state)
        self.gradient.add_(of_parameters)
        self.carried.zero_()


def _spread(
    lam: Tensor,
    a: Tensor,
    gradient: Tensor,
    times: Tensor,
    row: Tensor,
    of_state: Tensor,
    of_parameters: Tensor,
) -> None:
    """Add a stage's vector-Jacobian product to the stages before, the state, the parameters."""
    lam.add_(times[0] * row.unsqueeze(1) * of_state)
    a.add_(of_state)
    gradient.add_(of_parameters)


def discrete(
    step: ReverseStep, stages: Stages, blocks: list[Block], reader: Interpolant, grad: Tensor
) -> tuple[Tensor, Tensor, int]:
    """dL/dz0 (N,), dL/dθ (P,) and the number of vector-Jacobian products from dL/dzs (T, N)."""
    fsal, products = stages.method.fsal, 0
    torch._foreach_zero_([step.a, step.carried, step.gradient])
    memory = [step.row, step.cotangents, step.times]
    for block in reversed(blocks):
        cotangents, times = reader.cotangents(block, grad), _times(block, stages).to(grad)
        for i in reversed(range(len(block))):
            torch._foreach_copy_(memory, [block.rows[i], cotangents[i], times[i]])
            step.step()
        products += len(block) * (len(stages) - fsal)
        if block.begins and fsal:
            step.times[1] = block.first
            step.close()
            products += 1
    a = step.a.clone()
    reader.plan.jump(a, grad, 0, reader.plan.until(blocks[0].times[0][0]))
    return a, step.gradient.clone(), products


def _times(block: Block, stages: Stages) -> Tensor:
    """(steps, 1 + stages): h and the times of the stages, in float64 on the host."""
    t, t1, last = torch.tensor(block.times, dtype=torch.float64).t().unsqueeze(2)
    nodes = stages.host_nodes
    h = t1 - t
    times = torch.where(nodes == 1.0, last, t + nodes * h)
    if block.begins:
        times[0, (nodes == 0.0).nonzero()[:, 0]] = block.first
    return torch.cat([h, times], dim=1)
