"""Continuous normalizing flow: a density carried by an ODE."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import InputError
from pynode.models.base import LossTerms, require_positive, sensitivity_for
from pynode.models.flows import Flow, flat_points, standard_normal_log_prob
from pynode.neural_ode import NeuralODE
from pynode.solution import Statistics

TRACES = ("exact", "hutchinson")
NOISES = ("rademacher", "gaussian")


@dataclass(frozen=True)
class FlowRegularisation:
    """What training adds to the negative log-likelihood so that the ODE stays easy to solve.

    Attributes:
        kinetic: weight of ∫‖f‖² dt, and
        jacobian: weight of ∫‖∂f/∂z‖²_F dt, estimated as ‖εᵀ∂f/∂z‖² where the trace is: Finlay et
            al. 2020, How to train your neural ODE (RNODE; 0.01 each).
        taylor: weight of ∫‖dᴷz/dtᴷ‖² dt, and
        taylor_order: its K, 2 or more: Kelly et al. 2020, Learning differential equations that are
            easy to solve (TayNODE).
        steer: b: in training the ODE ends at a random time, uniform within b of ``duration``:
            Ghosh et al. 2020, STEER.
    """

    kinetic: float = 0.0
    jacobian: float = 0.0
    taylor: float = 0.0
    taylor_order: int = 2
    steer: float = 0.0

    def __post_init__(self) -> None:
        for name in ("kinetic", "jacobian", "taylor", "steer"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)!r}: a number from 0 on is needed")
        if self.taylor_order < 2:
            raise InputError(f"taylor_order={self.taylor_order}: 2 or more; `kinetic` is order 1")

    @property
    def integrated(self) -> tuple[str, ...]:
        """The penalties that are integrals along the path."""
        return tuple(n for n in ("kinetic", "jacobian", "taylor") if getattr(self, n) > 0)


class ConcatSquash(nn.Module):
    """A layer that time gates and shifts: (Wx + b) · σ(w_g t + b_g) + w_s t (FFJORD's code)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(1, outputs)
        self.shift = nn.Linear(1, outputs, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.linear(x) * torch.sigmoid(self.gate(t)) + self.shift(t)


class ConcatSquashField(nn.Module):
    """f(t, z): :class:`ConcatSquash` layers with tanh between them.

    Args:
        width: D, of z (B, D).
        hidden: units of each hidden layer.
    """

    def __init__(self, width: int, hidden: tuple[int, ...] = (64, 64, 64)) -> None:
        super().__init__()
        require_positive(width=width, **{f"hidden[{i}]": n for i, n in enumerate(hidden)})
        sizes = (width, *hidden, width)
        self.layers = nn.ModuleList(itertools.starmap(ConcatSquash, itertools.pairwise(sizes)))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        t = t.to(z).reshape(1)
        for i, layer in enumerate(self.layers):
            z = layer(t, z if i == 0 else torch.tanh(z))
        return z


class CNF(Flow):
    """A density on R^D: a standard normal at t = 0, carried by dz/dt = f(t, z) to t = ``duration``.

    log p(z(T)) = log N(z(0)) − ∫₀ᵀ tr ∂f/∂z dt, the instantaneous change of variables (Chen,
    Rubanova, Bettencourt, Duvenaud 2018, theorem 1). The trace takes D vector-Jacobian products,
    or one with Hutchinson's estimate εᵀ(∂f/∂z)ε, in which ε is drawn once for each point and solve
    (Grathwohl et al. 2019, FFJORD, section 3.1). The same solve run the other way is the inverse.

    As a ``torch.distributions`` distribution it has :meth:`log_prob`, :meth:`sample`,
    :meth:`rsample`, ``event_shape`` and ``batch_shape``.

    Args:
        features: D.
        hidden: units of the hidden layers of a :class:`ConcatSquashField`, where no field is given.
        field: f(t, z) for z (B, D), a module, each row by itself; twice differentiable.
        duration: T.
        trace: ``"exact"`` or ``"hutchinson"``: of :meth:`loss`. :meth:`log_prob` is exact unless
            it is asked for an estimate.
        noise: of ε: ``"rademacher"`` (±1) or ``"gaussian"``.
        regularisation: what :meth:`loss` adds.
        solver, rtol, atol, options: of :class:`pynode.NeuralODE`; sensitivity is ``"discrete"``
            by default.

    Attributes:
        regularisation: as given; it may be replaced at any time.
        field: f.
        node: the :class:`pynode.NeuralODE` that carries points without their densities.

    Raises:
        InputError: an option has no meaning.

    Example:
        >>> flow = CNF(2)
        >>> flow.log_prob(flow.sample((100,))).shape
        torch.Size([100])
    """

    def __init__(
        self,
        features: int,
        *,
        hidden: tuple[int, ...] = (64, 64, 64),
        field: nn.Module | None = None,
        duration: float = 0.5,
        trace: str = "exact",
        noise: str = "rademacher",
        regularisation: FlowRegularisation | None = None,
        solver: str = "tsit5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        **options: Any,
    ) -> None:
        super().__init__(features)
        require_positive(duration=duration)
        _one_of("trace", trace, TRACES)
        _one_of("noise", noise, NOISES)
        self.duration, self.trace, self.noise = duration, trace, noise
        self.regularisation = regularisation or FlowRegularisation()
        if self.regularisation.steer >= duration:
            raise InputError(
                f"steer={self.regularisation.steer}: must be below duration={duration}, for the "
                "ODE may end that much earlier"
            )
        usual = sensitivity_for(options.get("engine", "torch"), solver)
        options = {"sensitivity": usual, **options}
        options |= {"solver": solver, "rtol": rtol, "atol": atol}
        self.field = field or ConcatSquashField(features, tuple(hidden))
        self.node = NeuralODE(self.field, **options)
        self._with_trace = NeuralODE(_WithTrace(self.field), **options)
        self._stats = Statistics()

    # -- densities ------------------------------------------------------------------------------

    def log_prob(
        self,
        x: Tensor,
        *,
        trace: str = "exact",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x), (...) for x (..., D).

        Args:
            trace: ``"hutchinson"`` gives an unbiased estimate.
            generator: of ε; default: torch's global one.

        Raises:
            InputError: the last dimension of x is not D, or the trace is unknown.
            SolveError: the ODE could not be solved.
        """
        points = flat_points(x, self.features)
        z, log_det = self.to_base(points, trace=trace, generator=generator)
        return (standard_normal_log_prob(z) + log_det).reshape(x.shape[:-1])

    def to_base(
        self,
        x: Tensor,
        *,
        trace: str = "exact",
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """z (B, D) at t = 0 for points x (B, D) at t = T, and log |det ∂z/∂x| (B,)."""
        _one_of("trace", trace, TRACES)
        epsilon = self._epsilon(x, generator) if trace == "hutchinson" else None
        z, log_det, _ = self._backwards(x, self.duration, epsilon, ())
        return z, log_det

    def to_data(self, z: Tensor) -> Tensor:
        """x (B, D) at t = T for points z (B, D) at t = 0: the inverse of :meth:`to_base`."""
        return self.path(z, torch.tensor([0.0, self.duration]))[-1]

    def path(self, z: Tensor, times: Tensor) -> Tensor:
        """(T, B, D): where points z (B, D), at the first of the times, are at all of them.

        Times may run either way between 0 and ``duration``.
        """
        states = self.node(flat_points(z, self.features), times)
        self._stats = self.node.stats
        return states

    def loss(self, x: Tensor, *, generator: torch.Generator | None = None) -> LossTerms:
        """What training minimises: −log p(x), a mean over points x (..., D), and penalties.

        Returns:
            ``parts`` are ``nll``, as far as the trace is exact, and the integrals that have a
            weight, each a mean over points, before weights.
        """
        points = flat_points(x, self.features)
        r = self.regularisation
        epsilon = self._epsilon(points, generator) if self.trace == "hutchinson" else None
        end = self.duration
        if r.steer:
            draw = torch.rand((), generator=generator, device=points.device)
            end += r.steer * (2 * draw.item() - 1)
        z, log_det, penalties = self._backwards(points, end, epsilon, r.integrated, r.taylor_order)
        nll = -(standard_normal_log_prob(z) + log_det).mean()
        total, parts = nll, {"nll": nll.item()}
        for name, value in zip(r.integrated, penalties.mean(0), strict=True):
            total = total + getattr(r, name) * value
            parts[name] = value.item()
        return LossTerms(total, parts)

    # -- as a distribution ----------------------------------------------------------------------

    @property
    def event_shape(self) -> torch.Size:
        """(D,)."""
        return torch.Size([self.features])

    @property
    def batch_shape(self) -> torch.Size:
        """(): one distribution."""
        return torch.Size()

    def rsample(
        self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws (*sample_shape, D), differentiable in the field's parameters."""
        p = next(self.parameters())
        shape = (*sample_shape, self.features)
        z = torch.randn(shape, generator=generator, device=p.device, dtype=p.dtype)
        return self.to_data(z.reshape(-1, self.features)).reshape(shape)

    @torch.no_grad()
    def sample(
        self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws (*sample_shape, D), without gradients."""
        return self.rsample(sample_shape, generator=generator)

    @property
    def nfe(self) -> int:
        """Evaluations of the field in the last call, without those of its derivatives."""
        return self._stats.nfe

    # -- inside ---------------------------------------------------------------------------------

    def _backwards(
        self,
        x: Tensor,
        end: float,
        epsilon: Tensor | None,
        penalties: tuple[str, ...],
        taylor_order: int = 2,
    ) -> tuple[Tensor, Tensor, Tensor]:
        state: tuple[Tensor, ...] = (x, x.new_zeros(len(x)))
        if penalties:
            state += (x.new_zeros(len(x), len(penalties)),)
        times = torch.tensor([end, 0.0], dtype=torch.float64)
        ends = self._with_trace(state, times, args=(epsilon, penalties, taylor_order))
        self._stats = self._with_trace.stats
        z, trace = ends[0][-1], ends[1][-1]
        # d log p/dt = −tr, so from T down to 0 the integral of the trace counts as it stands.
        # Penalties are integrals of something positive, run backwards.
        return z, trace, -ends[2][-1] if penalties else x.new_zeros(len(x), 0)

    def _epsilon(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.noise == "gaussian":
            return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        bits = torch.randint(2, x.shape, generator=generator, device=x.device)
        return 2 * bits.to(x.dtype) - 1


class _WithTrace(nn.Module):
    """The field of (z, log-density, penalties), by vector-Jacobian products of f."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(
        self,
        t: Tensor,
        state: tuple[Tensor, ...],
        args: tuple[Tensor | None, tuple[str, ...], int],
    ) -> tuple[Tensor, ...]:
        epsilon, penalties, order = args
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            z = state[0] if keep and state[0].requires_grad else state[0].detach().requires_grad_()
            time = t.detach().requires_grad_() if "taylor" in penalties else t
            f = self.field(time, z)
            if epsilon is None:
                rows = [_vjp(f, z, _unit(f, d), keep or bool(penalties)) for d in range(f.shape[1])]
                trace = torch.stack([row[:, d] for d, row in enumerate(rows)]).sum(0)
            else:
                rows = [_vjp(f, z, epsilon, keep or bool(penalties))]
                trace = (rows[0] * epsilon).sum(1)
            found = {}
            if "kinetic" in penalties:
                found["kinetic"] = f.square().sum(1)
            if "jacobian" in penalties:
                found["jacobian"] = torch.stack([row.square().sum(1) for row in rows]).sum(0)
            if "taylor" in penalties:
                derivative = f
                for _ in range(order - 1):
                    derivative = _along(derivative, time, z, f)
                found["taylor"] = derivative.square().sum(1)
        out = [f, trace]
        if penalties:
            out.append(torch.stack([found[name] for name in penalties], dim=1))
        return tuple(out) if keep else tuple(x.detach() for x in out)


def _unit(f: Tensor, d: int) -> Tensor:
    unit = torch.zeros_like(f)
    unit[:, d] = 1.0
    return unit


def _vjp(f: Tensor, z: Tensor, v: Tensor, keep: bool) -> Tensor:
    """vᵀ ∂f/∂z, row by row; zero where f does not depend on z."""
    (row,) = torch.autograd.grad(
        f, z, v, create_graph=keep, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return row


def _along(value: Tensor, t: Tensor, z: Tensor, f: Tensor) -> Tensor:
    """The total derivative of value(t, z) along dz/dt = f: a vector-Jacobian product is linear in
    its vector v, so its own derivative with respect to v is the Jacobian-vector product."""
    v = torch.zeros_like(value, requires_grad=True)
    with_t, with_z = torch.autograd.grad(
        value, (t, z), v, create_graph=True, allow_unused=True, materialize_grads=True
    )
    (derivative,) = torch.autograd.grad(
        with_t.sum() + (with_z * f).sum(), v, create_graph=True, materialize_grads=True
    )
    return derivative


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")
