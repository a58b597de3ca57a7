"""The libraries. A new one is one file here and one name in ``_FILES``.

A contender says which modes of a case it can do ("forward", or "gradient/NAME", NAME as in
``pynode.sensitivities()``), and prepares one as a :class:`Task`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases import Case

_FILES = ("torchdiffeq_", "torchode_", "torchdyn_", "diffrax_", "pynode_torch", "pynode_julia")

FORWARD = "forward"


@dataclass
class Task:
    """One contender at one mode of one case, ready to run again and again.

    Attributes:
        run: does the work, waits until it is done, and returns what ``read`` understands.
        read: the states (T, B, D) at the case's times, and the gradients (z0, params), or None.
        counts: of what ``run`` returned: nfe, steps and the like; made after timing.
        solver: the method that it used.
    """

    run: Callable[[], Any]
    read: Callable[[Any], tuple[np.ndarray, tuple[np.ndarray, list[np.ndarray]] | None]]
    counts: Callable[[Any], dict[str, int]]
    solver: str


class Contender:
    """A library under one name.

    Attributes:
        name: how the report calls it.
        package: the distribution whose version is reported.
        compiles: its first call may take minutes, so that it is given up by the hard limit alone.
        eager: its first call takes as long as the others.
    """

    name: str
    package: str
    compiles: bool = False
    eager: bool = True

    def missing(self, device: str) -> str:
        """Why it cannot run here; empty if it can. Imports the library."""
        raise NotImplementedError

    def start(self, threads: int) -> None:
        """What must be set before the first task."""

    def modes(self, case: Case) -> list[str]:
        """What it can do with this case."""
        raise NotImplementedError

    def prepare(self, case: Case, mode: str, device: str) -> Task:
        raise NotImplementedError


def all_contenders() -> list[Contender]:
    """Every contender, in the order in which they take turns."""
    found: list[Contender] = []
    for name in _FILES:
        module: Any = importlib.import_module(f"benchmarks.contenders.{name}")
        found += module.contenders()
    return found


def allowed(case: Case, kinds: tuple[str, ...]) -> list[str]:
    """The modes of a contender with these kinds of gradients that the case measures."""
    gradients = [k for k in kinds if case.gradients is None or k in case.gradients]
    return [FORWARD, *(f"gradient/{kind}" for kind in gradients)]


def kind_of(mode: str) -> str | None:
    """The gradient method of a mode; None for forward."""
    return mode.partition("/")[2] or None


def import_failure(*modules: str) -> str:
    """Why one of these cannot be imported; empty if all can."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken package may raise anything
            text = str(error).strip().partition("\n")[0]
            return f"import {module} failed: {type(error).__name__}: {text[:160]}"
    return ""
