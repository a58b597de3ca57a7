"""Programs: instructions on flat memory, checked once so that running them needs no checks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pynode.errors import ProgramError
from pynode.lowering.instructions import (
    COUNTS,
    FLAGS,
    LAM,
    OPERATIONS,
    OUT,
    SLOTS,
    WRITABLE,
    Access,
    Array,
    Operation,
    Touched,
)

DTYPES = ("float32", "float64")
LARGEST = 2**31
"""No slot and no operand has more entries than this."""

INPUTS = SLOTS[2 : LAM + 1]


class Instruction(NamedTuple):
    """One step: name and kind of the operation, and its integers in the table's order."""

    op: str
    kind: str | None
    integers: tuple[int, ...]

    @property
    def operation(self) -> Operation:
        return OPERATIONS[self.op]


@dataclass(frozen=True, eq=False)
class Program:
    """A list of instructions with the sizes of its memory.

    Attributes:
        dtype: ``"float32"`` or ``"float64"``.
        inputs: sizes of z, t, p and lam.
        outputs: names and sizes, at most three.
        work: size of the intermediate memory.
        constants: the contents of slot ``const``.
        indices: positions for ``gather`` and ``scatter_add``.
        code: the instructions.
        steps: each instruction's fields by name, with the memory it touches (made by the check).

    Raises:
        ProgramError: on construction, if anything is malformed or would leave its memory.
    """

    dtype: str
    inputs: dict[str, int]
    outputs: tuple[tuple[str, int], ...]
    work: int
    constants: Array
    indices: Array
    code: tuple[Instruction, ...]
    steps: tuple[tuple[dict[str, Any], Touched], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_header(self)
        steps = []
        for number, instruction in enumerate(self.code):
            try:
                steps.append(_check_instruction(self, instruction))
            except ProgramError as error:
                raise ProgramError(f"instruction {number} ({instruction.op}): {error}") from None
        object.__setattr__(self, "steps", tuple(steps))
        _check_outputs(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each slot."""
        out = [size for _, size in self.outputs]
        return (
            len(self.constants),
            self.work,
            *(self.inputs[name] for name in INPUTS),
            *out,
            *[0] * (3 - len(out)),
        )

    def pack(self) -> Array:
        """The code as one int64 vector: number, number of the kind, integers, and so on."""
        packed: list[int] = []
        for op, kind, integers in self.code:
            operation = OPERATIONS[op]
            packed += (operation.number, list(operation.kinds or ()).index(kind) if kind else 0)
            packed += integers
        return np.array(packed, dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": dict(self.inputs),
            "outputs": [list(out) for out in self.outputs],
            "work": self.work,
            "constants": [_to_number(x) for x in self.constants.tolist()],
            "indices": self.indices.tolist(),
            "code": [[op, *([kind] if kind else []), *ints] for op, kind, ints in self.code],
        }

    @classmethod
    def from_json(cls, data: Any, dtype: str) -> Program:
        """A checked program from what a JSON file held.

        Raises:
            ProgramError: anything is malformed or would leave its memory.
        """
        data = _object(data, "inputs", "outputs", "work", "constants", "indices", "code")
        inputs = _object(data["inputs"], *INPUTS)
        outputs = []
        for entry in _list(data["outputs"], "outputs"):
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
                raise ProgramError(f"outputs holds {entry!r:.80}, not [name, size]")
            outputs.append((entry[0], _integer(entry[1])))
        return cls(
            dtype,
            {name: _integer(inputs[name]) for name in INPUTS},
            tuple(outputs),
            _integer(data["work"]),
            _float_array(data["constants"], dtype),
            np.array([_integer(x) for x in _list(data["indices"], "indices")], dtype=np.int64),
            tuple(_read_instruction(x) for x in _list(data["code"], "code")),
        )

    def __str__(self) -> str:
        sizes = ", ".join(f"{name}[{n}]" for name, n in self.inputs.items() if n)
        outs = ", ".join(f"{name}[{n}]" for name, n in self.outputs)
        lines = [f"{sizes} -> {outs}   {self.dtype}, work[{self.work}], {len(self.code)} steps"]
        lines += [
            f"{i:4d}  {describe(ins, values, touched)}"
            for i, (ins, (values, touched)) in enumerate(zip(self.code, self.steps, strict=True))
        ]
        return "\n".join(lines)


def describe(ins: Instruction, values: dict[str, Any], touched: Touched) -> str:
    """An instruction for human eyes: what is made, by which operation, from what."""
    name = f"{ins.op}.{ins.kind}" if ins.kind else ins.op
    reads = ", ".join(_place(read) for read in touched.reads)
    return f"{_place(touched.write):32s} = {name}({reads})"


def _place(access: Access) -> str:
    kept = [(n, s) for n, s in zip(access.shape, access.strides, strict=True) if n > 1]
    where = f"{SLOTS[access.slot]}+{access.offset}"
    if not kept:
        return where
    contiguous = all(s == math.prod(n for n, _ in kept[i + 1 :]) for i, (_, s) in enumerate(kept))
    shape = "×".join(str(n) for n, _ in kept)
    return (
        f"{where}[{shape}]"
        if contiguous
        else f"{where}[{shape} by {','.join(str(s) for _, s in kept)}]"
    )


# Checks -----------------------------------------------------------------------------------------


def _check_header(program: Program) -> None:
    if program.dtype not in DTYPES:
        raise ProgramError(f"dtype {program.dtype!r} is not one of {', '.join(DTYPES)}")
    if not 1 <= len(program.outputs) <= 3:
        raise ProgramError(f"{len(program.outputs)} outputs: one to three are possible")
    if program.inputs["t"] != 1:
        raise ProgramError(f"the time has {program.inputs['t']} entries, not 1")
    for name, size in zip(SLOTS, program.sizes, strict=True):
        if not 0 <= size <= LARGEST:
            raise ProgramError(f"slot {name} has {size} entries: 0 to {LARGEST} are possible")


def _check_instruction(program: Program, ins: Instruction) -> tuple[dict[str, Any], Touched]:
    operation = OPERATIONS.get(ins.op)
    if operation is None:
        raise ProgramError(f"there is no such operation; there are {', '.join(OPERATIONS)}")
    if (operation.kinds is None) != (ins.kind is None) or (
        operation.kinds is not None and ins.kind not in operation.kinds
    ):
        raise ProgramError(f"kind {ins.kind!r:.40} is not one of {list(operation.kinds or ())}")
    if len(ins.integers) != operation.length:
        raise ProgramError(f"{len(ins.integers)} integers where {operation.length} belong")
    values = operation.decode(list(ins.integers))
    _check_fields(values)
    if "first" in values:
        _take_indices(program, values)
    touched = operation.touched(values)
    _check_memory(program, touched, adds=ins.op == "scatter_add")
    return values, touched


def _check_fields(values: dict[str, Any]) -> None:
    for name, value in values.items():
        parts = value if isinstance(value, tuple) else (value,)
        if any(abs(x) > LARGEST for x in parts):
            raise ProgramError(f"{name}={value} is too large")
        if name in COUNTS and (min(parts) < 1 or math.prod(parts) > LARGEST):
            raise ProgramError(f"{name}={value}: counts are 1 to {LARGEST}")
        if name in FLAGS and value not in (0, 1):
            raise ProgramError(f"{name}={value}: 0 or 1 is needed")
    if values.get("add") == 0 and (values["c"] != (0, 0) or values["ci"] or values["cj"]):
        raise ProgramError("an addend is given, but add is 0")


def _take_indices(program: Program, values: dict[str, Any]) -> None:
    first, n = values["first"], values["n"]
    if not 0 <= first <= first + n <= len(program.indices):
        raise ProgramError(f"indices {first} to {first + n - 1} are not all there")
    taken = program.indices[first : first + n]
    low, high = int(taken.min()), int(taken.max())
    if low < 0 or high > LARGEST:
        raise ProgramError(f"index {low if low < 0 else high} is impossible")
    values["range"] = (low, high)
    values["indices"] = taken - low


def _check_memory(program: Program, touched: Touched, adds: bool) -> None:
    write = touched.write
    if write.slot not in WRITABLE:
        raise ProgramError(f"slot {write.slot} cannot be written")
    for access in (write, *touched.reads):
        _check_access(program, access)
    if not write.is_injective():
        raise ProgramError("an entry of the result would be written twice")
    low, high = write.span()
    for read, inplace in zip(touched.reads, touched.inplace, strict=True):
        if read.slot != write.slot or (inplace and _same(read, write)):
            continue
        other_low, other_high = read.span()
        if low <= other_high and other_low <= high:
            raise ProgramError("the result overlaps an operand")


def _check_access(program: Program, access: Access) -> None:
    if not 0 <= access.slot < len(SLOTS):
        raise ProgramError(f"there is no slot {access.slot}")
    size = program.sizes[access.slot]
    low, high = access.span()
    if low < 0 or high >= size or math.prod(access.shape) > LARGEST:
        raise ProgramError(
            f"entries {low} to {high} of slot {SLOTS[access.slot]}, which has {size}"
        )


def _same(a: Access, b: Access) -> bool:
    """Whether two accesses of one slot visit the same addresses in the same order."""
    pairs = zip(a.shape, a.strides, b.strides, strict=True)
    return a.offset == b.offset and all(n == 1 or s == r for n, s, r in pairs)


def _check_outputs(program: Program) -> None:
    for slot, (name, size) in enumerate(program.outputs, start=OUT):
        writes = [t.write for _, t in program.steps if t.write.slot == slot]
        if sum(math.prod(w.shape) for w in writes) < size:
            raise ProgramError(f"output {name} is not fully written")
        written = np.zeros(size, dtype=bool)
        for w in writes:
            strided(written, w)[...] = True
        if not written.all():
            raise ProgramError(f"entry {int(written.argmin())} of output {name} is not written")


def strided(memory: Array, access: Access) -> Array:
    """The part of a slot that an operand is, as a numpy view; the access must have been checked."""
    step = memory.itemsize
    return np.lib.stride_tricks.as_strided(
        memory[access.offset :], access.shape, tuple(s * step for s in access.strides)
    )


# Reading ----------------------------------------------------------------------------------------


def _object(data: Any, *keys: str) -> dict[str, Any]:
    if not isinstance(data, dict) or any(key not in data for key in keys):
        raise ProgramError(f"an object with {', '.join(keys)} is needed, not {data!r:.80}")
    return data


def _list(data: Any, name: str) -> list[Any]:
    if not isinstance(data, list):
        raise ProgramError(f"{name} is {data!r:.80}, not a list")
    return data


def _integer(value: Any) -> int:
    if type(value) is not int or abs(value) > 2**53:
        raise ProgramError(f"{value!r:.80} stands where an integer belongs")
    return value


def _float_array(data: Any, dtype: str) -> Array:
    if dtype not in DTYPES:
        raise ProgramError(f"dtype {dtype!r:.40} is not one of {', '.join(DTYPES)}")
    values = []
    for x in _list(data, "constants"):
        if x in ("inf", "-inf", "nan") or (type(x) in (int, float) and abs(x) < 1e400):
            values.append(float(x))
        else:
            raise ProgramError(f"constants holds {x!r:.80}, which is not a number")
    with np.errstate(over="ignore"):
        return np.array(values, dtype=dtype)


def _to_number(x: float) -> float | str:
    return x if math.isfinite(x) else str(x)


def _read_instruction(data: Any) -> Instruction:
    entries = _list(data, "an instruction")
    if not entries or not isinstance(entries[0], str) or entries[0] not in OPERATIONS:
        raise ProgramError(f"no operation begins {data!r:.80}")
    has_kind = OPERATIONS[entries[0]].kinds is not None
    kind = entries[1] if has_kind and len(entries) > 1 else None
    if has_kind and not isinstance(kind, str):
        raise ProgramError(f"{data!r:.80} has no kind")
    return Instruction(
        entries[0], kind, tuple(_integer(x) for x in entries[2 if has_kind else 1 :])
    )
