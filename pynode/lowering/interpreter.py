"""The reference interpreter: runs any program with numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pynode.errors import InputError
from pynode.lowering.instructions import LAM, OPERATIONS, OUT, SLOTS, Array, Z
from pynode.lowering.program import Program, strided


class Interpreter:
    """A program with its memory: operands are bound to numpy views once.

    Not safe to call from two threads at a time.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._slots = [np.zeros(size, dtype=program.dtype) for size in program.sizes]
        self._slots[0][...] = program.constants
        self._steps = [self._bind(i) for i in range(len(program.code))]

    def _bind(self, number: int) -> Callable[[], None]:
        ins = self.program.code[number]
        values, touched = self.program.steps[number]
        operation = OPERATIONS[ins.op]
        out = strided(self._slots[touched.write.slot], touched.write)
        reads = [strided(self._slots[read.slot], read) for read in touched.reads]
        kind = operation.kinds[ins.kind] if operation.kinds and ins.kind else None
        return partial(operation.run, kind, out, reads, values)

    def __call__(self, z: Any, t: Any = 0.0, p: Any = (), lam: Any = ()) -> dict[str, Array]:
        """Outputs by name, each a new flat array.

        Raises:
            InputError: an input does not have as many entries as the program says.
        """
        for slot, value in enumerate((z, t, p, lam), start=Z):
            array = np.asarray(value, dtype=self.program.dtype).reshape(-1)
            memory = self._slots[slot]
            if slot == LAM and not memory.size:
                continue  # a program without cotangent
            if array.size != memory.size:
                raise InputError(
                    f"{SLOTS[slot]} has {array.size} entries, the program was made for "
                    f"{memory.size}: lower the field again for other shapes"
                )
            memory[...] = array
        with np.errstate(all="ignore"):
            for step in self._steps:
                step()
        names = [name for name, _ in self.program.outputs]
        return {name: self._slots[OUT + i].copy() for i, name in enumerate(names)}
