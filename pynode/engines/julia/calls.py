"""Calls into the Julia package: addresses and numbers go over, nothing is copied by the bridge.

The places in the two blocks of numbers are those of ``julia/src/memory.jl``.
"""

from __future__ import annotations

import ctypes
import math
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from pynode.engines.julia import runtime
from pynode.errors import JuliaError

(N, P, TIMES, Z0, PARAMETERS, TS, ZS, FLOAT32, ADAPTIVE, MAX_STEPS, KEEP, STOPS, STOPS_AT) = range(
    13
)
NFE, ACCEPTED, REJECTED, JACOBIANS = range(13, 17)
COTANGENTS, GRAD_Z0, PIECES, CHECKPOINTING, SAMPLES, ELEMENTARY, WIDTH, AFTER = range(17, 25)
FORGET, SOLVER, RETCODE, NUMBER, FAILED = range(25, 30)
INTS, FLOATS = 30, 8
_NO_INTS, _NO_FLOATS = (0,) * INTS, (math.nan,) * FLOATS

_calls = threading.RLock()
"""Julia is called by one thread at a time, whichever it is."""


class Block:
    """The numbers of one call, in memory that Julia reads and writes.

    Args:
        like: numbers to begin with: another block's.
    """

    def __init__(self, like: Block | None = None) -> None:
        # An array's entries are read and set faster than numpy's.
        self.ints: array[int] = array("q", _NO_INTS) if like is None else like.ints[:]
        self.floats: array[float] = array("d", _NO_FLOATS) if like is None else like.floats[:]

    @property
    def addresses(self) -> tuple[int, int]:
        return self.ints.buffer_info()[0], self.floats.buffer_info()[0]


class Bridge:
    """The running Julia package: its functions, and what it keeps for us."""

    def __init__(self) -> None:
        package = runtime.start()
        memory = package.Memory
        # PYFUNCTYPE: Python stays locked, as Julia calls it back.
        kind = ctypes.PYFUNCTYPE(*[ctypes.c_int64] * 4)
        self._solve = kind(int(memory.solve_address()))
        self._solvers = {name: i for i, name in enumerate(str(memory.solver_names()).split())}
        self._retcodes = str(memory.retcodes()).split()
        self._gradient = getattr(memory, "gradient!")
        self._evaluate = getattr(memory, "evaluate!")
        self._ensemble = getattr(memory, "ensemble!")
        self._memory = memory
        # Numbers of fields and solves that nobody needs any more. They are let go at the next
        # call: a finalizer may run at any moment, inside a call of Julia's even.
        self._dead_fields: deque[int] = deque()
        self._dead_solves: deque[int] = deque()
        memory.on_tick(_tick)

    def open_program(self, text: str) -> int:
        with self._call():
            return int(self._memory.open_program(text))

    def open_program_on(self, text: str, place: str) -> int:
        with self._call():
            return int(self._memory.open_program_on(text, place))

    def open_source(self, text: str) -> int:
        with self._call():
            return int(self._memory.open_source(text))

    def open_callback(
        self, float32: bool, f: Callable[..., None], vjp_z: Callable, vjp_p: Callable
    ) -> int:
        with self._call():
            return int(self._memory.open_callback(float32, f, vjp_z, vjp_p))

    def solve(self, field: int, solver: str, block: Block) -> tuple[str, int, int]:
        """Retcode, number of the solve (0 if not kept), first failed sample or -1."""
        ints = block.ints
        ints[SOLVER] = self._solvers[solver]
        with _calls:
            self._let_go()
            if self._dead_solves:  # one is let go on the way, without a call of its own
                ints[FORGET] = self._dead_solves.popleft()
            if self._solve(field, *block.addresses):
                with self._call():
                    self._memory.failure()
        return self._retcodes[ints[RETCODE]], ints[NUMBER], ints[FAILED]

    def gradient(self, solve: int, sensitivity: str, solver: str | None, block: Block) -> None:
        with self._call():
            self._gradient(solve, sensitivity, solver, *block.addresses)

    def ensemble(self, field: int, solver: str, backend: str, block: Block) -> None:
        with self._call():
            self._ensemble(field, solver, backend, *block.addresses)

    def evaluate(self, solve: int, times: np.ndarray, out: Tensor) -> None:
        with self._call():
            self._evaluate(solve, len(times), times.ctypes.data, out.data_ptr())

    def forget_field(self, number: int) -> None:
        self._dead_fields.append(number)

    def forget_solve(self, number: int) -> None:
        self._dead_solves.append(number)

    @contextmanager
    def _call(self) -> Iterator[None]:
        with _calls:
            self._let_go()
            try:
                yield
            except Exception as error:
                raise translated(error) from None

    def _let_go(self) -> None:
        while len(self._dead_solves) > 1:
            self._memory.close_solve(self._dead_solves.popleft())
        while self._dead_fields:
            self._memory.close_field(self._dead_fields.popleft())


_bridge: Bridge | None = None


def bridge() -> Bridge:
    """The running Julia; starts it if need be.

    Raises:
        JuliaError: it cannot be started.
    """
    global _bridge
    if _bridge is None:
        with _calls:
            _bridge = _bridge or Bridge()
    return _bridge


def _tick() -> None:
    """Called by Julia about every 0.2 s during a solve: Python looks whether Ctrl-C was pressed."""


def translated(error: Exception) -> BaseException:
    """Julia's exception as one of ours, with Julia's own message."""
    inner = getattr(error, "exception", None)
    if type(error).__name__ != "JuliaError" or inner is None:
        return error
    # An exception raised by Python inside a call of Julia's: by Ctrl-C, or by a field's own code.
    python_error = _python_error(inner)
    if python_error is not None:
        return python_error
    text = str(error)
    return JuliaError(f"Julia: {text.splitlines()[0] if text else type(inner).__name__}\n{text}")


def _python_error(inner: Any) -> BaseException | None:
    """The Python exception inside Julia's PyException, also within a task's failure."""
    for _ in range(4):
        value = _field(inner, "v")
        if isinstance(value, BaseException):
            return value
        inner = _field(_field(inner, "task"), "exception") or _field(inner, "ex")
        if inner is None:
            return None
    return None


def _field(value: Any, name: str) -> Any:
    """A field of a Julia object, or None: one that is not there is an error of Julia's."""
    try:
        return getattr(value, name, None)
    except Exception:
        return None
