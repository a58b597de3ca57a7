"""The arguments of compiled code: the twin of ``native/call.h``."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Generator
from ctypes import c_double, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ASK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
ASK_SIGNALS, ASK_MEMORY = 0, 1
MOST_BLOCKS = 48
PADDING = 16
"""Entries that compiled code may read beyond the end of a tensor."""


class Call(ctypes.Structure):
    """What goes in and out; ``call.h`` tells what each field is."""

    _fields_ = (
        ("z0", c_void_p), ("params", c_void_p), ("t0", c_double), ("stops", c_void_p),
        ("stop_count", c_int64), ("jumps", c_void_p), ("jump_count", c_int64),
        ("times", c_void_p), ("time_count", c_int64), ("initial_count", c_int64),
        ("places", c_void_p), ("outputs", c_void_p), ("rtol", c_double), ("atol", c_double),
        ("rtols", c_void_p), ("atols", c_void_p), ("largest", c_int64),
        ("exponents", c_double * 3), ("safety", c_double), ("shrink", c_double),
        ("grow", c_double), ("dt_min", c_double), ("dt_max", c_double), ("dt", c_double),
        ("stretch", c_double),
        ("has_dt", c_int64), ("adaptive", c_int64), ("max_steps", c_int64), ("record", c_int64),
        ("first_block", c_int64), ("steps", c_int64), ("step_times", c_void_p),
        ("step_data", c_void_p), ("cotangents", c_void_p), ("final_state", c_void_p),
        ("state_gradient", c_void_p), ("gradient", c_void_p), ("active", c_int64),
        ("ask", ASK), ("gemm", c_void_p), ("threads", c_int64), ("end", c_void_p), ("t", c_double),
        ("next_dt", c_double), ("status", c_int64), ("entry", c_int64), ("accepted", c_int64),
        ("rejected", c_int64), ("nfe", c_int64), ("vjp", c_int64), ("reached", c_int64),
    )  # fmt: skip


def run(function: Any, call: Call, single: bool, log: Any) -> None:
    """Run compiled code; it asks back now and then, so that Ctrl-C ends it.

    Args:
        single: whether it works in float32.
        log: where steps are recorded, whose memory may have to grow.

    Raises:
        BaseException: what was raised while it asked, KeyboardInterrupt say.
    """
    raised: list[BaseException] = []
    asked = _answers(log, raised)
    next(asked)
    call.ask = ASK(asked.send)
    call.gemm, call.threads = gemm(single), torch.get_num_threads()
    function(ctypes.byref(call))
    if raised:
        raise raised[0]


def _answers(log: Any, raised: list[BaseException]) -> Generator[int, int, None]:
    """Answers to compiled code: 1 where it is to stop.

    A generator, since a signal that has come is raised where Python code is entered: of a function
    that is before its ``try``, here it is inside.
    """
    answer = 0
    while True:
        try:
            if (yield answer) == ASK_MEMORY:
                log.grow()
        except GeneratorExit:
            return
        except BaseException as error:
            raised.append(error)
            answer = 1


@functools.cache
def gemm(single: bool) -> int | None:
    """The address of the matrix product of the BLAS that torch brings, if it can be found."""
    name = "sgemm_" if single else "dgemm_"
    folder = Path(torch.__file__).parent / "lib"
    for library in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            found = getattr(ctypes.CDLL(str(folder / library)), name)
        except (OSError, AttributeError):
            continue
        return ctypes.cast(found, c_void_p).value
    return None


def padded(n: int, like: Tensor) -> Tensor:
    """An empty vector (n,) beyond whose end memory may be read."""
    return torch.empty(n + PADDING, dtype=like.dtype)[:n]
