"""Every sensitivity against autograd through a solve at 1e-12."""

import pytest
import torch
from torch import Tensor, nn

from pynode import NeuralODE, sensitivities, solve

SENSITIVITIES = [info.name for info in sensitivities()]
CHECKPOINTED = [
    (name, k) for name in SENSITIVITIES if name not in ("backsolve", "reversible") for k in (1, 4)
]
pytestmark = pytest.mark.usefixtures("float64")


class Driven(nn.Module):
    """Time-dependent, with parameters, args, and a parameter that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 8)
        self.outer = nn.Linear(8, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, t: Tensor, z: Tensor, args: dict) -> Tensor:
        hidden = torch.tanh(self.inner(z) + torch.sin(2 * t))
        return args["gain"] * self.outer(hidden) - args["leak"] * z


def gradients(zs: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(0.5, 1.5, zs.numel()).reshape(zs.shape)
    loss = (weights * zs).sin().sum() + (zs[1] ** 2).sum()
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


@pytest.fixture(scope="module")
def case():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    field = Driven()
    z0 = torch.randn(4, 3)
    args = {"gain": torch.tensor(1.3), "leak": torch.rand(3)}
    torch.set_default_dtype(torch.float32)
    return field, z0, args


def run(case, times: Tensor, **options):
    """Outputs' gradients for z0, times, args and parameters, in that order."""
    field, z0, args = case
    z0 = z0.clone().requires_grad_()
    times = times.clone().requires_grad_()
    args = {k: v.clone().requires_grad_() for k, v in args.items()}
    node = NeuralODE(field, **options)
    zs = node(z0, times, args)
    inputs = [z0, times, *args.values(), *field.parameters()]
    return gradients(zs, inputs), node.stats


FORWARDS = [0.0, 0.3, 0.9, 1.4, 2.0]
BACKWARDS = [1.0, 0.8, 0.1, -0.7]


@pytest.fixture(scope="module")
def reference(case):
    torch.set_default_dtype(torch.float64)
    tight = {"solver": "dop853", "sensitivity": "discrete", "rtol": 1e-12, "atol": 1e-13}
    found = {
        direction: run(case, torch.tensor(times), **tight)[0]
        for direction, times in (("forwards", FORWARDS), ("backwards", BACKWARDS))
    }
    torch.set_default_dtype(torch.float32)
    return found


@pytest.mark.parametrize("direction", ["forwards", "backwards"])
@pytest.mark.parametrize("solver", ["tsit5", "dp5", "vern7", "dop853"])
@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_gradients_hold_to_1e_6(case, reference, sensitivity, solver, direction):
    times = torch.tensor(FORWARDS if direction == "forwards" else BACKWARDS)
    grads, stats = run(case, times, solver=solver, sensitivity=sensitivity, rtol=1e-9, atol=1e-11)
    for got, want in zip(grads, reference[direction], strict=True):
        assert relative(got, want) < 1e-6 or (not want.any() and not got.any())
    assert stats.vjp > 0
    assert (stats.nfe_backward == 0) == (sensitivity == "discrete" and stats.accepted_backward == 0)


@pytest.mark.parametrize("solver", ["tsit5", "vern7"])
@pytest.mark.parametrize("sensitivity, keep", CHECKPOINTED)
def test_checkpoints_change_nothing(case, sensitivity, keep, solver):
    times = torch.tensor(FORWARDS)
    options = {"solver": solver, "sensitivity": sensitivity, "rtol": 1e-7, "atol": 1e-9}
    whole, _ = run(case, times, **options)
    rebuilt, stats = run(case, times, checkpoints=keep, **options)
    for got, want in zip(rebuilt, whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert stats.nfe_backward > 0


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4", "bs3"])
def test_discrete_is_the_derivative_of_fixed_steps(case, solver):
    """Finite differences of what was computed, not of the true solution."""
    field, z0, args = case
    z0 = z0.double()
    times = torch.tensor([0.0, 0.35, 1.0])
    node = NeuralODE(field, solver=solver, sensitivity="discrete", adaptive=False, dt=0.1)

    def loss(x: Tensor) -> Tensor:
        return node(x, times, args).sin().sum()

    assert torch.autograd.gradcheck(loss, z0.clone().requires_grad_())


def stiff_tracking(lam: float):
    """y1 follows cos(θ1 t) with rate λ: stable forwards, explosive backwards."""

    def field(t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        y1, y2 = y
        return torch.stack(
            [-lam * (y1 - torch.cos(theta[0] * t)), theta[1] * torch.tanh(y1) + 0 * y2]
        )

    return field


@pytest.mark.parametrize("sensitivity", ["discrete", "interpolating", "gauss", "quadrature"])
def test_backsolve_fails_where_the_state_cannot_be_solved_backwards(sensitivity):
    """λ = 40: backsolve's gradient is off by more than 10 %, the others hold 1e-4."""

    def gradient(sensitivity: str, **options) -> Tensor:
        theta = torch.tensor([3.0, 1.0], requires_grad=True)
        y0 = torch.tensor([2.0, 0.0])
        zs = NeuralODE(stiff_tracking(40.0), sensitivity=sensitivity, **options)(
            y0, torch.tensor([0.0, 1.0]), theta
        )
        return torch.autograd.grad((zs[-1] ** 2).sum(), theta)[0]

    exact = gradient("discrete", rtol=1e-11, atol=1e-13)
    usual = {"rtol": 1e-6, "atol": 1e-8}
    assert relative(gradient(sensitivity, **usual), exact) < 1e-4
    assert relative(gradient("backsolve", **usual), exact) > 0.1


@pytest.mark.parametrize(
    "sensitivity", [name for name in SENSITIVITIES if name not in ("discrete", "reversible")]
)
def test_own_options_of_the_adjoint(case, sensitivity):
    """Looser adjoint tolerances and the seminorm take fewer steps; a tighter one more."""
    times = torch.tensor([0.0, 2.0])
    options = {"sensitivity": sensitivity, "rtol": 1e-9, "atol": 1e-11}
    _, base = run(case, times, **options)
    _, loose = run(case, times, adjoint_rtol=1e-4, adjoint_atol=1e-6, **options)
    _, higher = run(case, times, adjoint_solver="vern7", **options)
    assert loose.accepted_backward < base.accepted_backward
    assert higher.accepted_backward < base.accepted_backward
    if sensitivity in ("backsolve", "interpolating"):
        _, semi = run(case, times, adjoint_seminorm=True, **options)
        assert semi.accepted_backward <= base.accepted_backward
        grads, _ = run(case, times, adjoint_seminorm=True, **options)
        exact, _ = run(case, times, **options)
        for got, want in zip(grads, exact, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_complex_states_and_parameters(sensitivity):
    """Schrödinger-like: gradients follow torch's convention for complex numbers."""
    torch.manual_seed(3)
    matrix = torch.randn(3, 3, dtype=torch.complex128)
    generator = (-1j * (matrix + matrix.mH) / 2).requires_grad_()
    z0 = torch.randn(2, 3, dtype=torch.complex128, requires_grad=True)
    times = torch.tensor([0.0, 0.5, 1.0])
    zs = solve(
        lambda t, z: z @ generator.T, z0, times, sensitivity=sensitivity, rtol=1e-10, atol=1e-12
    ).zs
    exact = torch.stack([z0 @ torch.linalg.matrix_exp(generator * s).T for s in times])
    torch.testing.assert_close(zs, exact, rtol=1e-8, atol=1e-8)

    def loss(z: Tensor) -> Tensor:
        return (z.real**3).sum() + (z * (1 + 2j)).imag.sin().sum()

    for got, want in zip(
        torch.autograd.grad(loss(zs), [z0, generator]),
        torch.autograd.grad(loss(exact), [z0, generator]),
        strict=True,
    ):
        assert relative(got, want) < 1e-6


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_initial_time_apart_from_the_outputs(sensitivity):
    """t0 given by itself: its gradient, and outputs that do not hold z0."""
    t0 = torch.tensor(0.2, requires_grad=True)
    times = torch.tensor([0.2, 0.5, 1.1], requires_grad=True)
    rate = torch.tensor(-0.7, requires_grad=True)
    z0 = torch.tensor([1.0, 2.0], requires_grad=True)
    node = NeuralODE(lambda t, z, k: k * t * z, sensitivity=sensitivity, rtol=1e-10, atol=1e-12)
    zs = node(z0, times, rate, t0=t0)
    exact = z0 * torch.exp(rate * (times**2 - t0**2) / 2).unsqueeze(1)
    inputs = [t0, times, rate, z0]
    for got, want in zip(gradients(zs, inputs), gradients(exact, inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sensitivity", ["gauss", "quadrature", "interpolating", "discrete"])
def test_a_spike_that_only_the_state_feels(sensitivity):
    """a' = a is smooth: the adjoint's own steps say nothing of where a·∂f/∂θ is large."""
    theta = torch.tensor(0.8, requires_grad=True)

    def field(t: Tensor, z: Tensor, theta: Tensor) -> Tensor:
        return -z + theta * torch.exp(-(((t - 1.234) / 0.01) ** 2))

    options = {"rtol": 1e-6, "atol": 1e-8, "dt_max": 0.1}
    node = NeuralODE(field, sensitivity=sensitivity, **options)
    (grad,) = torch.autograd.grad(node(torch.zeros(1), [0.0, 4.0], theta)[-1, 0], theta)
    # ∫ exp(-(4-t)) exp(-((t-1.234)/0.01)²) dt
    exact = 0.01 * torch.pi**0.5 * torch.exp(torch.tensor(-(4 - 1.234) + 0.01**2 / 4))
    torch.testing.assert_close(grad, exact, rtol=1e-4, atol=0)
