"""torchode: steps per sample; gradients by backpropagation and by its joint backsolve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contenders import Contender, Task, allowed, import_failure, kind_of
from benchmarks.contenders.torch_problem import TorchProblem


class TorchODE(Contender):
    name = package = "torchode"

    def missing(self, device: str) -> str:
        return import_failure("torchode")

    def modes(self, case: Case) -> list[str]:
        if case.stiff:
            return []
        # Its joint backsolve knows shared times only.
        shared = case.times.ndim == 1
        return allowed(case, ("discrete", "backsolve") if shared else ("discrete",))

    def prepare(self, case: Case, mode: str, device: str) -> Task:
        import torchode

        kind = kind_of(mode)
        p = TorchProblem(case, device, kind is not None)
        term = torchode.ODETerm(p.field)
        step = torchode.Dopri5(term=term)
        controller = torchode.IntegralController(case.atol, case.rtol, term=term)
        solver: Any
        if kind == "backsolve":
            solver = torchode.JointBacksolveAdjoint(
                term, torchode.Dopri5(), torchode.IntegralController(case.atol, case.rtol)
            )
        else:
            solver = torchode.AutoDiffAdjoint(
                step, controller, backprop_through_step_size_control=False
            )
        solver = solver.to(device=device)
        times = p.times.expand(len(p.z0), -1).contiguous()

        def solve() -> Tensor:
            found = solver.solve(torchode.InitialValueProblem(y0=p.z0, t_eval=times))
            if bool((found.status != 0).any()):
                raise RuntimeError(f"torchode's status is {torch.unique(found.status).tolist()}")
            return found.ys.transpose(0, 1)

        return p.task(solve, "dopri5, joint" if kind == "backsolve" else "dopri5, per sample")


def contenders() -> list[Contender]:
    return [TorchODE()]
