import pytest
import torch

from pynode.data.densities import DENSITIES, density, entropy
from pynode.errors import InputError


@pytest.mark.parametrize("name", DENSITIES)
def test_points_follow_their_seed(name):
    before = torch.get_rng_state()
    points = density(name, 2000, seed=3)
    assert points.shape == (2000, 2) and points.dtype == torch.float32
    assert torch.equal(points, density(name, 2000, seed=3))
    assert not torch.equal(points, density(name, 2000, seed=4))
    assert points.abs().max() < 5.5 and points.std() > 0.5
    assert torch.equal(before, torch.get_rng_state())


def test_checkerboard_has_eight_equal_squares():
    squares, counts = (density("checkerboard", 8000) / 2).floor().unique(dim=0, return_counts=True)
    assert len(squares) == 8 and (squares.sum(1) % 2 == 0).all()
    assert (counts - 1000).abs().max() < 130
    assert entropy("checkerboard") == pytest.approx(3.4657, abs=1e-4)


def test_entropy_of_eight_gaussians():
    # Centres are so far apart that the mixture hardly overlaps: log 8 more than one Gaussian's.
    lone = 1 + torch.tensor(2 * torch.pi * (0.5 / 1.414) ** 2).log().item()
    assert entropy("8gaussians") == pytest.approx(lone + 2.0794, abs=0.01)


def test_mistakes():
    assert entropy("moons") is None
    for call in (lambda: density("moon", 5), lambda: density("moons", 0), lambda: entropy("moon")):
        with pytest.raises(InputError):
            call()
