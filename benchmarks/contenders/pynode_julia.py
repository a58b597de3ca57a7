"""pynode's julia engine, in the case's precision, and in Float32 where that is another."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cases import Case
from benchmarks.contenders import Contender, Task, import_failure
from benchmarks.contenders.pynode_torch import PynodeTorch

KINDS = ("discrete", "backsolve", "interpolating", "gauss", "quadrature")
STIFF = ("gauss", "quadrature")


class PynodeJulia(PynodeTorch):
    """
    Args:
        single: solve in Float32 cases that the others solve in float64.
    """

    compiles, eager = True, False

    def __init__(self, single: bool) -> None:
        name = "pynode julia Float32" if single else "pynode julia"
        super().__init__(name, KINDS, STIFF, "rodas5p", engine="julia")
        self.single = single

    def missing(self, device: str) -> str:
        failure = import_failure("pynode.julia")
        if failure:
            return failure
        from pynode import julia

        status = julia.status()
        if not status.ready:
            return f"no Julia: {status.problem.partition('. ')[0]}"
        return "" if device == "cpu" else "it solves on the CPU"

    def start(self, threads: int) -> None:
        from pynode import julia

        julia.start()
        from juliacall import Main

        Main.seval(f"using LinearAlgebra; BLAS.set_num_threads({threads})")

    def modes(self, case: Case) -> list[str]:
        # Float32 resolves no tolerance much below 1e-6.
        if self.single and (case.dtype == "float32" or case.rtol < 1e-6 or case.stiff):
            return []
        return super().modes(case)

    def prepare(self, case: Case, mode: str, device: str) -> Task:
        single = replace(case, dtype="float32") if self.single else case
        task = super().prepare(single, mode, device)
        precision = "Float32" if single.dtype == "float32" else "Float64"
        task.solver += f", {precision}"
        return task


def contenders() -> list[Contender]:
    return [PynodeJulia(False), PynodeJulia(True)]
