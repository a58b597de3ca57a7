"""NeuralODE, the module that most people use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pynode.events import Event
from pynode.export import export
from pynode.field import UserField
from pynode.hybrid import run
from pynode.options import SolveOptions
from pynode.problem import ODEProblem
from pynode.repeated import Repeated
from pynode.solution import Solution, Statistics
from pynode.state import State


class NeuralODE(nn.Module):
    """An ODE as a layer: z0 and times in, the states at those times out.

    Chen, Rubanova, Bettencourt, Duvenaud 2018, Neural Ordinary Differential Equations.

    Args:
        field: f(t, z), f(t, z, args) or f(z), returning dz/dt in the shape of z; a module, whose
            parameters are then this module's, or any function. ``t`` is a 0-d tensor; with
            ``step_control="per_sample"`` it is (B,), or 0-d for fields that want it so.
        options: fields of :class:`pynode.options.SolveOptions`: ``solver="tsit5"``,
            ``sensitivity="interpolating"``, ``rtol=1e-6``, ``atol=1e-8``, ``engine="torch"``,
            ``step_control="joint"``, ``max_steps=10_000``, ``dt``, ``checkpoints``, ...

    Attributes:
        options: the checked options.
        stats: counts of the last solve; its backward counts are filled in when backward runs.

    Raises:
        InputError: an option is unknown or has no meaning.

    Example:
        >>> node = NeuralODE(nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2)))
        >>> zs = node(torch.randn(16, 2), torch.linspace(0, 1, 10))  # (10, 16, 2)
    """

    _repeated: Repeated | None = None

    def __init__(self, field: UserField, **options: Any) -> None:
        super().__init__()
        self.field = field
        self.options = SolveOptions.from_keywords(options)
        self.stats = Statistics()

    def forward(
        self, z0: State, t: Any, args: Any = None, t0: float | Tensor | None = None
    ) -> State:
        """The states at the times ``t``.

        Args:
            z0, t, args, t0: see :class:`pynode.ODEProblem`.

        Returns:
            (T, *z0.shape), in the structure of z0.

        Raises:
            InputError, FieldError, SolveError: see :func:`pynode.solve`.
        """
        if self._repeated is not None and args is None and t0 is None:
            found = self._repeated(self.field, z0, t, self.options)
            if found is not None:
                zs, stats = found
                self._note("stats", stats)
                return zs
        problem = ODEProblem(self.field, z0, t, args, t0)
        zs = self._run(problem, self.options).zs
        self._note("_repeated", Repeated.of(problem, self.options))
        return zs

    def solve(
        self,
        z0: State,
        t: Any,
        args: Any = None,
        t0: float | Tensor | None = None,
        events: Sequence[Event] = (),
    ) -> Solution:
        """As calling the module, but the whole :class:`pynode.Solution`, with dense output.

        Args:
            events: what is to be watched for, see :class:`pynode.Event`.
        """
        problem = ODEProblem(self.field, z0, t, args, t0, events)
        return self._run(problem, replace(self.options, dense=True))

    def _run(self, problem: ODEProblem, options: SolveOptions) -> Solution:
        solution = run(problem, options)
        self._note("stats", solution.stats)
        return solution

    def _note(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # Module's own looks for parameters

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_repeated"}

    def export(
        self, folder: str | Path, z0: State, t: Any, args: Any = None, **more: State
    ) -> Path:
        """Write a folder that Julia runs without Python: see :func:`pynode.export.export`."""
        return export(self, folder, z0, t, args, **more)

    def extra_repr(self) -> str:
        o = self.options
        steps = f"rtol={o.rtol}, atol={o.atol}" if o.is_adaptive else f"dt={o.dt}"
        return f"solver={o.solver!r}, sensitivity={o.sensitivity!r}, {steps}, engine={o.engine!r}"
