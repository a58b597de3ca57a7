"""Is telling an RNN the time t the same as telling it the gap Δt?

    python examples/time_or_gap.py            # well below a minute

The same GRU learns to predict the next observation of series at uneven times, in a world where
the gap decides what comes next and in one where the date does.
"""

import argparse

import torch

from pynode.data.turning import turning
from pynode.experiments.uneven import one_step_ahead, untrained
from pynode.models import build
from pynode.train import TrainConfig, fit

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=50)
parser.add_argument("--series", type=int, default=300)
options = parser.parse_args()
torch.set_num_threads(1)
config = TrainConfig(epochs=options.epochs, batch_size=75, optimizer="adam", lr=0.02, lr_decay=0.96)

for world in ("autonomous", "driven"):
    # Gaps as of a Poisson process: as long as their mean is their standard deviation.
    train, valid, test = (
        turning(size, 25, unevenness=1.0, seed=seed, world=world)
        for seed, size in enumerate((options.series, 75, 200))
    )
    print(f"{world} world, RMSE of the next observation")
    held = untrained("last_value", test)
    print(f"  last value          {(held - test.truth).square().mean().sqrt():.3f}")
    for name, told in (("rnn", "nothing"), ("rnn_t", "t"), ("rnn_dt", "Δt")):
        torch.manual_seed(0)
        model = build(name, coordinates=2, hidden=32, sigma_min=0.02)
        fit(model, train.observed, valid.observed, config, progress=False)
        error = (one_step_ahead(model, test) - test.truth).square().mean().sqrt()
        print(f"  RNN told {told:10s} {error:.3f}")
