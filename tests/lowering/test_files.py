"""Files: round trips, and that nothing in a file is trusted."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.array_utils import byte_bounds

from pynode.errors import ProgramError
from pynode.lowering import Interpreter, LoweredField, Program
from pynode.lowering.check import difference
from pynode.lowering.golden import CASES, golden
from pynode.lowering.instructions import OPERATIONS
from pynode.lowering.program import strided

GOLDEN = Path(__file__).parents[2] / "julia" / "test" / "golden"
NAMES = (*CASES, "operations")


def load(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def numbers(values: list) -> np.ndarray:
    return np.array([float(x) for x in values])


@pytest.mark.parametrize("name", NAMES)
def test_golden_files_hold(name: str) -> None:
    data = load(name)
    field = LoweredField.from_json(data)
    tol = 1e-5 if field.dtype == "float32" else 1e-12
    for case in data["cases"]:
        inputs = [numbers(case[k]) if k != "t" else case["t"] for k in ("z", "t", "p", "lam")]
        for program, outputs in case["expected"].items():
            got = field.run(program, *inputs)
            for out, values in outputs.items():
                assert difference(got[out], numbers(values)) < tol


def test_golden_files_use_everything() -> None:
    used = {(i[0], i[1]) for i in load("operations")["programs"]["f"]["code"]}
    for name, operation in OPERATIONS.items():
        assert any(op == name for op, _ in used)
        if name in ("unary", "binary", "ternary", "reduce", "scan"):
            assert {kind for op, kind in used if op == name} == set(operation.kinds)


def test_golden_files_are_made_again() -> None:
    made, kept = golden("lotka"), load("lotka")
    assert made["programs"] == kept["programs"]
    assert made["parameters"] == kept["parameters"]


def test_round_trip(tmp_path: Path) -> None:
    field = LoweredField.from_json(load("attention"))
    field.save(tmp_path / "field.json")
    again = LoweredField.load(tmp_path / "field.json")
    assert again.to_json() == field.to_json()
    for name, program in field.programs.items():
        assert again.programs[name].code == program.code
        assert np.array_equal(again.programs[name].constants, program.constants)


def test_infinite_constants_survive() -> None:
    data = load("mlp")["programs"]["f"]
    data["constants"] = ["inf", "-inf", "nan", 0.1]
    program = Program.from_json(data, "float64")
    assert json.loads(json.dumps(program.to_json(), allow_nan=False))["constants"] == [
        "inf", "-inf", "nan", 0.1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"format": "something"}', "9" * 5000, "null"]
)
def test_files_that_are_no_programs(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProgramError):
        LoweredField.load(path)


def minimal(steps: list, **changes: object) -> Program:
    data = {
        "inputs": {"z": 4, "t": 1, "p": 0, "lam": 0},
        "outputs": [["dz", 4]],
        "work": 16,
        "constants": [0.0],
        "indices": [0, 3, 4],
        "code": steps,
        **changes,
    }
    return Program.from_json(data, "float64")


COPY = ["unary", "identity", 4, 6, 0, 2, 0]


@pytest.mark.parametrize(
    "code, message",
    [
        ([["unary", "identity", 5, 6, 0, 2, 0]], "which has 4"),
        ([["unary", "identity", 4, 6, -1, 2, 0]], "entries -1"),
        ([["unary", "identity", 4, 6, 0, 2, 1]], "entries 1 to 4 of slot z"),
        ([["unary", "identity", 4, 9, 0, 2, 0]], "slot 9 cannot be written"),
        ([["unary", "identity", 4, 6, 0, 9, 0]], "no slot 9"),
        ([["unary", "identity", 4, 6, 0, -1, 0]], "no slot -1"),
        ([["unary", "identity", 4, 2, 0, 6, 0], COPY], "slot 2 cannot be written"),
        ([["unary", "identity", 0, 6, 0, 2, 0]], "counts are 1"),
        ([["unary", "identity", 4, 6, 0, 2]], "5 integers|integers where"),
        ([["unary", "exec", 4, 6, 0, 2, 0]], "kind 'exec'"),
        ([["unary", 4, 6, 0, 2, 0]], "has no kind"),
        ([["system", 1]], "no operation begins"),
        ([["unary", "identity", 4.0, 6, 0, 2, 0]], "where an integer belongs"),
        ([["unary", "identity", True, 6, 0, 2, 0]], "where an integer belongs"),
        ([["unary", "identity", 3, 6, 0, 2, 0]], "not fully written"),
        ([["unary", "identity", 2, 6, 0, 2, 0], ["unary", "neg", 2, 6, 0, 2, 0]], "entry 2 of"),
        ([], "not fully written"),
        ([["binary", "add", 4, 6, 0, 2, 0, 2, 2, 0, 1]], "sa=2: 0 or 1"),
        ([["unary", "identity", 4, 1, 0, 1, 2], COPY], "overlaps an operand"),
        ([["unary_nd", "neg", 1, 1, 2, 4, 1, 0, 0, 0, 4, 1, 1, 0, 0, 0, 1, 4], COPY], "overlaps"),
        (
            [["unary_nd", "neg", 1, 1, 2, 4, 1, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1], COPY],
            "written twice",
        ),
        ([["gather", 3, 6, 0, 2, 0, 0], COPY], "slot z, which has 4"),
        ([["gather", 2, 6, 0, 2, 0, 2], COPY], "indices 2 to 3 are not all there"),
        ([["gather", 2, 6, 0, 2, 0, -1], COPY], "not all there"),
        ([["scatter_add", 3, 6, 0, 2, 0, 0], COPY], "slot out0, which has 4"),
        ([["mm", 2, 2, 2, 6, 0, 1, 2, 0, 0, 2, 2, 0, 0, 2, 0, 0, 0, 0, 0], COPY], "twice"),
        ([["mm", 2, 2, 3, 6, 0, 2, 2, 0, 0, 3, 2, 0, 0, 2, 0, 0, 0, 0, 0], COPY], "which has 4"),
        ([["mm", 2, 2, 2, 6, 0, 2, 2, 0, 0, 2, 2, 0, 0, 2, 0, 2, 0, 0, 0], COPY], "add is 0"),
        ([["reduce", "sum", 1, 9, 1, 6, 0, 1, 1, 2, 0, 1, 1, 1], COPY], "which has 4"),
        ([["scan", "sum", 1, 8, 1, 6, 0, 2, 0], COPY], "which has 4"),
    ],
)
def test_programs_that_would_leave_their_memory(code: list, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        minimal(code)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"work": -1}, "slot work"),
        ({"work": 2**40}, "slot work"),
        ({"outputs": []}, "one to three"),
        ({"outputs": [["a", 4]] * 4}, "one to three"),
        ({"outputs": [["a"]]}, "name, size"),
        ({"inputs": {"z": 4, "t": 2, "p": 0, "lam": 0}}, "the time has 2"),
        ({"inputs": {"z": 4}}, "object with"),
        ({"constants": ["one"]}, "not a number"),
        ({"constants": [True]}, "not a number"),
        ({"indices": "0"}, "not a list"),
        ({"code": None}, "not a list"),
    ],
)
def test_headers_that_do_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        minimal([COPY], **changes)


def test_a_huge_operand_is_refused_quickly() -> None:
    with pytest.raises(ProgramError, match=r"slot const|counts are|too large"):
        minimal([["reduce", "sum", 1, 2**40, 1, 6, 0, 1, 1, 2, 0, 0, 0, 0], COPY])
    with pytest.raises(ProgramError, match="counts are 1 to"):
        minimal([["unary_nd", "neg", *[2**20] * 4, 1, 0, *[1] * 4, 2, 0, *[0] * 4], COPY])


def _mutate(data: object, rng: random.Random) -> None:
    """Change one place somewhere within."""
    while True:
        keys = list(data) if isinstance(data, dict) else range(len(data))  # type: ignore[call-overload]
        if not keys:
            return
        key = rng.choice(list(keys))
        inner = data[key]  # type: ignore[index]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.9:
            data = inner
            continue
        choice = rng.randrange(6)
        if choice == 0 and isinstance(inner, int):
            data[key] = inner + rng.choice([-1, 1, 2, 7])  # type: ignore[index]
        elif choice == 1:
            del data[key]  # type: ignore[attr-defined]
        elif choice == 2:
            data[key] = rng.choice([None, "x", [], {}, -1, 0.5, 2**31 + 1, 2**62, True])  # type: ignore[index]
        elif choice == 3 and isinstance(data, list):
            data.insert(key, inner)
        elif isinstance(inner, int):
            data[key] = rng.randrange(-2, 60)  # type: ignore[index]
        return


@pytest.mark.parametrize("name", ["attention", "operations", "lotka", "cnf"])
def test_mutated_files_fail_cleanly_or_stay_in_their_memory(name: str) -> None:
    original = load(name)
    del original["cases"]
    small = {k: original["programs"][k] for k in list(original["programs"])[:2]}
    original["programs"] = small
    rng = random.Random(name)
    accepted = 0
    for _ in range(300):
        data = copy.deepcopy(original)
        _mutate(data["programs"] if rng.random() < 0.8 else data, rng)
        try:
            field = LoweredField.from_json(data)
        except ProgramError:
            continue
        accepted += 1
        for program in field.programs.values():
            _stays_inside(program)
    assert 0 < accepted < 300


def _stays_inside(program: Program) -> None:
    """By numpy's account of the bytes that each operand spans."""
    slots = [np.zeros(size, dtype=program.dtype) for size in program.sizes]
    for _, touched in program.steps:
        for access in (touched.write, *touched.reads):
            low, high = byte_bounds(strided(slots[access.slot], access))
            first, last = byte_bounds(slots[access.slot])
            assert first <= low <= high <= last
    n = program.inputs
    Interpreter(program)(*(np.ones(n[k]) for k in ("z", "t", "p", "lam")))
