"""A field with its derivatives as programs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import InputError, ProgramError
from pynode.lowering.instructions import TIME, Array
from pynode.lowering.interpreter import Interpreter
from pynode.lowering.program import DTYPES, Program
from pynode.lowering.trace import PROGRAMS, TAKES_LAM

FORMAT, VERSION = "pynode-lowered-field", 1


@dataclass(frozen=True)
class Parameter:
    """Where a tensor lies in the flat parameter vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(eq=False)
class LoweredField:
    """Programs of one field, for one shape of the state and one dtype.

    Attributes:
        dtype: ``"float32"`` or ``"float64"``.
        rows, width: B and D of the state; B is 1 for a state without batch dimension.
        parameters: layout of the flat parameter vector.
        programs: by name: ``f``, ``vjp``, ``vjp_z``, ``vjp_p``, ``pullback``,
            ``jac``, ``tgrad``.
        autonomous: whether f is known not to depend on t (from the program ``f``).
        tensors: the parameters themselves, in the layout's order; empty after loading.
        constants: tensors whose values are in the programs, with copies of them as they were.
    """

    dtype: str
    rows: int
    width: int
    parameters: tuple[Parameter, ...]
    programs: dict[str, Program]
    autonomous: bool
    tensors: tuple[Tensor, ...] = ()
    constants: tuple[tuple[Tensor, Tensor], ...] = field(default=(), repr=False)
    _interpreters: dict[str, Interpreter] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """Number of entries of the parameter vector."""
        return sum(p.size for p in self.parameters)

    def flat_parameters(self) -> Tensor:
        """The present values of the parameters (P,), detached."""
        dtype = getattr(torch, self.dtype)
        if not self.tensors:
            return torch.empty(0, dtype=dtype)
        return torch.cat([p.detach().reshape(-1) for p in self.tensors])

    def split(self, flat: Tensor) -> list[Tensor]:
        """A flat vector (P,), of gradients say, in the parameters' shapes."""
        return [flat[p.offset : p.offset + p.size].reshape(p.shape) for p in self.parameters]

    def run(
        self, name: str, z: Any, t: Any = 0.0, p: Any = None, lam: Any = ()
    ) -> dict[str, Array]:
        """Outputs of a program by the numpy interpreter.

        Args:
            name: of the program.
            z, t, p, lam: state, time, parameters (default: the present ones), cotangent.

        Raises:
            InputError: there is no such program, or an input has another size.
        """
        if name not in self.programs:
            raise InputError(f"there is no program {name!r}; there are {', '.join(self.programs)}")
        if name not in self._interpreters:
            self._interpreters[name] = Interpreter(self.programs[name])
        values = self.flat_parameters().cpu().numpy() if p is None else p
        return self._interpreters[name](z, t, values, lam)

    def joined(self, other: LoweredField) -> LoweredField:
        """With another's programs, too, of the same field."""
        return replace(
            self,
            programs={**other.programs, **self.programs},
            autonomous=self.autonomous or other.autonomous,
            constants=self.constants + other.constants,
        )

    def __str__(self) -> str:
        head = f"{self.rows}×{self.width}, {self.dtype}, {self.size} parameters"
        return "\n".join([head, *(f"{name}: {p}" for name, p in self.programs.items())])

    # Files ---------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """As ``docs/program-format.md`` describes it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "dtype": self.dtype,
            "rows": self.rows,
            "width": self.width,
            "autonomous": self.autonomous,
            "parameters": [
                {"name": p.name, "shape": list(p.shape), "offset": p.offset}
                for p in self.parameters
            ],
            "programs": {name: program.to_json() for name, program in self.programs.items()},
        }

    @classmethod
    def from_json(cls, data: Any) -> LoweredField:
        """A checked field from what a JSON file held.

        Raises:
            ProgramError: the data are malformed, or a program would leave its memory.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ProgramError(f"this is no {FORMAT} file")
        if data.get("version") != VERSION:
            raise ProgramError(f"version {data.get('version')!r:.40}: only {VERSION} can be read")
        dtype = data.get("dtype")
        if dtype not in DTYPES:
            raise ProgramError(f"dtype {dtype!r:.40} is not one of {', '.join(DTYPES)}")
        rows, width = (_count(data, key) for key in ("rows", "width"))
        autonomous = data.get("autonomous")
        if not isinstance(autonomous, bool):
            raise ProgramError(f"autonomous is {autonomous!r:.40}, not true or false")
        parameters = _read_parameters(data.get("parameters"))
        programs = data.get("programs")
        if not isinstance(programs, dict) or not set(programs) <= set(PROGRAMS):
            raise ProgramError(f"programs is not an object of {', '.join(PROGRAMS)}")
        loaded = {name: _read_program(name, programs[name], dtype) for name in programs}
        field = cls(dtype, rows, width, parameters, loaded, autonomous)
        for name, program in loaded.items():
            field._check_sizes(name, program)
        return field

    def _check_sizes(self, name: str, program: Program) -> None:
        n, p = self.rows * self.width, self.size
        known = {"dz": n, "gz": n, "gp": p, "gt": 1, "jac": n * self.width, "ft": n}
        wanted = tuple((out, known[out]) for out in PROGRAMS[name])
        lam = n if name in TAKES_LAM else 0
        if program.inputs != {"z": n, "t": 1, "p": p, "lam": lam} or program.outputs != wanted:
            raise ProgramError(
                f"program {name} has inputs {program.inputs} and outputs {program.outputs}, which "
                f"do not fit {self.rows} rows of {self.width} and {p} parameters"
            )

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_json()), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> LoweredField:
        """Read a file; nothing in it is trusted.

        Raises:
            ProgramError: it is not JSON, is malformed, or holds a program that would leave its
                memory.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ProgramError(f"{path} is not JSON: {error}") from None
        return cls.from_json(data)


def reads_time(program: Program) -> bool:
    return any(read.slot == TIME for _, touched in program.steps for read in touched.reads)


def _count(data: dict[str, Any], key: str) -> int:
    value = data.get(key)
    if type(value) is not int or not 1 <= value <= 2**31:
        raise ProgramError(f"{key} is {value!r:.40}, not a count")
    return value


def _read_parameters(data: Any) -> tuple[Parameter, ...]:
    if not isinstance(data, list):
        raise ProgramError("parameters is not a list")
    parameters, at = [], 0
    for entry in data:
        fits = isinstance(entry, dict) and isinstance(entry.get("name"), str)
        shape = entry.get("shape") if fits else None
        if not isinstance(shape, list) or any(
            type(n) is not int or not 0 <= n <= 2**31 for n in shape
        ):
            raise ProgramError(f"parameters holds {entry!r:.80}")
        parameter = Parameter(entry["name"], tuple(shape), at)
        if type(entry.get("offset")) is not int or entry["offset"] != at:
            raise ProgramError(f"parameter {parameter.name!r:.40} is not where the last one ends")
        parameters.append(parameter)
        at += parameter.size
    return tuple(parameters)


def _read_program(name: str, data: Any, dtype: str) -> Program:
    try:
        return Program.from_json(data, dtype)
    except ProgramError as error:
        raise ProgramError(f"program {name}: {error}") from None


def as_array(x: Tensor) -> Array:
    return np.ascontiguousarray(x.detach().cpu().numpy()).reshape(-1)
