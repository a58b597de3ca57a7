"""The explicit Runge-Kutta methods, one file for each; a new method is one file and two lines here.

``TABLEAUS`` maps the solver's name to its :class:`~pynode.engines.torch.tableau.Tableau`.
"""

from pynode.engines.torch.methods.bs3 import TABLEAU as BS3
from pynode.engines.torch.methods.dop853 import TABLEAU as DOP853
from pynode.engines.torch.methods.dp5 import TABLEAU as DP5
from pynode.engines.torch.methods.euler import TABLEAU as EULER
from pynode.engines.torch.methods.fehlberg2 import TABLEAU as FEHLBERG2
from pynode.engines.torch.methods.heun import TABLEAU as HEUN
from pynode.engines.torch.methods.heun3 import TABLEAU as HEUN3
from pynode.engines.torch.methods.midpoint import TABLEAU as MIDPOINT
from pynode.engines.torch.methods.rk4 import TABLEAU as RK4
from pynode.engines.torch.methods.rk4_38 import TABLEAU as RK4_38
from pynode.engines.torch.methods.tsit5 import TABLEAU as TSIT5
from pynode.engines.torch.methods.vern7 import TABLEAU as VERN7
from pynode.engines.torch.tableau import Tableau

TABLEAUS: dict[str, Tableau] = {
    "euler": EULER,
    "midpoint": MIDPOINT,
    "heun": HEUN,
    "fehlberg2": FEHLBERG2,
    "heun3": HEUN3,
    "rk4": RK4,
    "rk4_38": RK4_38,
    "bs3": BS3,
    "dp5": DP5,
    "tsit5": TSIT5,
    "vern7": VERN7,
    "dop853": DOP853,
}
