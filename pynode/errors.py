"""Every exception that pynode raises on purpose.

Each message says where, what the cause is, and what to try.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pynode.solution import Solution


class PynodeError(Exception):
    """Base of all of pynode's exceptions."""


class InputError(PynodeError, ValueError):
    """An argument, option or data set that cannot be used as it is."""


class FieldError(PynodeError, ValueError):
    """The field returned something that is not the time derivative of the state."""


class EventError(PynodeError, ValueError):
    """An event's condition or jump returned something that cannot be used."""


class GradientError(PynodeError, RuntimeError):
    """A gradient was asked for that the chosen sensitivity cannot give."""


class JuliaError(PynodeError, RuntimeError):
    """Julia is missing, too old, failed to start, or raised an error of its own (quoted)."""


class CompileError(PynodeError, RuntimeError):
    """compile=True, but there is no compiler, or it refused the code."""


class LoweringError(PynodeError, RuntimeError):
    """The field cannot be turned into a program."""


class ProgramError(PynodeError, ValueError):
    """A program, or a file of programs, that is malformed or would leave its memory."""


class SolveError(PynodeError, RuntimeError):
    """A solve ended before the last time.

    Attributes:
        retcode: how it ended (``max_steps``, ``dt_underflow``, ``non_finite``,
            ``not_converged``, ``max_events``).
        t: the time that was reached.
        sample: index of the first offending sample, or None where that cannot be told.
        samples: all samples that failed, with steps per sample; else empty.
        solution: what had been computed; times not reached hold NaN.
    """

    def __init__(
        self,
        message: str,
        retcode: str,
        t: float,
        sample: int | None = None,
        solution: Solution | None = None,
        samples: Sequence[int] = (),
    ) -> None:
        super().__init__(message)
        self.retcode = retcode
        self.t = t
        self.sample = sample
        self.solution = solution
        self.samples = list(samples)
