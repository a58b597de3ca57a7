"""Forecast spirals from a few uneven, incomplete observations, and draw what came out.

    python examples/spiral_forecast.py            # about a minute

An RNN that is told the gaps between observations, and a latent ODE, learn from the same series.
"""

import torch

from pynode import plots
from pynode.data import spirals
from pynode.models import build
from pynode.train import TrainConfig, fit

# 600 spirals. Of the 100 points in the window 30 are seen, with noise, and one coordinate in ten
# is missing; the 100 points after the window are kept to compare with.
task = spirals(n_series=600, observed=30, missing=0.1, seed=0)
train, valid, test = task.split((0.7, 0.1, 0.2), seed=0)
print(f"to learn from: {train.observed}")

# The same budget for both models. Only observations inside the window are ever shown to them.
config = TrainConfig(epochs=150, batch_size=50, seed=0)
forecasts = {}
for name in ("rnn_dt", "latent_ode"):
    torch.manual_seed(0)
    model = build(name, coordinates=2)
    history = fit(model, train.observed, valid.observed, config)
    model.eval()
    with torch.no_grad():
        forecasts[name] = model.predict(test.observed, test.clean.times).mean  # (120, 200, 2)
    print(
        f"{name}: {model.n_parameters} parameters, {history.seconds:.0f} s, "
        f"RMSE beyond the window {plots.rmse_beyond(test, forecasts[name]):.3f}"
    )

# The held-out spiral on which the latent ODE errs more than on one half of them, and less than on
# the other: neither a lucky nor an unlucky one.
errors = [plots.rmse_beyond(test[i], forecasts["latent_ode"][i : i + 1]) for i in range(len(test))]
middle = sorted(range(len(test)), key=errors.__getitem__)[len(test) // 2]

figure = plots.forecast_figure(
    test[middle],
    {name: values[middle] for name, values in forecasts.items()},
    caption=f"held-out spiral {middle}: its error under the latent ODE is the median",
)
figure.savefig("spiral_forecast.png", dpi=160)
print("see spiral_forecast.png")
