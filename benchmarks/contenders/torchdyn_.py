"""torchdyn: its odeint, with backpropagation, and the adjoint of its ODEProblem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contenders import Contender, Task, allowed, import_failure, kind_of
from benchmarks.contenders.torch_problem import TorchProblem

SOLVER = "dopri5"


class TorchDyn(Contender):
    name = package = "torchdyn"

    def missing(self, device: str) -> str:
        # Not torchdyn.core, which needs a torchvision that fits this torch.
        return import_failure("torchdyn.numerics", "torchdyn.numerics.sensitivity")

    def modes(self, case: Case) -> list[str]:
        return [] if case.stiff else allowed(case, ("discrete", "backsolve"))

    def prepare(self, case: Case, mode: str, device: str) -> Task:
        from torchdyn.numerics import odeint
        from torchdyn.numerics.sensitivity import _gather_odefunc_adjoint
        from torchdyn.numerics.solvers.ode import str_to_solver

        kind = kind_of(mode)
        p = TorchProblem(case, device, kind is not None)
        times, pick = p.shared_times()
        options: dict[str, Any] = {"rtol": case.rtol, "atol": case.atol, "interpolator": "4th"}

        def plain() -> Tensor:
            return pick(odeint(p.field, p.z0, times, SOLVER, **options)[1])

        def adjoint() -> Tensor:
            # What torchdyn.core.ODEProblem(sensitivity="adjoint") does on each call.
            flat = torch.cat([x.flatten() for x in p.field.arrays])
            stepper = str_to_solver(SOLVER, p.dtype)
            call = _gather_odefunc_adjoint(
                p.field,
                flat,
                stepper,
                case.atol,
                case.rtol,
                "4th",
                stepper,
                case.atol,
                case.rtol,
                None,
                "standard",
            )
            return pick(call.apply(flat, p.z0, times)[1])

        return p.task(adjoint if kind == "backsolve" else plain, SOLVER)


def contenders() -> list[Contender]:
    return [TorchDyn()]
