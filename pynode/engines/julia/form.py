"""What solves in Julia that are alike have in common, put together once."""

from __future__ import annotations

import math
from array import array

import torch
from torch import Tensor

from pynode.engines.alike import Alike
from pynode.engines.julia import calls, places
from pynode.engines.julia.calls import Block, bridge
from pynode.engines.julia.fields import Last, RemoteField
from pynode.engines.julia.reads import Reads
from pynode.options import SolveOptions
from pynode.problem import ODEProblem
from pynode.solution import Retcode, Statistics
from pynode.state import StateLayout
from pynode.times import Times


class SolveForm(Alike):
    """What solves of one field by the same options, at the same times, have in common: all of a
    call but the addresses of its tensors.

    Attributes:
        block: the numbers of a call.
        reads: what is read off the solve.
        each: B where each sample is solved by itself, else 0.
    """

    def __init__(
        self,
        options: SolveOptions,
        layout: StateLayout,
        times: Times,
        dtype: torch.dtype,
        each: bool,
    ) -> None:
        super().__init__(options, layout, times, dtype)
        self._solver = options.solver
        self.each, self.reads = (layout.rows or 1) if each else 0, Reads(times, layout)
        self._stops = array("d", (*options.tstops, math.nan))  # never empty
        self.block = block_of(options, dtype, layout.size, self.each)
        ints, floats = self.block.ints, self.block.floats
        ints[calls.TIMES], ints[calls.WIDTH] = len(self.reads.times), self.reads.width
        ints[calls.TS], ints[calls.AFTER] = self.reads.addresses
        ints[calls.STOPS], ints[calls.STOPS_AT] = len(options.tstops), self._stops.buffer_info()[0]
        floats[5], floats[6] = times.start, times.end

    def solve(
        self, remote: RemoteField, tensors: list[Tensor], z0: Tensor, found: Tensor, keep: int = 0
    ) -> tuple[Block, str, int, int]:
        """Solve in Julia.

        Args:
            tensors: what the field's parameter vector is made of.
            z0: the state, contiguous.
            found: where to write what is read, (K, width) or of as many entries.
            keep: 1 for a gradient from the states, 2 for dense output as well.

        Returns:
            The call's numbers; the retcode, by its name there; the number of the solve, 0 if not
            kept; the first sample that failed, -1 for none.
        """
        block = Block(self.block)
        ints, p = block.ints, remote.pieces(tensors, z0)
        ints[calls.Z0], ints[calls.ZS] = z0.data_ptr(), found.data_ptr()
        ints[calls.PIECES], ints[calls.PARAMETERS] = len(tensors), p.address
        ints[calls.KEEP] = keep
        places.hand_over(z0)
        return block, *bridge().solve(remote.number, self._solver, block)


class RepeatedSolve:
    """A solve like the last one of a lowered field: all is known but the state.

    Args:
        problem: what was solved, of one real tensor, without args, at times that all samples share.
        last: the field as it was solved.
    """

    def __init__(self, problem: ODEProblem, last: Last) -> None:
        self._field, self._last, self._form = problem.field, last, last.remote.form
        self._shape = (len(problem.times.values), *problem.layout.shapes[0])

    def __call__(self, z0: Tensor) -> tuple[Tensor, Statistics] | None:
        """The states at the times, and counts; None where the field has changed, or on failure."""
        if not self._last.unchanged.holds(self._field):
            return None
        remote, z0 = self._last.remote, z0.contiguous()
        zs = z0.new_empty(self._shape)
        block, code, _, _ = self._form.solve(remote, remote.found, z0, zs)
        return (zs, counted(block)) if code == Retcode.SUCCESS else None


def counted(block: Block) -> Statistics:
    """What Julia counted in a forward solve."""
    ints = block.ints
    return Statistics(
        nfe=ints[calls.NFE],
        accepted=ints[calls.ACCEPTED],
        rejected=ints[calls.REJECTED],
        jacobians=ints[calls.JACOBIANS],
    )


def block_of(options: SolveOptions, dtype: torch.dtype, size: int, each: int) -> Block:
    """The numbers that forward and backward calls share, for states of ``size`` entries."""
    block = Block()
    ints, floats = block.ints, block.floats
    ints[calls.N] = size // each if each else size
    ints[calls.FLOAT32] = dtype == torch.float32
    ints[calls.ADAPTIVE] = options.is_adaptive
    ints[calls.MAX_STEPS] = options.max_steps
    ints[calls.SAMPLES] = each
    ints[calls.ELEMENTARY] = options.controller == "i"
    floats[0], floats[1] = options.rtol, options.atol  # type: ignore[assignment]
    if options.dt is not None:
        floats[2] = options.dt
    if math.isfinite(options.dt_max):
        floats[3] = options.dt_max
    return block
