"""A hopping robot that falls: 14 coordinates from MuJoCo's simulation by dm_control."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from pynode.data.periodic import seen_in_window
from pynode.data.series import IrregularSeries
from pynode.data.spirals import ForecastTask
from pynode.errors import InputError

STEPS = 200
TIMESTEP = 0.005  # seconds


def hopper(n_series: int = 10_000, observed: int = 30, seed: int = 0) -> ForecastTask:
    """Rubanova et al. 2019, section 4.2: seen in the first half second, to be forecast after it.

    dm_control's hopper is put at random positions (the first two uniform in [0, 0.5], the others
    in [-2, 2]) and velocities (in [-5, 5]) and left to itself. Coordinates are its 7 positions and
    7 velocities, each scaled to [0, 1] by its least and largest value over all series and times.

    Args:
        n_series: number of series; 10,000 in the paper.
        observed: of the first 100 of 200 points, each with all coordinates and without noise.
        seed: the same seed gives the same task.

    Raises:
        InputError: dm_control is not installed, or a number is out of its range.
    """
    if n_series < 1 or not 1 <= observed <= STEPS // 2:
        raise InputError(
            f"n_series={n_series}, observed={observed}: at least 1 each, and at most {STEPS // 2} "
            "of the window's points can be observed"
        )
    x = simulate(n_series, seed)
    low, high = x.amin(dim=(0, 1)), x.amax(dim=(0, 1))
    x = (x - low) / (high - low)
    times = (torch.arange(STEPS, dtype=torch.float64) * TIMESTEP).float().expand(n_series, -1)
    clean = IrregularSeries(times, x, torch.ones_like(x, dtype=torch.bool))
    window = float(times[0, STEPS // 2 - 1])
    generator = torch.Generator().manual_seed(seed)
    return seen_in_window(clean, STEPS // 2, observed, window, 0.0, generator)


def simulate(n_series: int, seed: int) -> Tensor:
    """(B, 200, 14), float32: positions and velocities as MuJoCo has them."""
    try:
        with warnings.catch_warnings():  # that there is no screen; nothing is drawn
            warnings.simplefilter("ignore")
            from dm_control import suite
    except ImportError:
        raise InputError(
            "hopper is simulated by dm_control, which is not installed: pip install "
            "'pynode-ode[hopper]'"
        ) from None
    physics = suite.load("hopper", "stand").physics
    physics.model.opt.timestep = TIMESTEP
    random = np.random.default_rng(seed)
    positions, velocities = len(physics.data.qpos), len(physics.data.qvel)
    out = np.empty((n_series, STEPS, positions + velocities), dtype=np.float32)
    for series in out:
        with physics.reset_context():
            physics.data.qpos[:2] = random.uniform(0.0, 0.5, size=2)
            physics.data.qpos[2:] = random.uniform(-2.0, 2.0, size=positions - 2)
            physics.data.qvel[:] = random.uniform(-5.0, 5.0, size=velocities)
        for row in series:
            row[:positions] = physics.data.qpos
            row[positions:] = physics.data.qvel
            physics.step()
    return torch.from_numpy(out)
