"""RNNs against the latent ODE on irregular, incomplete spirals.

Chen et al. 2018, section 5.1 and table 2, with the baselines of Rubanova et al. 2019 and the
trivial ones beside them, and the question whether absolute time and Δt say the same to an RNN.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pynode.catalogue import ENGINES
from pynode.errors import InputError, PynodeError
from pynode.experiments import spiral_figure, spiral_run, spiral_table
from pynode.experiments.pool import available_cores, one_thread, run_all
from pynode.experiments.spiral_run import RunFolder, RunSpec
from pynode.experiments.study import metadata, say
from pynode.models import MODELS
from pynode.train.distributed import same
from pynode.train.files import write_json, write_text

COMPARED = (
    "rnn", "rnn_t", "rnn_dt", "rnn_decay", "ode_rnn", "latent_ode", "last_value", "linear",
)  # fmt: skip
NOISE = 0.03  # of an observation; Chen et al. do not say theirs


@dataclass(frozen=True)
class Scale:
    """Defaults of a ``--scale``; each can be overridden by its own option."""

    series: int
    epochs: int
    batch_size: int
    observed: tuple[int, ...]
    missing: float
    seeds: int


SCALES = {
    "demo": Scale(series=600, epochs=300, batch_size=50, observed=(30,), missing=0.1, seeds=1),
    "paper": Scale(
        series=1000, epochs=300, batch_size=50, observed=(30, 50, 100), missing=0.0, seeds=3
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pynode experiment spiral``."""
    add = parser.add_argument
    add(
        "--scale",
        choices=SCALES,
        default="demo",
        help="demo: minutes, on incomplete series; paper: Chen's protocol (default: demo)",
    )
    add(
        "--models",
        nargs="+",
        choices=MODELS,
        default=list(COMPARED),
        metavar="MODEL",
        help=f"of {', '.join(MODELS)} (default: {' '.join(COMPARED)})",
    )
    add("--observed", nargs="+", type=int, metavar="N", help="observations of the 100 points")
    add("--missing", type=float, metavar="P", help="probability that a coordinate is missing")
    add("--seeds", type=int, metavar="N", help="run seeds 0 to N−1")
    add("--series", type=int, metavar="N", help="spirals: 70 %% train, 10 %% validate, 20 %% test")
    add("--epochs", type=int, metavar="N", help="training budget of every model")
    add("--batch-size", type=int, metavar="N", help="series in a minibatch")
    add("--engine", choices=ENGINES, default="torch", help="engine of the models with an ODE")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for all results")
    add("--resume", action="store_true", help="go on with runs that were interrupted")
    add(
        "--jobs",
        type=int,
        default=min(2, available_cores()),
        metavar="N",
        help="processes, one thread each; results do not depend on it (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; see the module's text. Returns the exit status."""
    scale = _scale(arguments)
    _check(arguments, scale)
    experiment = _Experiment(arguments, scale)
    experiment.prepare()
    failures = experiment.train()
    experiment.finish()
    if failures:
        listed = "\n  ".join(f"{name}: {text}" for name, text in failures.items())
        raise PynodeError(
            f"{len(failures)} of {len(experiment.folders)} runs failed; the results of the others "
            f"are in {arguments.out}:\n  {listed}"
        )
    return 0


def _scale(arguments: argparse.Namespace) -> Scale:
    values = asdict(SCALES[arguments.scale])
    for name in values:
        given = getattr(arguments, name)
        if given is not None:
            values[name] = given
    values["observed"] = tuple(dict.fromkeys(values["observed"]))
    return Scale(**values)


def _check(arguments: argparse.Namespace, scale: Scale) -> None:
    rules = [
        ("--observed", scale.observed, all(2 <= n <= 100 for n in scale.observed), "in 2…100"),
        ("--missing", scale.missing, 0 <= scale.missing < 1, "in [0, 1)"),
        ("--seeds", scale.seeds, scale.seeds >= 1, "at least 1"),
        ("--series", scale.series, scale.series >= 10, "at least 10, to be split in three"),
        ("--epochs", scale.epochs, scale.epochs >= 1, "at least 1"),
        ("--batch-size", scale.batch_size, scale.batch_size >= 1, "at least 1"),
        ("--jobs", arguments.jobs, arguments.jobs >= 1, "at least 1"),
    ]
    for option, value, holds, rule in rules:
        if not holds:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise InputError(f"{option} {shown}: must be {rule}")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise InputError(f"--out {arguments.out} is a file; it must be a folder, or not be there")


class _Experiment:
    def __init__(self, arguments: argparse.Namespace, scale: Scale) -> None:
        self.arguments, self.scale, self.out = arguments, scale, arguments.out
        self.folders = [
            self._folder(model, observed, seed)
            for observed in scale.observed
            for model in dict.fromkeys(arguments.models)
            for seed in range(scale.seeds)
        ]
        self.rows: dict[str, dict[str, Any]] = {}

    def _folder(self, model: str, observed: int, seed: int) -> RunFolder:
        scale = self.scale
        spec = RunSpec(
            model=model,
            observed=observed,
            seed=seed,
            series=scale.series,
            noise=NOISE,
            missing=scale.missing,
            engine=self.arguments.engine,
            epochs=scale.epochs,
            batch_size=scale.batch_size,
        )
        return RunFolder(spec, self.out / "runs" / spec.name)

    # -- before -----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Refuse what cannot be run, take over what is finished, say what is to come."""
        for folder in self.folders:
            folder.check()
        unfinished = [folder.spec.name for folder in self.folders if folder.unfinished]
        if unfinished and not self.arguments.resume:
            raise InputError(
                f"{self.out} holds interrupted runs ({', '.join(unfinished)}): add --resume to go "
                "on with them, or choose another --out"
            )
        for folder in self.folders:
            result = folder.result
            if result is not None:
                self.rows[folder.spec.name] = result["row"]
        say(
            f"{len(self.folders)} runs: {len(self.arguments.models)} models × "
            f"n = {', '.join(map(str, self.scale.observed))} × {self.scale.seeds} seed(s); "
            f"{self.scale.series} spirals, {self.scale.missing:.0%} of coordinates missing, "
            f"{self.scale.epochs} epochs of minibatches of {self.scale.batch_size} for every model"
        )
        if self.rows:
            say(f"{len(self.rows)} of them are finished already in {self.out}: not run again")

    def _estimates(self, folders: Sequence[RunFolder]) -> list[float]:
        seconds: dict[tuple[str, int], float] = {}
        with one_thread():
            for folder in folders:
                key = (folder.spec.model, folder.spec.observed)
                if key not in seconds:
                    seconds[key] = spiral_run.seconds_per_epoch(folder.spec)
        return [
            seconds[(f.spec.model, f.spec.observed)] * (f.spec.epochs - f.epochs_done)
            for f in folders
        ]

    # -- the runs ---------------------------------------------------------------------------

    def train(self) -> dict[str, str]:
        """Run what is not finished; returns what failed, by name."""
        todo = [folder for folder in self.folders if folder.spec.name not in self.rows]
        if not todo:
            return {}
        # Under torchrun all processes must take the runs in one order.
        estimates = same(self._estimates(todo))
        longest_first = sorted(range(len(todo)), key=lambda i: -estimates[i])
        todo = [todo[i] for i in longest_first]
        jobs = min(self.arguments.jobs, len(todo))
        expected = _makespan(sorted(estimates, reverse=True), jobs)
        say(
            f"expected to take about {_duration(expected)} with --jobs {jobs}, from timing a few "
            "steps of each model (an ODE that gets harder to solve while it trains takes longer; "
            "Ctrl-C saves, --resume goes on)"
        )
        board = _Board(todo)
        try:
            failures = run_all(todo, spiral_run.run, jobs, board.progress, self._take(todo, board))
        except KeyboardInterrupt:
            board.close()
            raise KeyboardInterrupt(
                f"interrupted: {len(self.rows)} of {len(self.folders)} runs are finished and the "
                f"last whole epochs of the others saved in {self.out}; the same command with "
                "--resume goes on from there"
            ) from None
        board.close()
        return {todo[i].spec.name: text for i, text in failures.items()}

    def _take(self, todo: Sequence[RunFolder], board: _Board) -> Any:
        def take(index: int, row: dict[str, Any]) -> None:
            self.rows[todo[index].spec.name] = row
            board.done(index, row)
            self.write_metrics()

        return take

    # -- after ------------------------------------------------------------------------------

    @property
    def ordered_rows(self) -> list[dict[str, Any]]:
        """What is finished, in the order asked for, however it was run."""
        names = [folder.spec.name for folder in self.folders]
        return [self.rows[name] for name in names if name in self.rows]

    def write_metrics(self) -> None:
        """``metrics.json`` as of now."""
        meta = metadata("spiral", self.arguments.jobs)
        config = {
            "scale": self.arguments.scale,
            "models": list(dict.fromkeys(self.arguments.models)),
        }
        config |= asdict(self.scale) | {"noise": NOISE, "engine": self.arguments.engine}
        config |= {"split": spiral_run.SPLIT}
        config |= {"training": self.folders[0].spec.as_dict()["training"]}
        value = {"meta": meta, "config": config, "rows": self.ordered_rows}
        write_json(self.out / "metrics.json", value)

    def finish(self) -> None:
        """Table and figures from what is finished."""
        if not self.rows:
            return
        self.write_metrics()
        finished = [folder for folder in self.folders if folder.spec.name in self.rows]
        note = spiral_figure.draw(finished, self.ordered_rows, self.out)
        text = spiral_table.render(self.ordered_rows, self._heading(), [note])
        write_text(self.out / "table.md", text)
        print(text)
        written = sorted(path.name for path in self.out.iterdir() if path.is_file())
        print(f"In {self.out}: {', '.join(written)}")

    def _heading(self) -> str:
        scale, spec = self.scale, self.folders[0].spec
        config = spec.train_config()
        return (
            f"`--scale {self.arguments.scale}`: {scale.series} spirals for each seed (70 % to "
            "train on, 10 % to choose the best epoch by, 20 % held out), half of them clockwise; "
            f"of a window of 100 points n are observed, with noise of {NOISE} and each coordinate "
            f"missing with probability {scale.missing:g}. Errors are against the noise-free "
            "series, on held-out spirals: fit over the window, extrapolation over the 100 points "
            f"beyond it. {_over_seeds(scale.seeds)} Every model has the same data and the same "
            f"budget: {scale.epochs} epochs in minibatches of {scale.batch_size}, "
            f"{config.optimizer.capitalize()}, learning rate {config.lr:g} × "
            f"{config.lr_decay:g}^epoch, no tuning of its own. Seconds are of one thread, with "
            f"{self.arguments.jobs} run(s) at a time."
        )


class _Board:
    """What the person sees of the runs: a bar on a terminal, a line for each finished run."""

    def __init__(self, todo: Sequence[RunFolder]) -> None:
        from tqdm import tqdm

        self.todo = todo
        self.epochs = [0] * len(todo)
        total = sum(folder.spec.epochs for folder in todo if _trains(folder))
        self.bar = tqdm(total=total, unit="epoch", file=sys.stderr, disable=not sys.stderr.isatty())

    def progress(self, index: int, row: dict[str, Any]) -> None:
        # a resumed run begins at a later epoch
        self.bar.update(row["epoch"] - self.epochs[index])
        self.epochs[index] = row["epoch"]
        self.bar.set_postfix_str(
            f"{self.todo[index].spec.name}: epoch {row['epoch']}, loss {row['train_loss']:.3g}, "
            f"nfe {row['nfe_forward']:.0f}+{row['nfe_backward']:.0f}",
            refresh=False,
        )

    def done(self, index: int, row: dict[str, Any]) -> None:
        folder = self.todo[index]
        if _trains(folder):
            self.bar.update(folder.spec.epochs - self.epochs[index])
        self.bar.write(
            f"{folder.spec.name:26s} fit {row['fit_rmse']:.3f}  extrapolation "
            f"{row['extrapolation_rmse']:.3f}  {row['train_seconds']:6.1f} s",
            file=sys.stderr,
        )

    def close(self) -> None:
        self.bar.close()


def _trains(folder: RunFolder) -> bool:
    return MODELS[folder.spec.model].trainable


def _makespan(seconds: Sequence[float], jobs: int) -> float:
    loads = [0.0] * jobs
    for value in seconds:
        loads[loads.index(min(loads))] += value
    return max(loads)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _over_seeds(seeds: int) -> str:
    if seeds == 1:
        return "One seed: small differences may be noise."
    return f"Mean ± standard deviation over {seeds} seeds (data, split, weights and minibatches)."
