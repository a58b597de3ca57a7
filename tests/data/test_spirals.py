"""The spirals are what their docstring says."""

import math

import pytest
import torch
from torch import Tensor

from pynode.data import ForecastTask, spirals
from pynode.errors import InputError

B = 0.3
STEP = 6 * math.pi / 499


@pytest.fixture(scope="module")
def task() -> ForecastTask:
    return spirals(n_series=60, observed=25, noise=0.0, seed=5)


def polar(task: ForecastTask) -> tuple[Tensor, Tensor, Tensor]:
    """Which series obey the clockwise law, and radius and angle about the centre of each."""
    x = task.clean.values.double() * 5
    centre = torch.tensor([5.0, 0.0]).double()
    there = x.reshape(-1, 1, 200, 2) + torch.stack([centre, -centre]).reshape(1, 2, 1, 2)
    r = there.norm(dim=-1)  # (n, [clockwise, counter-clockwise], 200)
    angle = torch.atan2(there[..., 1], there[..., 0])
    turned = angle.diff(dim=-1).remainder(2 * math.pi)
    turned = torch.where(turned > math.pi, turned - 2 * math.pi, turned)
    clockwise = (turned[:, 0] + STEP).abs().amax(dim=-1) < 1e-3
    return clockwise, r, turned


def test_radius_law_and_direction(task: ForecastTask) -> None:
    clockwise, r, turned = polar(task)
    assert clockwise.sum() == 30  # exactly half
    # r = 50 b/θ with θ falling by STEP a point, so 50 b/r falls by STEP; r = b θ rises by b STEP
    inverse = (50 * B / r[clockwise, 0]).diff(dim=-1)
    assert torch.allclose(inverse, torch.full_like(inverse, -STEP), atol=1e-3)
    growth = r[~clockwise, 1].diff(dim=-1) / B
    assert torch.allclose(growth, torch.full_like(growth, STEP), atol=1e-3)
    assert torch.allclose(turned[~clockwise, 1], torch.full((30, 199), STEP).double(), atol=1e-3)


def test_the_angle_belongs_to_the_radius(task: ForecastTask) -> None:
    clockwise, r, _ = polar(task)
    x = task.clean.values.double() * 5
    theta = 50 * B / r[clockwise, 0]
    expected = torch.stack([theta.cos(), theta.sin()], -1) * r[clockwise, 0, :, None]
    expected[..., 0] -= 5
    assert torch.allclose(x[clockwise], expected, atol=1e-4)
    theta = r[~clockwise, 1] / B
    expected = torch.stack([theta.cos(), theta.sin()], -1) * r[~clockwise, 1, :, None]
    expected[..., 0] += 5
    assert torch.allclose(x[~clockwise], expected, atol=1e-4)


def test_starts_are_in_their_range() -> None:
    task = spirals(n_series=2000, observed=1, noise=0.0)
    clockwise, r, _ = polar(task)
    t0 = torch.where(clockwise, 6 * math.pi + 1 - 50 * B / r[:, 0, 0], r[:, 1, 0] / B)
    start = (t0 / STEP).round()
    assert start.min() >= 50 and start.max() <= 249
    assert len(start.unique()) == 200


def test_window_and_what_lies_beyond(task: ForecastTask) -> None:
    clean = task.clean
    assert clean.times.shape == (60, 200) and clean.mask.all()
    assert (clean.times[:, 0] == 0).all()
    assert torch.allclose(clean.times.diff(dim=1), torch.tensor(STEP), atol=1e-5)
    assert ((clean.times <= task.window).sum(dim=1) == 100).all()
    assert ((clean.times > task.window).sum(dim=1) == 100).all()
    assert task.observed.times.max() <= task.window


def test_observations_are_points_of_the_window(task: ForecastTask) -> None:
    assert (task.observed.lengths == 25).all()
    at = torch.searchsorted(task.clean.times[0].contiguous(), task.observed.times)
    assert at.max() < 100
    assert torch.equal(task.clean.times[0][at], task.observed.times)
    true = task.clean.values.gather(1, at.unsqueeze(-1).expand(-1, -1, 2))
    assert torch.equal(true, task.observed.values)  # no noise was asked for
    assert len({tuple(row.tolist()) for row in at}) == 60  # each series has its own times


def test_all_points_can_be_observed() -> None:
    task = spirals(n_series=3, observed=100)
    assert torch.equal(task.observed.times, task.clean.times[:, :100])


def test_noise_level() -> None:
    task = spirals(n_series=200, observed=100, noise=0.07)
    error = task.observed.values - task.clean.values[:, :100]
    assert error.std().item() == pytest.approx(0.07, rel=0.03)
    assert abs(error.mean().item()) < 0.002


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.8])
def test_missing_rate(missing: float) -> None:
    task = spirals(n_series=200, observed=100, missing=missing)
    mask = task.observed.mask
    assert (~mask).float().mean().item() == pytest.approx(missing - missing**2 / 2, abs=0.01)
    assert mask.any(dim=-1).all()
    only_one = mask[mask.sum(dim=-1) == 1]
    if missing:
        assert only_one.float().mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)


def test_determinism() -> None:
    def tensors(seed: int) -> list[Tensor]:
        t = spirals(n_series=5, observed=10, missing=0.2, seed=seed)
        return [t.observed.times, t.observed.values, t.observed.mask, t.clean.values]

    torch.manual_seed(1)
    first = tensors(3)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = tensors(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, tensors(4), strict=True))
    torch.manual_seed(1)
    tensors(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_parts_keep_observed_and_clean_together(task: ForecastTask) -> None:
    parts = task.split((0.7, 0.1, 0.2), seed=0)
    assert [len(p) for p in parts] == [42, 6, 12]
    whole = {
        tuple(t.tolist()): x for t, x in zip(task.observed.times, task.clean.values, strict=True)
    }
    found = 0
    for part in parts:
        assert part.window == task.window
        for t, x in zip(part.observed.times, part.clean.values, strict=True):
            assert torch.equal(whole[tuple(t.tolist())], x)
            found += 1
    assert found == len(whole) == 60
    assert len(task[7]) == 1 and torch.equal(task[7].clean.values[0], task.clean.values[7])


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"n_series": 0}, "n_series=0"),
        ({"observed": 0}, "observed=0"),
        ({"observed": 101}, "observed=101"),
        ({"noise": -0.1}, "noise"),
        ({"noise": math.nan}, "noise"),
        ({"missing": 1.0}, "missing"),
        ({"missing": -0.1}, "missing"),
        ({"window_points": 200}, "at most 251"),
    ],
)
def test_bad_numbers(bad: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spirals(**{"n_series": 4, **bad})


def test_a_task_must_fit_together(task: ForecastTask) -> None:
    with pytest.raises(InputError, match="same series"):
        ForecastTask(task.observed[:3], task.clean, task.window)
    with pytest.raises(InputError, match="beyond the end of the window"):
        ForecastTask(task.observed, task.clean, 1.0)


def test_the_default_dtype_changes_nothing(float64):
    task = spirals(6, seed=3)
    torch.set_default_dtype(torch.float32)
    again = spirals(6, seed=3)
    assert task.observed.values.dtype == torch.float32
    assert torch.equal(task.observed.values, again.observed.values)
    assert torch.equal(task.observed.mask, again.observed.mask)
