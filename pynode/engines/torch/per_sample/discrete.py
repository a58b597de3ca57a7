"""Gradients through the steps: what was accepted is made again, on autograd's tape.

The solve itself decides the steps, off the tape. Then step number k of every sample is made at
once, for k = 1, 2, …: nothing that was rejected, failed or ended is on the tape, so that nothing
of it can reach a gradient, and there are as many turns as the busiest sample has steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pynode.engines.torch.per_sample.build import as_row_system, make_row_stepper
from pynode.engines.torch.per_sample.field import RowField
from pynode.engines.torch.per_sample.outputs import RowOutputs
from pynode.engines.torch.per_sample.trajectory import RowLog, RowSteps
from pynode.options import SolveOptions
from pynode.times import OwnTimes


def replay(
    log: RowLog, options: SolveOptions, field: RowField, z0: Tensor, times: OwnTimes
) -> tuple[Tensor, RowLog]:
    """Make the logged steps again, from z0 (B, D).

    Returns:
        The outputs (T, B·D), and the log of these steps, whole where ``options.dense``.
    """
    steps = RowSteps(log)
    again = RowLog(options.dense, log.start, log.start.copy(), log.direction)
    system = as_row_system(options, field)
    stepper = make_row_stepper(options, system, z0, taped=True)
    outputs = RowOutputs(times, z0, system)
    order = np.argsort(-steps.counts, kind="stable")
    z = z0[torch.from_numpy(order).to(z0.device)]
    for k in range(int(steps.counts.max())):
        n = int((steps.counts > k).sum())
        if n < len(order):
            keep = np.arange(len(order)) < n
            stepper.keep(keep, torch.arange(n, device=z.device))
            order, z = order[:n], z[:n]
        place = steps.first[order] + k
        step = stepper.attempt(order, steps.starts[place], steps.ends[place], z)
        outputs.read(step, None)
        again(step, None)
        stepper.advance(np.ones(n, dtype=bool), None)
        z = step.z1
    return outputs.assemble(), again
