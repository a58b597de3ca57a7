"""Explicit Runge-Kutta methods as data.

A method is a :class:`Tableau` and nothing else: ``pynode/engines/torch/methods/`` holds one
file for each, and the loop in ``runge_kutta.py`` runs them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    r"""Butcher tableau of an explicit Runge-Kutta method with its error row and interpolant.

    One step from :math:`z_0` at :math:`t_0` with step size :math:`h`:

    .. math::
        k_i = f(t_0 + c_i h,\; z_0 + h \sum_{j<i} a_{ij} k_j), \qquad
        z_1 = z_0 + h \sum_i b_i k_i, \qquad
        e = h \sum_i \hat b_i k_i,

    and inside the step, for :math:`\theta \in [0, 1]`,

    .. math::
        z(t_0 + \theta h) = z_0 + h \sum_i k_i \sum_{j \ge 1} p_{ij} \theta^j .

    Attributes:
        name: the solver's name in the catalogue.
        order: order of the solution that is carried forward.
        a: strictly lower triangular; row ``i`` has ``i`` entries, so ``a[0] == ()``.
        b: weights of the solution, one for each stage.
        c: nodes, one for each stage.
        error: weights :math:`\hat b` of the error estimate (solution minus embedded
            solution), or None where the method has none and steps must be fixed.
        error_order: order of the embedded solution; the estimate is
            :math:`O(h^{\text{error\_order}+1})`.
        error_low: a second, lower error row, combined with the first as in DOP853
            (Hairer, Norsett, Wanner, Solving ODEs I, section II.10).
        interpolant: rows :math:`(p_{i1}, p_{i2}, \dots)`, one for each stage *and* each
            extra stage.
        interpolant_order: order of the dense output: its local error is
            :math:`O(h^{\text{interpolant\_order}+1})`.
        extra_a, extra_c: further stages that only the interpolant needs. They may use every
            stage before them and are evaluated only when a value inside the step is asked for.
        reference: paper and table, or source of the coefficients.
    """

    name: str
    order: int
    a: tuple[Row, ...]
    b: Row
    c: Row
    interpolant: tuple[Row, ...]
    interpolant_order: int
    reference: str
    error: Row | None = None
    error_order: int = 0
    error_low: Row | None = None
    extra_a: tuple[Row, ...] = field(default=())
    extra_c: Row = ()

    def __post_init__(self) -> None:
        stages, extra = len(self.b), len(self.extra_c)
        rows_ok = all(len(row) == i for i, row in enumerate(self.a + self.extra_a))
        if not rows_ok or len(self.a) != stages or len(self.c) != stages:
            raise ValueError(f"tableau {self.name}: a, b and c do not describe {stages} stages")
        if len(self.extra_a) != extra or len(self.interpolant) != stages + extra:
            raise ValueError(f"tableau {self.name}: extra stages and interpolant do not fit")
        for row in (self.error, self.error_low):
            if row is not None and len(row) != stages:
                raise ValueError(f"tableau {self.name}: an error row needs {stages} entries")

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def adaptive(self) -> bool:
        return self.error is not None

    @cached_property
    def fsal(self) -> bool:
        """First same as last: the last stage is the first stage of the next step."""
        return (
            self.stages > 1
            and self.c[-1] == 1.0
            and self.a[-1] == self.b[:-1]
            and self.b[-1] == 0.0
        )
