"""The methods' coefficients against the order conditions on rooted trees and against scipy.

A tree is the sorted tuple of the trees that hang from its root. With its number of nodes |t|, its
density γ(t) and its elementary weights Φ(t), one for each stage, weights b have order p exactly
when Σ b_i Φ_i(t) = 1/γ(t) for every t with |t| <= p, and the interpolant has order p when
Σ b_i(θ) Φ_i(t) = θ^|t|/γ(t) (Hairer, Norsett, Wanner, Solving ODEs I, sections II.2 and II.6).
"""

from functools import cache
from math import fsum, prod

import numpy as np
import pytest
from scipy.integrate import DOP853, RK23, RK45

from pynode.engines.torch.esdirk_methods import ESDIRKS
from pynode.engines.torch.methods import TABLEAUS as EXPLICIT
from pynode.engines.torch.tableau import Tableau

Tree = tuple["Tree", ...]
TABLEAUS = {**EXPLICIT, **ESDIRKS}

ORDERS = {  # solution, embedded solution, interpolant
    "euler": (1, None, 1),
    "midpoint": (2, 1, 2),
    "heun": (2, 1, 2),
    "fehlberg2": (2, 1, 2),
    "heun3": (3, None, 2),
    "rk4": (4, None, 3),
    "rk4_38": (4, None, 3),
    "bs3": (3, 2, 3),
    "dp5": (5, 4, 4),
    "tsit5": (5, 4, 4),
    "vern7": (7, 6, 7),
    "dop853": (8, 5, 7),  # error_order is that of the combined estimate, see the test below
    "implicit_euler": (1, None, 1),
    "trapezoid": (2, None, 2),
    "trbdf2": (2, 3, 2),
    "kvaerno3": (3, 2, 3),
    "kencarp4": (4, 3, 4),
    "kvaerno5": (5, 4, 4),
}
FSAL = {"bs3", "dp5", "tsit5", "dop853", *ESDIRKS}
THETAS = (0.03, 0.2, 0.5, 0.71, 0.9, 1.0)
TOL = 5e-14  # rounding: the coefficients of a step are below 200
DENSE_TOL = 5e-13  # those of the interpolants reach 1e3
BROKEN = 1e-5  # a condition that fails, fails by more

every_method = pytest.mark.parametrize("name", ORDERS)


@cache
def trees(nodes: int) -> tuple[Tree, ...]:
    """All rooted trees with so many nodes."""
    return tuple(forests(nodes - 1, nodes - 1, 0))


def forests(nodes: int, largest: int, first: int):
    """All multisets of trees with so many nodes in all; the order of trees makes each unique."""
    if nodes == 0:
        yield ()
    for n in range(min(nodes, largest), 0, -1):
        start = first if n == largest else 0
        for index, tree in enumerate(trees(n)[start:], start):
            for rest in forests(nodes - n, n, index):
                yield (tree, *rest)


@cache
def size(tree: Tree) -> int:
    return 1 + sum(map(size, tree))


@cache
def density(tree: Tree) -> int:
    return size(tree) * prod(map(density, tree))


@cache
def matrix(tableau: Tableau) -> np.ndarray:
    rows = tableau.a + tableau.extra_a
    return np.array([row + (0.0,) * (len(rows) - len(row)) for row in rows])


@cache
def elementary_weights(tableau: Tableau, tree: Tree) -> np.ndarray:
    a = matrix(tableau)
    return prod((a @ elementary_weights(tableau, t) for t in tree), start=np.ones(len(a)))


def residual(tableau: Tableau, weights, order: int, theta: float = 1.0) -> float:
    """The largest residual of the conditions of exactly this order; weights are padded."""
    weights = np.pad(weights, (0, len(matrix(tableau)) - len(weights)))
    return max(
        abs(fsum(weights * elementary_weights(tableau, t)) - theta**order / density(t))
        for t in trees(order)
    )


def interpolant_weights(tableau: Tableau, theta: float) -> np.ndarray:
    p = np.array(tableau.interpolant)
    return p @ theta ** np.arange(1, p.shape[1] + 1)


def assert_order(tableau: Tableau, weights, order: int) -> None:
    for q in range(1, order + 1):
        assert residual(tableau, weights, q) < TOL, f"order {q}"
    assert residual(tableau, weights, order + 1) > BROKEN


def test_number_of_trees():
    assert [len(trees(n)) for n in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]


def test_catalogue():
    assert set(TABLEAUS) == set(ORDERS)
    assert all(tableau.name == name for name, tableau in TABLEAUS.items())
    assert {name for name, tableau in TABLEAUS.items() if tableau.fsal} == FSAL


@every_method
def test_solution_has_exactly_its_order(name):
    tableau = TABLEAUS[name]
    assert tableau.order == ORDERS[name][0]
    assert_order(tableau, tableau.b, tableau.order)


@every_method
def test_embedded_solution_has_exactly_its_order(name):
    tableau, order = TABLEAUS[name], ORDERS[name][1]
    assert tableau.adaptive == (order is not None)
    if order is not None:
        assert_order(tableau, np.subtract(tableau.b, tableau.error), order)
        assert tableau.error_order == min(order, tableau.order) or name == "dop853"


def test_dop853_error_estimate_behaves_as_order_7():
    """The rows have orders 5 and 3, so e5² / sqrt(e5² + 0.01 e3²) is O(h^(2*6 - 4)) = O(h^8)."""
    tableau = TABLEAUS["dop853"]
    assert_order(tableau, np.subtract(tableau.b, tableau.error), 5)
    assert_order(tableau, np.subtract(tableau.b, tableau.error_low), 3)
    assert tableau.error_order + 1 == 2 * (5 + 1) - (3 + 1)
    assert tableau.error_order == DOP853.error_estimator_order


@every_method
def test_rows_sum_to_the_nodes(name):
    tableau = TABLEAUS[name]
    for row, node in zip(tableau.a + tableau.extra_a, tableau.c + tableau.extra_c, strict=True):
        assert fsum(row) == pytest.approx(node, abs=2e-14)
    assert tableau.c[0] == 0.0


@every_method
@pytest.mark.parametrize("theta", THETAS)
def test_interpolant_meets_the_continuous_conditions(name, theta):
    tableau = TABLEAUS[name]
    assert tableau.interpolant_order == ORDERS[name][2]
    weights = interpolant_weights(tableau, theta)
    for q in range(1, tableau.interpolant_order + 1):
        # Verner gives one coefficient of the extra stages to nine digits; order 7 hangs on it.
        tol = 5e-7 if (name, q) == ("vern7", 7) else DENSE_TOL
        assert residual(tableau, weights, q, theta) < tol, f"order {q}"


@every_method
def test_interpolant_has_no_higher_order(name):
    tableau = TABLEAUS[name]
    above = tableau.interpolant_order + 1
    residuals = [residual(tableau, interpolant_weights(tableau, x), above, x) for x in THETAS]
    assert max(residuals) > BROKEN


@every_method
def test_interpolant_joins_the_ends_of_the_step(name):
    tableau = TABLEAUS[name]
    p = np.array(tableau.interpolant)
    solution = np.pad(tableau.b, (0, len(tableau.extra_c)))
    np.testing.assert_allclose(interpolant_weights(tableau, 1.0), solution, rtol=0, atol=DENSE_TOL)
    np.testing.assert_array_equal(p[:, 0], np.eye(len(p))[0], "the slope at 0 is the first stage")


@pytest.mark.parametrize(
    "name, last", [("bs3", 3), ("dp5", 6), ("tsit5", 6), ("vern7", 10), ("dop853", 12)]
)
def test_interpolant_ends_with_the_slope_there(name, last):
    """The dense output has a continuous derivative: stage ``last`` is the slope at the end."""
    tableau = TABLEAUS[name]
    p = np.array(tableau.interpolant)
    slope = p @ np.arange(1, p.shape[1] + 1)
    np.testing.assert_allclose(slope, np.eye(len(p))[last], rtol=0, atol=10 * DENSE_TOL)
    solution = np.pad(tableau.b, (0, len(tableau.extra_c)))
    np.testing.assert_array_equal((tableau.a + tableau.extra_a)[last], solution[:last])
    assert (tableau.c + tableau.extra_c)[last] == 1.0


@pytest.mark.parametrize("name", ESDIRKS)
def test_esdirk_methods_end_with_the_slope_there_and_are_stable(name):
    """Damping at infinity, and none of the imaginary axis amplified."""
    tableau = ESDIRKS[name]
    p, a = np.array(tableau.interpolant), matrix(tableau)
    slope = p @ np.arange(1, p.shape[1] + 1)
    np.testing.assert_allclose(slope, np.eye(len(p))[-1], rtol=0, atol=10 * DENSE_TOL)

    def stability(z: complex) -> float:
        eye = np.eye(len(a))
        return abs(1 + z * a[-1] @ np.linalg.solve(eye - z * a, np.ones(len(a))))

    assert stability(-1e9) < 1e-6 if name != "trapezoid" else stability(-1e9) == pytest.approx(1)
    assert max(stability(1j * y) for y in np.geomspace(1e-3, 1e4, 300)) < 1 + 1e-9
    assert set(np.diag(a)[1:]) == {tableau.gamma} and not a[0].any()


@pytest.mark.parametrize("name, solver", [("bs3", RK23), ("dp5", RK45)])
def test_pairs_agree_with_scipy(name, solver):
    tableau = TABLEAUS[name]
    np.testing.assert_array_equal(matrix(tableau)[:-1, : solver.A.shape[1]], solver.A)
    np.testing.assert_array_equal(tableau.b[:-1], solver.B)
    np.testing.assert_array_equal(tableau.c[:-1], solver.C)
    np.testing.assert_allclose(tableau.error, -solver.E, rtol=0, atol=1e-16)
    np.testing.assert_allclose(tableau.interpolant, solver.P, rtol=1e-15)


def test_dop853_agrees_with_scipy():
    tableau = TABLEAUS["dop853"]
    np.testing.assert_array_equal(matrix(tableau)[:12, :12], DOP853.A)
    np.testing.assert_array_equal(matrix(tableau)[13:], DOP853.A_EXTRA)
    np.testing.assert_array_equal(tableau.c[:12], DOP853.C)
    np.testing.assert_array_equal(tableau.extra_c, DOP853.C_EXTRA)
    np.testing.assert_array_equal(tableau.error, DOP853.E5)
    np.testing.assert_allclose(tableau.error_low, DOP853.E3, rtol=0, atol=1e-16)
    solver = DOP853(lambda t, z: np.array([z[1], -np.sin(z[0])]), 0.0, [1.0, 0.5], 9.0)
    solver.step()
    dense = solver.dense_output()
    for theta in THETAS:
        increment = solver.h_previous * interpolant_weights(tableau, theta) @ solver.K_extended
        expected = dense(solver.t_old + theta * solver.h_previous)
        np.testing.assert_allclose(solver.y_old + increment, expected, rtol=1e-13)
