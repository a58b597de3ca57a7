"""pynode's torch engine: one step size for the batch, steps per sample, compiled."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contenders import Contender, Task, allowed, import_failure, kind_of
from benchmarks.contenders.torch_problem import TorchProblem

JOINT = ("discrete", "backsolve", "interpolating", "gauss", "quadrature", "reversible")
STIFF = ("discrete", "gauss", "quadrature")
PER_SAMPLE = ("discrete", "gauss")
COMPILED = ("discrete", "backsolve", "interpolating", "gauss")


class PynodeTorch(Contender):
    """
    Args:
        name: in the report.
        solver: for stiff cases; others are solved by dp5.
        options: of ``NeuralODE``.
        kinds, stiff_kinds: its sensitivities.
    """

    package = "pynode-ode"

    def __init__(
        self,
        name: str,
        kinds: tuple[str, ...],
        stiff_kinds: tuple[str, ...],
        stiff_solver: str,
        **options: Any,
    ) -> None:
        self.name, self.options = name, options
        self.kinds, self.stiff_kinds, self.stiff_solver = kinds, stiff_kinds, stiff_solver

    def missing(self, device: str) -> str:
        return import_failure("pynode")

    def modes(self, case: Case) -> list[str]:
        if self.options.get("step_control") == "per_sample" and len(case.z0) == 1:
            return []
        return allowed(case, self.stiff_kinds if case.stiff else self.kinds)

    def prepare(self, case: Case, mode: str, device: str) -> Task:
        from pynode import NeuralODE

        kind = kind_of(mode)
        p = TorchProblem(case, device, kind is not None)
        solver = self.stiff_solver if case.stiff else "dp5"
        given: dict[str, Any] = {"solver": solver, "rtol": case.rtol, "atol": case.atol}
        given["max_steps"] = 100_000
        if not case.stiff:
            given["controller"] = "i"  # as torchdiffeq's and diffrax's are
        if kind is not None:
            given["sensitivity"] = kind
        node = NeuralODE(p.field, **given, **self.options)
        times = p.times.to("cpu")

        def solve() -> Tensor:
            return node(p.z0, times)

        def counts(_: Any) -> dict[str, int]:
            s = node.stats
            return {
                "field calls": s.nfe + s.nfe_backward,
                "steps": s.accepted + s.rejected,
                "steps backward": s.accepted_backward + s.rejected_backward,
            }

        steps = self.options.get("step_control", "joint").replace("_", " ")
        return p.task(solve, f"{solver}, {steps}", counts)


class PynodeCompiled(PynodeTorch):
    """``compile=True``: whole solves in machine code, or CUDA graphs. Its cold time is mostly the
    compiler's."""

    compiles, eager = True, False

    def missing(self, device: str) -> str:
        failure = super().missing(device)
        if failure or device != "cpu":
            return failure
        from pynode.engines.torch.compiled.build import compiler
        from pynode.errors import CompileError

        try:
            compiler()
        except CompileError as error:
            return str(error).partition(". ")[0]
        return ""

    def modes(self, case: Case) -> list[str]:
        return [] if case.stiff else super().modes(case)


def contenders() -> list[Contender]:
    return [
        PynodeTorch("pynode torch", JOINT, STIFF, "kvaerno5"),
        PynodeTorch(
            "pynode torch per sample", PER_SAMPLE, PER_SAMPLE, "rodas5p", step_control="per_sample"
        ),
        PynodeCompiled("pynode compiled", COMPILED, (), "", compile=True),
    ]
