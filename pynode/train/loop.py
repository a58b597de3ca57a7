"""The training loop: one for every model."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.errors import InputError, PynodeError
from pynode.models.noise import part_of_batch
from pynode.train import checkpoint
from pynode.train.config import TrainConfig
from pynode.train.distributed import Replicas, any_of, is_main, same, summed
from pynode.train.guard import TrainingError, check_gradients, check_loss, place
from pynode.train.history import History

if TYPE_CHECKING:
    from pynode.data.series import IrregularSeries
    from pynode.models.base import LossTerms, SeriesModel

_VALIDATION_SEED = 1_000_003  # apart from the training noise, and the same in every epoch


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training. The message says how to go on."""


def fit(
    model: SeriesModel,
    train: IrregularSeries,
    valid: IrregularSeries,
    config: TrainConfig,
    out: Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> History:
    """Train ``model`` by stochastic gradient descent and leave its best weights in it.

    Under torchrun (see :mod:`pynode.train.distributed`) every process calls this alike and works on
    its share of each minibatch: the gradient is that of the whole, and the loss curve that of one
    process but for rounding (and for the steps of an adaptive solver, which depend on who is solved
    together). The first process writes.

    The best weights are those with the lowest loss on ``valid``, at KL weight 1 and with the same
    noise after every epoch. Nothing but ``model`` is changed: torch's global random state is put
    back at the end. The initial weights are the caller's.

    Args:
        model: any trainable :class:`pynode.models.base.SeriesModel`.
        train, valid: the series to learn from, and those to choose the best epoch by, on the
            model's device.
        config: see :class:`TrainConfig`.
        out: folder for ``checkpoint.pt``; None writes nothing.
        resume: continue from the checkpoint in ``out``; from the beginning where there is none.
            On one thread this gives the very weights of an uninterrupted run: an epoch that was
            not whole is done again.
        progress: show a bar; None shows one where stderr is a terminal.
        on_epoch: called with the history's new row after every epoch.

    Returns:
        The history, that of the epochs before an interruption included.

    Raises:
        InputError: the model has nothing to train, ``out`` holds a checkpoint and ``resume`` is
            False, or ``resume`` is True without ``out``.
        CheckpointError: the checkpoint is damaged or of another model, data or config.
        TrainingError: a loss or gradient is not finite, or the ODE could not be solved.
        TrainingInterrupted: on Ctrl-C, after the last whole epoch has been written to ``out``.
    """
    path = _checkpoint_path(out, resume)
    if not model.trainable:
        raise InputError(f"{type(model).__name__} has nothing to train; use its predict as it is")
    if len(train) == 0 or len(valid) == 0:
        raise InputError(f"{len(train)} series to train and {len(valid)} to validate: need both")
    with torch.random.fork_rng(devices=[]):
        run = _Run(model, train, valid, config, path, on_epoch)
        if resume and path is not None and path.exists():
            run.restore(path)
        return run.run(sys.stderr.isatty() if progress is None else progress)


def _checkpoint_path(out: Path | None, resume: bool) -> Path | None:
    if out is None:
        if resume:
            raise InputError("resume=True needs out, the folder that holds the checkpoint")
        return None
    path = Path(out) / checkpoint.FILE
    if path.exists() and not resume:
        raise InputError(
            f"{path} holds a checkpoint: pass resume=True to continue it, or remove it first"
        )
    return path


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        model: SeriesModel,
        train: IrregularSeries,
        valid: IrregularSeries,
        config: TrainConfig,
        path: Path | None,
        on_epoch: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.model, self.train, self.valid, self.config = model, train, valid, config
        self.path, self.on_epoch = path, on_epoch
        self.optimizer = config.make_optimizer(model.parameters())
        self.device = next(model.parameters()).device
        self.batch_order = torch.Generator().manual_seed(config.seed)
        self.noise = torch.Generator(self.device).manual_seed(config.seed)
        self.replicas = Replicas(model)
        torch.manual_seed(config.seed)
        self.data = checkpoint.fingerprint(train, valid) if path is not None else ""
        self.architecture = checkpoint.architecture(model)
        self.history = History()
        self.best: dict[str, Tensor] = {}
        self.snapshot = self.capture()
        self.written = -1

    # -- the state on disk ------------------------------------------------------------------

    def capture(self) -> dict[str, Any]:
        """A copy of everything that the next epoch depends on."""
        return {
            "format": checkpoint.FORMAT,
            "model_class": type(self.model).__name__,
            "architecture": self.architecture,
            "config": self.config.as_dict(),
            "data": self.data,
            "epoch": self.history.epochs,
            "model": copy.deepcopy(dict(self.model.state_dict())),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "best": self.best,
            "best_epoch": self.history.best_epoch,
            "history": copy.deepcopy(self.history.rows),
            "rng": {
                "torch": torch.get_rng_state(),
                "batch_order": self.batch_order.get_state(),
                "noise": self.noise.get_state(),
            },
        }

    def restore(self, path: Path) -> None:
        """Continue from the checkpoint ``path``; CheckpointError if it is not of this run."""
        state = checkpoint.load(path)
        checkpoint.check_belongs(path, state, self.model, self.config, self.data)
        self._load(state)
        self.snapshot = self.capture()
        self.written = self.history.epochs

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]
        self.history.rows[:] = copy.deepcopy(state["history"])
        torch.set_rng_state(state["rng"]["torch"])
        self.batch_order.set_state(state["rng"]["batch_order"])
        self.noise.set_state(state["rng"]["noise"])

    def write(self) -> str:
        """Write the last whole epoch, unless it is written already; says where."""
        if self.path is None:
            return "nothing was saved, since no folder was given"
        if self.written != self.snapshot["epoch"]:
            if is_main():
                checkpoint.save(self.path, self.snapshot)
            self.written = self.snapshot["epoch"]
        return f"its {self.snapshot['epoch']} whole epochs are in {self.path}"

    # -- the loop ---------------------------------------------------------------------------

    def run(self, progress: bool) -> History:
        config = self.config
        try:
            with _Bar(progress, config.epochs, self.n_batches, self.history.epochs) as bar:
                while not (reason := same(self.history.stop_reason(config))):
                    self.epoch(bar)
                    if self.history.epochs % config.checkpoint_every == 0:
                        self.write()
            self.write()
        except KeyboardInterrupt as interrupt:
            self._load(self.snapshot)  # a step may have been cut in two
            how = "" if self.path is None else "; to go on, resume with the same options"
            raise TrainingInterrupted(f"training interrupted: {self.write()}{how}") from interrupt
        except TrainingError as error:
            self._load(self.snapshot)
            text = f"{error}. Training stopped: {self.write()}"
            raise TrainingError(text, error.epoch, error.batch) from error.__cause__
        self.history.stopped = reason
        self.model.load_state_dict(self.best)
        return self.history

    @property
    def n_batches(self) -> int:
        return math.ceil(len(self.train) / self.config.batch_size)

    def epoch(self, bar: _Bar) -> None:
        """One pass over the training series, and the validation after it."""
        start = time.perf_counter()
        index = self.history.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(index)
        row: dict[str, Any] = {"epoch": index + 1}
        row |= self._train_epoch(index, bar)
        row |= self._validate(index)
        row |= {"lr": self.config.lr_at(index), "kl_weight": self.config.kl_weight_at(index)}
        row["seconds"] = time.perf_counter() - start
        row = same(row)
        is_best = all(row["valid_loss"] < old["valid_loss"] for old in self.history.rows)
        if is_best:
            self.best = copy.deepcopy(dict(self.model.state_dict()))
        self.history.rows.append(row)
        self.snapshot = self.capture()
        if self.on_epoch is not None:
            self.on_epoch(dict(row))

    def _train_epoch(self, index: int, bar: _Bar) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, float] = defaultdict(float)
        self.model.train()
        order = torch.randperm(len(self.train), generator=self.batch_order)
        for number, chosen in enumerate(order.split(self.config.batch_size), start=1):
            batch = self.train[chosen]
            terms, norm = self._step(batch, index, number)
            _add(sums, "train", terms, self.model.weight(batch))
            forward, backward = self.model.nfe
            counts["grad_norm"] += norm
            counts["nfe_forward"] += forward
            counts["nfe_backward"] += backward
            bar.step(index + 1, terms.total.item(), forward, backward)
        means = {name: value / self.model.weight(self.train) for name, value in sums.items()}
        return means | {name: value / self.n_batches for name, value in counts.items()}

    def _step(self, batch: IrregularSeries, index: int, number: int) -> tuple[LossTerms, float]:
        model, config = self.model, self.config
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = defaultdict(float)
        noise = self.noise.get_state()
        parts = self.replicas.parts(len(batch), config.accumulate)
        for i, (first, stop) in enumerate(parts):
            self.noise.set_state(noise)  # each part takes its rows of the same noise
            # A share without any series takes part in the exchange all the same, with weight 0.
            part = batch if stop - first == len(batch) else batch[first : max(stop, first + 1)]
            part = part if len(part) else batch[:1]
            weight = model.weight(part) / model.weight(batch) if stop > first else 0.0
            where = part_of_batch(min(first, len(batch) - 1), len(batch))
            with where, self.replicas.exchange(last=i == len(parts) - 1):
                terms = self._backward(part, weight, index, number)
            for name, value in {"total": terms.total.item(), **terms.parts}.items():
                sums[name] += weight * float(value)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        check_gradients(norm, terms, model, config, index + 1, number)
        if config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), config.clip_norm, norm)
        self.optimizer.step()
        sums = summed(sums)
        total = terms.total.new_tensor(sums.pop("total"))
        return type(terms)(total, sums), norm.item()

    def _backward(self, part: IrregularSeries, weight: float, index: int, number: int) -> LossTerms:
        """Loss of a part of a batch, and its gradient times the part's weight in the whole."""
        model, config = self.model, self.config
        options = {"kl_weight": config.kl_weight_at(index), "generator": self.noise}
        failure: PynodeError | None = None
        try:
            with config.autocast(self.device):
                terms = self.replicas.loss(part, options)
            check_loss(terms, model, config, index + 1, number)
        except PynodeError as error:
            failure = error
        # Processes that go on would wait for ever for one that has failed.
        if self.replicas.size > 1 and any_of(failure is not None) and failure is None:
            text = f"{place(index + 1, number)}: another process failed; see its message"
            failure = TrainingError(text, index + 1, number)
        try:
            if failure is not None:
                raise failure
            # Gradients of all processes are averaged, and so scaled up here.
            (terms.total * (weight * self.replicas.size)).backward()
        except (TrainingError, InputError):
            raise
        except PynodeError as error:
            raise _failed(error, index + 1, number) from error
        return terms

    @torch.no_grad()
    def _validate(self, index: int) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        noise = torch.Generator(self.device).manual_seed(self.config.seed + _VALIDATION_SEED)
        self.model.eval()
        for batch in _in_order(self.valid, self.config.batch_size):
            try:
                terms = self.model.loss(batch, kl_weight=1.0, generator=noise)
            except InputError:
                raise
            except PynodeError as error:
                raise _failed(error, index + 1, 0) from error
            check_loss(terms, self.model, self.config, index + 1, 0)
            _add(sums, "valid", terms, self.model.weight(batch))
        return {name: value / self.model.weight(self.valid) for name, value in sums.items()}


def _failed(error: PynodeError, epoch: int, batch: int) -> TrainingError:
    return TrainingError(f"{place(epoch, batch)}: {error}", epoch, batch)


def _in_order(series: IrregularSeries, size: int) -> Iterator[IrregularSeries]:
    for first in range(0, len(series), size):
        yield series[first : first + size]


def _add(sums: dict[str, float], prefix: str, terms: LossTerms, count: int) -> None:
    for name, value in {"loss": terms.total.item(), **terms.parts}.items():
        sums[f"{prefix}_{name}"] += float(value) * count


class _Bar:
    """A progress bar over the steps of all epochs, or nothing."""

    def __init__(self, shown: bool, epochs: int, n_batches: int, done: int) -> None:
        self.bar: Any = None
        if shown:
            from tqdm import tqdm

            self.bar = tqdm(
                total=epochs * n_batches, initial=done * n_batches, unit="step", file=sys.stderr
            )

    def step(self, epoch: int, loss: float, nfe_forward: int, nfe_backward: int) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(
                f"epoch {epoch}, loss {loss:.4g}, nfe {nfe_forward}+{nfe_backward}", refresh=False
            )
            self.bar.update()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
