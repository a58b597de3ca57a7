"""torchdiffeq's interface over pynode's engine.

``sys.modules["torchdiffeq"] = pynode.torchdiffeq`` (before the first ``import torchdiffeq``) makes
code that was written for torchdiffeq run on it, unchanged. What differs, and why, is in
``docs/from-torchdiffeq.md``.
"""

from pynode.torchdiffeq.adjoint import odeint_adjoint
from pynode.torchdiffeq.dense import odeint_dense
from pynode.torchdiffeq.event_gradient import odeint_event
from pynode.torchdiffeq.forward import odeint

__version__ = "0.2.5"
"""The version of torchdiffeq whose interface this is; later methods of its main branch included."""

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
