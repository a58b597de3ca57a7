"""Ten observations of a wave: who fills in what is between them, and who goes on beyond?

    python examples/fill_and_forecast.py            # a minute or two

A GRU told the gaps and a latent ODE learn from the same uneven series (Rubanova et al. 2019), with
the rules that need no training beside them.
"""

import argparse

import torch

from pynode.data.periodic import periodic
from pynode.experiments.series import errors, forecast
from pynode.models import build
from pynode.train import TrainConfig, fit

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--series", type=int, default=200, help="to learn from; as many are tested on")
options = parser.parse_args()
torch.set_num_threads(1)

# Each series has its own frequency, offset and ten moments within [0, 5]; after 5 nobody looks.
task = periodic(2 * options.series + 20, observed=10, seed=0)
train, valid = task[: options.series], task[options.series : options.series + 20]
test = task[options.series + 20 :]
config = TrainConfig(epochs=options.epochs, batch_size=100, lr=0.02)

print("mean squared error:         within    beyond")
for name in ("last_value", "linear", "rnn_dt", "latent_ode"):
    torch.manual_seed(0)
    model = build(name, coordinates=1)
    if model.trainable:
        fit(model, train.observed, valid.observed, config, progress=False)
    found = errors(forecast(model, test), test)
    print(f"{name:26s}  {found['interpolation']:6.3f}    {found['extrapolation']:6.3f}")
