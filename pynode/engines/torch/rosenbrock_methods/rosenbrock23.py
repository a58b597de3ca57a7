"""Rosenbrock23 of MATLAB's ode23s: order 2, L-stable, three stages.

Shampine & Reichelt 1997, The MATLAB ODE Suite, SIAM J. Sci. Comput. 18, section 3: with
W = I − γhJ, γ = 1/(2+√2) and e32 = 6+√2,

    W k1 = f0 + γh f_t,    W (k2 − k1) = f(z0 + h k1/2) − k1,    z1 = z0 + h k2,
    W k3 = f(z1) − e32 (k2 − f(z0 + h k1/2)) − 2 (k1 − f0) + γh f_t,

with error h (k1 − 2 k2 + k3)/6. These are Rosenbrock stages with the α and Γ below. The
interpolant is the paper's, of order 2.
"""

from __future__ import annotations

import math

import numpy as np

from pynode.engines.torch.rosenbrock import RosenbrockTableau, from_classical

_G = 1.0 / (2.0 + math.sqrt(2.0))
_E32 = 6.0 + math.sqrt(2.0)
_ALPHA = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 1.0, 0.0]])
_GAMMA = _G * np.array([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [_E32 - 2.0, -_E32, 1.0]])
# z0 + h (θ(1−θ)/(1−2γ) k1 + θ(θ−2γ)/(1−2γ) k2): columns are the powers θ and θ².
_DENSE = np.array([[1.0, -1.0], [-2.0 * _G, 1.0], [0.0, 0.0]]) / (1.0 - 2.0 * _G)

_A, _C, (_B, _E, _P) = from_classical(
    _ALPHA,
    _GAMMA,
    np.array([0.0, 1.0, 0.0]),
    np.array([1.0, -2.0, 1.0]) / 6.0,
    _DENSE.T,
)

TABLEAU = RosenbrockTableau(
    name="rosenbrock23",
    order=2,
    gamma=_G,
    a=_A,
    coupling=_C,
    c=(0.0, 0.5, 1.0),
    time=tuple(_GAMMA.sum(axis=1).tolist()),
    b=(*_A[2], 0.0),
    error=tuple(_E.tolist()),
    error_order=2,
    interpolant=tuple(map(tuple, _P.T.tolist())),
    interpolant_order=2,
    reference="Shampine & Reichelt 1997, The MATLAB ODE Suite, section 3",
)
