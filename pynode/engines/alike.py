"""When two solves are so alike that what was put together for one serves the other."""

from __future__ import annotations

import torch

from pynode.options import SolveOptions
from pynode.state import StateLayout
from pynode.times import Times


class Alike:
    """What was made for solves by the same options, of states of one layout, at the same times."""

    def __init__(
        self, options: SolveOptions, layout: StateLayout, times: Times, dtype: torch.dtype
    ) -> None:
        self._of = options, layout, times.values, dtype

    def fits(
        self, options: SolveOptions, layout: StateLayout, times: Times, dtype: torch.dtype
    ) -> bool:
        """Whether they are the very same: checked times keep their list of values, and times with
        a ``t0`` of their own have a new one each time."""
        own_options, own_layout, values, own_dtype = self._of
        return (
            own_options is options
            and own_layout is layout
            and values is times.values
            and own_dtype is dtype
        )
