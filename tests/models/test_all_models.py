"""What every model owes, whatever it does inside."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from pynode import NeuralODE
from pynode.data import spirals
from pynode.data.series import IrregularSeries
from pynode.errors import InputError
from pynode.models import MODELS, SeriesModel, build
from pynode.models.variational import VariationalModel

VARIANTS: dict[str, tuple[str, dict]] = {name: (name, {}) for name in MODELS}
VARIANTS["latent_ode(ode_rnn)"] = ("latent_ode", {"encoder": "ode_rnn"})
ALL = pytest.mark.parametrize("variant", list(VARIANTS))
TRAINABLE = pytest.mark.parametrize(
    "variant", [k for k, (n, _) in VARIANTS.items() if MODELS[n].trainable]
)


def variational(variant: str) -> bool:
    """Its latent state is random."""
    return issubclass(MODELS[VARIANTS[variant][0]], VariationalModel)


QUERIES = torch.tensor([0.0, 0.03, 0.4, 0.40001, 1.3, 2.0, 4.0])


def make(variant: str, coordinates: int = 2, tight: bool = True, **more: object) -> SeriesModel:
    """A model; ``tight`` solves its ODEs so well that the step control, which a batch shares,
    does not show."""
    name, hyper = VARIANTS[variant]
    torch.manual_seed(0)
    tolerances = {"rtol": 1e-6, "atol": 1e-8} if tight and "ode" in name else {}
    model = build(name, coordinates, **{**hyper, **tolerances, **more})
    with torch.no_grad():  # away from special values such as a constant of exactly 0
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def loss(model: SeriesModel, series: IrregularSeries, seed: int = 7) -> Tensor:
    return model.loss(series, generator=torch.Generator().manual_seed(seed)).total


@ALL
def test_shapes_inside_and_beyond(variant: str, ragged_series: IrregularSeries) -> None:
    model = make(variant)
    p = model.predict(ragged_series, QUERIES)
    assert p.mean.shape == (6, 7, 2) and p.mean.isfinite().all()
    assert (p.std is None) == (not model.trainable)
    if p.std is not None:
        assert p.std.shape == (6, 7, 2) and (p.std > 0).all()
    assert torch.allclose(model.predict(ragged_series, QUERIES.repeat(6, 1)).mean, p.mean)


@ALL
def test_each_series_may_have_its_own_queries(
    variant: str, ragged_series: IrregularSeries, float64: None
) -> None:
    model, series = make(variant), ragged_series.to(dtype=torch.float64)
    at = torch.full((6, 5), math.nan)
    for b in range(6):
        at[b, : b % 5 + 1] = torch.linspace(0.1 * b, 2.0 + b, b % 5 + 1)
    together = model.predict(series, at).mean
    for b in range(6):
        n = b % 5 + 1
        alone = model.predict(series[b], at[b, :n]).mean
        assert torch.allclose(together[b, :n], alone[0], atol=1e-6)
        assert together[b, n:].isnan().all()


@ALL
def test_a_row_without_queries_is_all_nan(variant: str, ragged_series: IrregularSeries) -> None:
    at = QUERIES.repeat(6, 1)
    at[2] = math.nan
    mean = make(variant).predict(ragged_series, at).mean
    assert mean[2].isnan().all() and mean[[0, 1, 3, 4, 5]].isfinite().all()


@ALL
def test_permuting_the_batch_permutes_the_predictions(
    variant: str, ragged_series: IrregularSeries, float64: None
) -> None:
    model, series = make(variant), ragged_series.to(dtype=torch.float64)
    order = [3, 0, 5, 1, 4, 2]
    mean = model.predict(series, QUERIES).mean
    assert torch.allclose(model.predict(series[order], QUERIES).mean, mean[order], atol=1e-8)


@ALL
def test_padding_changes_nothing(
    variant: str, ragged_series: IrregularSeries, float64: None
) -> None:
    model, series = make(variant, tight=False), ragged_series.to(dtype=torch.float64)
    wide = series.padded(12)
    mean = model.predict(series, QUERIES).mean
    assert torch.allclose(model.predict(wide, QUERIES).mean, mean, atol=1e-12)
    if model.trainable:
        assert torch.allclose(loss(model, wide), loss(model, series), atol=1e-12)


@ALL
def test_what_is_missing_cannot_be_seen(variant: str, ragged_series: IrregularSeries) -> None:
    """Whatever stands in the holes of the values given, the container and the models ignore it."""
    s = ragged_series
    junk = torch.where(s.mask, s.values, torch.full_like(s.values, 1e3))
    model = make(variant)
    seen = model.predict(IrregularSeries(s.times, junk, s.mask), QUERIES).mean
    assert torch.equal(seen, model.predict(s, QUERIES).mean)


@TRAINABLE
def test_what_is_observed_is_seen(variant: str, ragged_series: IrregularSeries) -> None:
    """Every observed value, and every time but for ``rnn``, changes the extrapolation."""
    model = make(variant)
    t, x = ragged_series[1].times, ragged_series[1].values.clone().requires_grad_()
    t = t.clone()
    far = torch.tensor([6.0])
    mask = torch.ones_like(ragged_series[1].mask)
    mean = model.predict(IrregularSeries(t, x, mask), far).mean
    (gradient,) = torch.autograd.grad(mean.sum(), x)
    assert (gradient != 0).all()
    late = t + torch.linspace(0.01, 0.1, t.shape[1])
    moved = model.predict(IrregularSeries(late, x, mask), far).mean
    assert torch.equal(moved, mean) == (variant == "rnn")


@TRAINABLE
def test_loss_and_gradients_are_finite(variant: str, ragged_series: IrregularSeries) -> None:
    model = make(variant, tight=False)
    terms = model.loss(ragged_series)
    terms.total.backward()
    assert terms.total.ndim == 0 and terms.total.isfinite()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.any(), name
    assert set(terms.parts) == ({"nll", "kl"} if variational(variant) else {"nll"})
    assert all(isinstance(x, float) for x in terms.parts.values())


@TRAINABLE
@pytest.mark.parametrize("first", [0.0, 0.4])
def test_a_single_observation_is_enough(variant: str, first: float) -> None:
    series = IrregularSeries.from_ragged(
        [torch.tensor([first])] * 2, [torch.tensor([[0.3, math.nan]]), torch.tensor([[0.1, 0.2]])]
    )
    model = make(variant, tight=False)
    loss(model, series).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)
    assert model.predict(series, torch.tensor([first])).mean.isfinite().all()
    assert model.predict(series, torch.tensor([0.0, 1.0])).mean.isfinite().all()


@TRAINABLE
def test_loss_is_a_mean_over_observed_values(
    variant: str, ragged_series: IrregularSeries, float64: None
) -> None:
    """The loss of a batch is the mean of the series' own, weighted by their numbers of values."""
    model, series = make(variant), ragged_series.to(dtype=torch.float64)
    if variational(variant):  # without its noise, which the series of a batch draw one by one
        last = model.encoder.out
        torch.nn.init.zeros_(last.weight[4:])
        torch.nn.init.constant_(last.bias[4:], -30.0)
    whole = loss(model, series)
    parts = sum(loss(model, one) * one.n_observed for one in series)
    assert torch.allclose(whole, parts / series.n_observed, atol=1e-6)


@TRAINABLE
def test_a_generator_decides_all_noise(variant: str, ragged_series: IrregularSeries) -> None:
    model = make(variant)
    assert torch.equal(loss(model, ragged_series, 1), loss(model, ragged_series, 1))
    noisy = not torch.equal(loss(model, ragged_series, 1), loss(model, ragged_series, 2))
    assert noisy == (variational(variant))
    state = torch.get_rng_state()
    loss(model, ragged_series)
    model.predict(ragged_series, QUERIES)
    assert torch.equal(state, torch.get_rng_state())


@TRAINABLE
def test_state_dict_pickle_and_copy(variant: str, ragged_series: IrregularSeries) -> None:
    model, other = make(variant), make(variant)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    mean = model.predict(ragged_series, QUERIES).mean
    assert not torch.allclose(other.predict(ragged_series, QUERIES).mean, mean)
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.predict(ragged_series, QUERIES).mean, mean)


@ALL
def test_counts(variant: str, ragged_series: IrregularSeries) -> None:
    model = make(variant, tight=False)
    assert model.n_parameters == sum(p.numel() for p in model.parameters())
    assert model.nfe == (0, 0)
    if not model.trainable:
        assert model.n_parameters == 0
        return
    total = loss(model, ragged_series)
    forward, backward = model.nfe
    assert (forward > 0) == ("ode" in variant) and backward == 0
    total.backward()
    assert model.nfe[0] == forward and (model.nfe[1] > 0) == ("ode" in variant)
    loss(model, ragged_series)
    assert model.nfe == (forward, 0)  # of the last call only


@ALL
def test_any_number_of_coordinates_and_double(variant: str, float64: None) -> None:
    series = IrregularSeries.from_ragged(
        [torch.tensor([0.0, 0.5, 0.7])], [torch.tensor([[1.0], [0.5], [0.2]])]
    )
    model = make(variant, coordinates=1)
    mean = model.predict(series, QUERIES).mean
    assert mean.shape == (1, 7, 1) and mean.dtype == torch.float64
    if model.trainable:
        assert loss(model, series).dtype == torch.float64


@ALL
def test_bad_input(variant: str, ragged_series: IrregularSeries) -> None:
    model = make(variant)
    for at, message in [
        (torch.tensor([1.0, 0.5]), "increase"),
        (torch.tensor([0.5, math.inf]), "infinity"),
        (torch.tensor([math.nan, 0.5]), "NaN"),
        (torch.ones(5, 3), "B=6"),
        (torch.tensor(1.0), "give"),
    ]:
        with pytest.raises(InputError, match=message):
            model.predict(ragged_series, at)
    with pytest.raises(InputError, match="built for 3"):
        make(variant, coordinates=3).predict(ragged_series, QUERIES)
    with pytest.raises(InputError, match="no series"):
        model.predict(ragged_series[:0], QUERIES)
    if not model.trainable:
        with pytest.raises(InputError, match="nothing to train"):
            model.loss(ragged_series)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "ode" in v])
def test_a_model_can_be_built_for_the_julia_engine(variant: str) -> None:
    """Which has other sensitivities; Julia is not started by that."""
    name, hyper = VARIANTS[variant]
    model = build(name, 2, engine="julia", **hyper)
    nodes = [m for m in model.modules() if isinstance(m, NeuralODE)]
    assert nodes and {n.options.engine for n in nodes} == {"julia"}


def test_build_says_what_is_wrong() -> None:
    with pytest.raises(InputError, match="no model 'lstm'; there are rnn,"):
        build("lstm", 2)
    with pytest.raises(InputError, match="rnn has no option time_scale; it has hidden, sigma"):
        build("rnn", 2, time_scale=2.0)
    with pytest.raises(InputError, match="last_value has no option hidden"):
        build("last_value", 2, hidden=3)
    with pytest.raises(InputError, match="unknown option colour"):
        build("latent_ode", 2, colour="red")
    with pytest.raises(InputError, match="engine"):
        build("ode_rnn", 2, engine="abacus")
    for bad in (
        {"hidden": 0},
        {"time_scale": -1.0},
        {"sigma": 0.0},
        {"sigma": 0.1, "sigma_min": 0.1},
        {"encoder": "cnn"},
        {"field_activation": "sin"},
        {"t0": math.nan},
        {"field_layers": 0},
    ):
        with pytest.raises(InputError):
            build("latent_ode", 2, **bad)
    with pytest.raises(InputError, match="coordinates=0"):
        build("rnn", 0)


@pytest.mark.parametrize("variant", ["ode_rnn", "latent_ode", "latent_ode(ode_rnn)"])
def test_solver_options_reach_the_ode(variant: str, ragged_series: IrregularSeries) -> None:
    nodes = [
        m
        for m in make(variant, solver="dp5", rtol=1e-5, atol=1e-6, max_steps=77).modules()
        if hasattr(m, "options")
    ]
    assert nodes
    for node in nodes:
        o = node.options
        assert (o.rtol, o.atol, o.max_steps, o.sensitivity) == (1e-5, 1e-6, 77, "discrete")
    assert nodes[-1].options.solver == "dp5"
    adjoint = make(variant, tight=False, sensitivity="interpolating")
    loss(adjoint, ragged_series).backward()
    assert adjoint.nfe[1] > 0


@TRAINABLE
@pytest.mark.slow
def test_every_model_learns(variant: str) -> None:
    learns(variant, steps=150, least=0.6)


@pytest.mark.parametrize("variant", ["latent_ode", "rnn_dt"])
def test_model_learns(variant: str) -> None:
    learns(variant, steps=60, least=0.4)


def learns(variant: str, steps: int, least: float) -> None:
    """Adam lowers the loss on 32 small series by ``least`` nats a value, and the fit's error."""
    task = spirals(n_series=32, observed=10, missing=0.2, seed=1)
    model = make(variant, tight=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        total = model.loss(task.observed, kl_weight=0.1, generator=generator).total
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert sum(losses[-5:]) / 5 < losses[0] - least
    assert losses[-1] < 0.9 * losses[steps // 3] or losses[-1] < 0.0
