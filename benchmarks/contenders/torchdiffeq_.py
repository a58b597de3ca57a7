"""torchdiffeq: odeint (backpropagation through it) and odeint_adjoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contenders import Contender, Task, allowed, import_failure, kind_of
from benchmarks.contenders.torch_problem import TorchProblem


class TorchDiffEq(Contender):
    name = package = "torchdiffeq"

    def missing(self, device: str) -> str:
        return import_failure("torchdiffeq")

    def modes(self, case: Case) -> list[str]:
        # Its adaptive methods are explicit; scipy's, which it wraps, have no backpropagation.
        return allowed(case, ("backsolve",) if case.stiff else ("discrete", "backsolve"))

    def prepare(self, case: Case, mode: str, device: str) -> Task:
        from torchdiffeq import odeint, odeint_adjoint

        kind = kind_of(mode)
        p = TorchProblem(case, device, kind is not None)
        times, pick = p.shared_times()
        options: dict[str, Any] = {"rtol": case.rtol, "atol": case.atol, "method": "dopri5"}
        if case.stiff:
            options |= {"method": "scipy_solver", "options": {"solver": "LSODA"}}
        call: Any = odeint_adjoint if kind == "backsolve" else odeint

        def solve() -> Tensor:
            return pick(call(p.field, p.z0, times, **options))

        return p.task(solve, "LSODA (scipy, one system)" if case.stiff else "dopri5")


def contenders() -> list[Contender]:
    return [TorchDiffEq()]
