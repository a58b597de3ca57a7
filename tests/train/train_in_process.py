"""A training run as a process of its own: ``python train_in_process.py OUT [OPTIONS as JSON]``."""

import json
import sys
from pathlib import Path

import torch

from pynode.data import spirals
from pynode.models import build
from pynode.train import TrainConfig, fit
from pynode.train.distributed import is_main, process_group
from pynode.train.files import write_json


def main(out: Path, options: dict) -> None:
    torch.set_num_threads(1)
    task = spirals(n_series=options.pop("series", 24), observed=10, seed=0)
    train, valid = task.split((0.75, 0.25), seed=0)
    torch.manual_seed(0)
    name = options.pop("model", "rnn_dt")
    model = build(name, 2, **options.pop("hyper", {}))
    resume = options.pop("resume", False)
    with process_group():
        config = TrainConfig(**options)
        history = fit(model, train.observed, valid.observed, config, out, resume, progress=False)
        if is_main():
            weights = {k: v.tolist() for k, v in model.state_dict().items()}
            write_json(out / "result.json", {"rows": history.rows, "weights": weights})


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
