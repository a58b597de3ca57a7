"""ESDIRK methods by name. A new one is one file here and one line in the table."""

from pynode.engines.torch.esdirk import EsdirkTableau
from pynode.engines.torch.esdirk_methods import (
    implicit_euler,
    kencarp4,
    kvaerno3,
    kvaerno5,
    trapezoid,
    trbdf2,
)

ESDIRKS: dict[str, EsdirkTableau] = {
    module.TABLEAU.name: module.TABLEAU
    for module in (implicit_euler, trapezoid, trbdf2, kvaerno3, kencarp4, kvaerno5)
}
