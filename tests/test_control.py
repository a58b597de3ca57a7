"""Controls: interpolation, gradients, missing values, and what they do to a solve."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from pynode import Control, NeuralODE, sensitivities, solve
from pynode.errors import InputError

KINDS = ["cubic", "linear", "hermite"]
NAN = math.nan
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def points() -> tuple[Tensor, Tensor]:
    ts = torch.tensor([0.0, 0.3, 1.0, 1.7, 2.2, 3.0])
    return ts, torch.randn(4, 6, 2)


def test_natural_cubic_spline_is_scipys(points):
    ts, xs = points
    control = Control(ts, xs)
    exact = CubicSpline(ts.numpy(), xs.numpy(), axis=1, bc_type="natural")
    for t in (0.0, 0.15, 0.3, 1.2, 2.9, 3.0):
        np.testing.assert_allclose(control(t), exact(t), atol=1e-12)
        np.testing.assert_allclose(control.derivative(t), exact(t, 1), atol=1e-12)


def test_linear_and_hermite(points):
    ts, xs = points
    linear = Control(ts, xs, "linear")
    torch.testing.assert_close(linear(0.65), (xs[:, 1] + xs[:, 2]) / 2)
    torch.testing.assert_close(linear.derivative(0.5), (xs[:, 2] - xs[:, 1]) / 0.7)
    hermite = Control(ts, xs, "hermite")
    for i in range(2, 6):  # the slope at a knot is that of the piece before it
        slope = (xs[:, i] - xs[:, i - 1]) / (ts[i] - ts[i - 1])
        before = hermite.derivative(float(ts[i]) - 1e-9)
        torch.testing.assert_close(before, slope, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(hermite(float(ts[i])), xs[:, i])
    # Nothing later than the knot at the end of a piece changes it.
    changed = torch.cat([xs[:, :4], 9 * xs[:, 4:]], dim=1)
    torch.testing.assert_close(Control(ts, changed, "hermite")(1.5), hermite(1.5))


@pytest.mark.parametrize("kind", KINDS)
def test_constant_outside_its_times(points, kind):
    ts, xs = points
    control = Control(ts, xs, kind)
    assert torch.equal(control(-1.0), xs[:, 0]) and torch.equal(control(3.1), xs[:, -1])
    assert not control.derivative(-1.0).any() and not control.derivative(3.1).any()
    assert control.derivative(3.0).all()  # the last time belongs to the last piece


@pytest.mark.parametrize("kind", KINDS)
def test_times_of_each_sample(kind):
    """As each sample alone; after its end a series keeps its last value."""
    ts = torch.tensor([[0, 1, 2, 3.5], [0, 0.5, NAN, NAN], [0, NAN, NAN, NAN], [0, 0.2, 0.7, NAN]])
    xs = torch.randn(4, 4, 3)
    together = Control(ts, xs, kind)
    for b, n in enumerate((4, 2, 1, 3)):
        for t in (0.0, 0.1, 0.6, 1.5, 3.6):
            if n == 1:
                assert torch.equal(together(t)[b], xs[b, 0])
                assert not together.derivative(t)[b].any()
                continue
            alone = Control(ts[b, :n], xs[b, :n], kind)
            torch.testing.assert_close(together(t)[b], alone(t))
            torch.testing.assert_close(together.derivative(t)[b], alone.derivative(t))
    assert together.knots == ()
    assert len(Control(ts, xs, "linear", tstops=True).knots) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_missing_values_lie_on_the_line_between_known_ones(kind, points):
    ts, xs = points
    holes = xs.clone()
    holes[0, 2:4, 0] = NAN
    holes[1, 0, 1] = holes[1, 5, 1] = NAN
    filled = xs.clone()
    for i in (2, 3):
        weight = (ts[i] - ts[1]) / (ts[4] - ts[1])
        filled[0, i, 0] = xs[0, 1, 0] + weight * (xs[0, 4, 0] - xs[0, 1, 0])
    filled[1, 0, 1], filled[1, 5, 1] = xs[1, 1, 1], xs[1, 4, 1]
    got, want = Control(ts, holes, kind), Control(ts, filled, kind)
    torch.testing.assert_close(got.coefficients, want.coefficients)


@pytest.mark.parametrize("kind", KINDS)
def test_differentiable_in_values_and_time(kind):
    ts = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.4, NAN]])
    xs = torch.randn(2, 3, 2)
    xs[0, 1, 0] = NAN
    known = ~xs.isnan()

    def values(x: Tensor, t: Tensor) -> Tensor:
        control = Control(ts, torch.where(known, x, NAN), kind)
        return torch.cat([control(t), control.derivative(t)])

    inputs = (xs.nan_to_num().requires_grad_(), torch.tensor(0.3, requires_grad=True))
    assert torch.autograd.gradcheck(values, inputs)
    slope = torch.func.jacfwd(Control(ts, xs, kind))(torch.tensor(0.3))
    torch.testing.assert_close(slope, Control(ts, xs, kind).derivative(0.3))


def test_numbers_and_times_of_any_shape():
    ts = torch.linspace(0, 3, 50)
    control = Control(ts, ts.sin())
    assert control(1.0).shape == ()
    times = torch.rand(2, 3) * 3
    torch.testing.assert_close(control(times), times.sin(), rtol=0, atol=1e-3)
    batch = Control(ts, torch.randn(5, 4, 50, 2))
    assert batch(times).shape == (2, 3, 5, 4, 2)
    assert "cubic, 50 times" in repr(batch)


def gradients(points: tuple[Tensor, Tensor], kind: str, **options) -> list[Tensor]:
    """Of a solve with a control in a nest of args, for values, gain and z0."""
    ts, xs = points
    inputs = [xs.clone().requires_grad_(), torch.tensor(0.7, requires_grad=True)]
    inputs.append(torch.linspace(-1, 1, 8).reshape(4, 2).requires_grad_())
    args = {"x": Control(ts, inputs[0], kind), "gain": [inputs[1]]}

    def field(t: Tensor, z: Tensor, args: dict) -> Tensor:
        return args["x"](t) - args["gain"][0] * z * args["x"].derivative(t)

    zs = NeuralODE(field, **options)(inputs[2], [0.0, 0.6, 1.2], args)
    return list(torch.autograd.grad(zs.sin().sum(), inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_every_sensitivity(points, kind):
    tight = {"solver": "dop853", "rtol": 1e-9, "atol": 1e-11}
    exact = gradients(points, kind, sensitivity="discrete", **tight)
    assert exact[0].any()
    names = [info.name for info in sensitivities() if info.name != "reversible"]  # fixed steps
    for name in names if kind == "linear" else names[KINDS.index(kind) // 2 :: 2]:
        got = gradients(points, kind, sensitivity=name, rtol=1e-7, atol=1e-9)
        for g, e in zip(got, exact, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-4)


def test_knots_of_a_linear_control_are_tstops():
    """A step ends on each, so none is rejected for a kink, and outputs are exact."""
    ts = torch.arange(11.0)
    xs = torch.tensor([0.0, 3.0, -1.0, 2.0, 5.0, 0.0, 0.5, 1.0, -4.0, 2.0, 1.0])
    control = Control(ts, xs, "linear")
    sol = solve(lambda t, z, x: x.derivative(t).expand(1), xs[:1], ts, control)
    torch.testing.assert_close(sol.zs[:, 0], xs, rtol=0, atol=1e-12)
    assert sol.stats.rejected == 0 and sol.stats.accepted >= 10
    assert len(control.knots) == 11
    assert Control(ts, xs).knots == (0.0, 10.0)
    assert Control(ts, xs, "linear", tstops=False).knots == ()


def test_a_series_that_ended_keeps_the_state():
    ts = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, NAN]])
    control = Control(ts, torch.randn(2, 3, 1), "hermite")
    zs = solve(lambda t, z, x: z * x.derivative(t), torch.ones(2, 1), [0.0, 1.0, 2.0], control).zs
    torch.testing.assert_close(zs[1, 1], zs[2, 1], rtol=1e-4, atol=0)
    assert not torch.allclose(zs[1, 0], zs[2, 0], rtol=1e-2)


@pytest.mark.parametrize(
    "ts, xs, message",
    [
        ([0.0, 1.0], torch.ones(3, 1), "shape"),
        ([0.0, 1.0, 1.0], torch.ones(3, 1), "increase"),
        ([0.0], torch.ones(1, 1), "two or more"),
        ([0.0, NAN, 1.0], torch.ones(3, 1), "NaN"),
        ([[0.0, NAN, 1.0]], torch.ones(1, 3, 1), "end of a row"),
        ([[0.0, 1.0]], torch.ones(2, 1), "shape"),
        ([0.0, 1.0], torch.ones(2, 1).long(), "floating-point"),
        ([0.0, 1.0], torch.full((2, 1), NAN), "no value at all"),
        ([0.0, 1.0], torch.tensor([[0.0], [math.inf]]), "infinity"),
    ],
)
def test_bad_data(ts, xs, message):
    with pytest.raises(InputError, match=message):
        Control(torch.tensor(ts), xs)


def test_bad_kind_and_steps_per_sample():
    control = Control([0.0, 1.0], torch.ones(2, 1))
    with pytest.raises(InputError, match="use 'joint'"):
        solve(
            lambda t, z, x: z * x(t),
            torch.ones(3, 1),
            [0.0, 1.0],
            control,
            step_control="per_sample",
        )
    with pytest.raises(InputError, match="'cubic', 'linear', 'hermite'"):
        Control([0.0, 1.0], torch.ones(2, 1), "quintic")
