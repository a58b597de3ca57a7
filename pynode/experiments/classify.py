"""From ResNet to ODE-Net, on handwritten digits.

Chen et al. 2018, section 3 and table 1, with the controls that table lacks: a ResNet of one block,
models without depth, the nearest neighbour. And the limit itself: a ResNet with tied weights and
step 1/L as the number of its layers L grows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pynode.data.images import LabelledImages, digits, mnist
from pynode.experiments import classify_figure, classify_table
from pynode.experiments.live_bytes import LiveBytes
from pynode.experiments.study import Row, Study, add_common_arguments, scale_of
from pynode.models.classifiers import Convolutional, Dense, ODENet, ResNet, linear, perceptron

DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # at which a trained ODE-Net is run as a ResNet
TRAINED_DEPTHS = (1, 2, 4, 8, 16, 32)  # at which tied ResNets are trained
MEASURED_TOLERANCES = (1e-1, 1e-3, 1e-5)
MEASURED_DEPTHS = (1, 4, 16, 64, 256)
SHOWN = 12  # images whose paths are drawn
_TOLERANCE = 1e-3
_EXACT = {"solver": "tsit5", "rtol": 1e-6, "atol": 1e-6, "sensitivity": "discrete"}


@dataclass(frozen=True)
class Scale:
    """Defaults of a ``--scale``."""

    seeds: int
    epochs: int
    batch_size: int
    lr: float


SCALES = {
    "demo": Scale(seeds=5, epochs=30, batch_size=128, lr=3e-3),
    "paper": Scale(seeds=10, epochs=160, batch_size=128, lr=1e-3),
}


@dataclass(frozen=True)
class ClassifyRun:
    """One classifier.

    Attributes:
        model: a key of ``MODELS``, or of the baselines.
        depth: L of ``tied_resnet``, else 0.
        data: ``digits`` or ``mnist``.
        folder: where MNIST is.
    """

    model: str
    depth: int
    seed: int
    data: str
    folder: str
    epochs: int
    batch_size: int
    lr: float

    @property
    def name(self) -> str:
        return f"{self.model}{self.depth or ''}-{self.data}-seed{self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pynode experiment classify``."""
    parser.add_argument(
        "--data",
        choices=("digits", "mnist"),
        default="digits",
        help="scikit-learn's digits; or MNIST, which needs torchvision (default: %(default)s)",
    )
    parser.add_argument(
        "--mnist-folder",
        type=Path,
        default=Path("data/mnist"),
        metavar="DIR",
        help="where MNIST is, or is downloaded to (default: %(default)s)",
    )
    add_common_arguments(parser, SCALES)


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; see the module's text. Returns the exit status."""
    scale = scale_of(arguments, SCALES)
    runs = specs(scale, arguments.data, str(arguments.mnist_folder))
    load(runs[0])  # what is missing is said before anything runs
    config = {"scale": arguments.scale, "data": arguments.data, **asdict(scale)}
    return Study(
        name="classify",
        specs=runs,
        work=work,
        config=config,
        table=lambda rows: classify_table.render(rows, config),
        figure=classify_figure.draw,
    ).run(arguments)


def specs(scale: Scale, data: str = "digits", folder: str = "") -> list[ClassifyRun]:
    """All runs, the long ones first."""
    options = asdict(scale)
    seeds = range(options.pop("seeds"))

    def spec(model: str, seed: int, depth: int = 0) -> ClassifyRun:
        return ClassifyRun(model, depth, seed, data, folder, **options)

    order = ("odenet", "rknet", "resnet6", "resnet1", "mlp", "linear", "nearest", "commonest")
    runs = [spec(model, s) for model in order for s in seeds]
    return runs + [spec("tied_resnet", s, depth) for depth in TRAINED_DEPTHS[::-1] for s in seeds]


# -- models and data ----------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _loaded(data: str, folder: str, seed: int) -> tuple[LabelledImages, LabelledImages]:
    return digits(seed) if data == "digits" else mnist(Path(folder))


def load(spec: ClassifyRun) -> tuple[LabelledImages, LabelledImages]:
    """Training and test images of a run."""
    return _loaded(spec.data, spec.folder, spec.seed if spec.data == "digits" else 0)


def parts_of(data: str) -> Dense | Convolutional:
    """What the models of a data set are put together from."""
    return Dense(64, 10) if data == "digits" else Convolutional(64, 10)


def _mlp(spec: ClassifyRun) -> nn.Module:
    """As many parameters as the ODE-Net has on the digits; on MNIST, Chen et al.'s 300 units."""
    return perceptron(64, 120, 10) if spec.data == "digits" else perceptron(784, 300, 10)


MODELS: dict[str, Callable[[ClassifyRun], nn.Module]] = {
    "linear": lambda spec: linear(64 if spec.data == "digits" else 784, 10),
    "mlp": _mlp,
    "resnet6": lambda spec: ResNet(parts_of(spec.data), 6),
    "resnet1": lambda spec: ResNet(parts_of(spec.data), 1),
    "rknet": lambda spec: ODENet(
        parts_of(spec.data), solver="rk4", dt=0.25, sensitivity="discrete"
    ),
    "odenet": lambda spec: ODENet(
        parts_of(spec.data),
        solver="tsit5",
        rtol=_TOLERANCE,
        atol=_TOLERANCE,
        sensitivity="backsolve",
    ),
    "tied_resnet": lambda spec: tied_resnet(spec.data, spec.depth),
}


def tied_resnet(data: str, depth: int) -> ODENet:
    """A ResNet of ``depth`` blocks with the same weights, h ← h + f(t, h)/depth."""
    options = {"solver": "euler", "dt": 1.0 / depth, "sensitivity": "discrete"}
    return ODENet(parts_of(data), **options)


# -- one run --------------------------------------------------------------------------------------


def work(spec: ClassifyRun, folder: Path) -> Row:
    """Train and measure one model."""
    train, test = load(spec)
    if spec.model in _UNTRAINED:
        predicted = _UNTRAINED[spec.model](train, test.x)
        return {"accuracy": (predicted == test.y).float().mean().item(), "parameters": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = MODELS[spec.model](spec)
        began = time.process_time()
        nfes = fit(model, train, spec)
        seconds = time.process_time() - began
    row: Row = {
        "accuracy": accuracy(model, test),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(seconds, 2),
        "nfe_by_epoch": nfes,
        "peak_bytes": peak_bytes(model, train[: spec.batch_size]),
    }
    if isinstance(model, ODENet):
        some = test[:200]
        if spec.model == "odenet":
            row["limit"] = [compare(model, some, test, depth) for depth in DEPTHS]
            if spec.seed == 0:
                row["memory"] = memory(model, train[: spec.batch_size])
                torch.save(model.state_dict(), folder / "model.pt")
        elif spec.model == "tied_resnet":
            row["from_its_ode"] = compare(model, some, test, spec.depth)["state_error"]
    return row


def fit(model: nn.Module, train: LabelledImages, spec: ClassifyRun) -> list[tuple[float, float]]:
    """Cross-entropy by Adam with a cosine schedule; the mean nfe of each epoch, (there, back)."""
    optimiser = torch.optim.Adam(model.parameters(), lr=spec.lr)
    steps = spec.epochs * -(-len(train) // spec.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    nfes = []
    for _ in range(spec.epochs):
        counts = []
        for rows in torch.randperm(len(train)).split(spec.batch_size):
            batch = train[rows]
            loss = nn.functional.cross_entropy(model(batch.x), batch.y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if isinstance(model, ODENet):
                stats = model.node.stats
                counts.append((stats.nfe, stats.nfe_backward or stats.vjp))
        if counts:
            there, back = torch.tensor(counts, dtype=torch.float64).mean(0).tolist()
            nfes.append((there, back))
    return nfes


@torch.no_grad()
def accuracy(model: nn.Module, images: LabelledImages) -> float:
    """Share of images whose class has the largest logit."""
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(images.x.split(500), images.y.split(500), strict=True)
    )
    return right / len(images)


def peak_bytes(model: nn.Module, batch: LabelledImages) -> int:
    """Most bytes alive at once in a forward and backward pass, without parameters and input."""
    model.zero_grad(set_to_none=True)
    with LiveBytes() as counted:
        nn.functional.cross_entropy(model(batch.x), batch.y).backward()
    return counted.peak


def memory(
    model: ODENet, batch: LabelledImages, depths: Sequence[int] = MEASURED_DEPTHS
) -> dict[str, list[Row]]:
    """Bytes of a training step against evaluations of f: as an ODE at tighter and tighter
    tolerances, and as a tied ResNet of more and more layers."""

    def point(one: ODENet) -> Row:
        count = peak_bytes(one, batch)
        return {"nfe": one.node.stats.nfe, "bytes": count}

    own = model.node.options
    tolerances = [{"rtol": tol, "atol": tol} for tol in MEASURED_TOLERANCES]
    return {
        "ode": [
            point(model.solved_by(solver=own.solver, sensitivity=own.sensitivity, **tol))
            for tol in tolerances
        ],
        "tied_resnet": [
            point(model.solved_by(solver="euler", dt=1.0 / depth, sensitivity="discrete"))
            for depth in depths
        ],
    }


def compare(model: ODENet, some: LabelledImages, test: LabelledImages, depth: int) -> Row:
    """A network's weights as a tied ResNet of ``depth`` layers, against their ODE.

    Returns:
        ``state_error``: ‖h_L − h(1)‖ / ‖h(1) − h(0)‖ over some images; ``gradient_error``: that of
        the loss's gradient in all parameters, relative; and the accuracy on all test images.
    """
    resnet = model.solved_by(solver="euler", dt=1.0 / depth, sensitivity="discrete")
    exact = model.solved_by(**_EXACT)
    ends, gradients = [], []
    for one in (resnet, exact):
        one.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(one(some.x), some.y).backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in one.parameters()]))  # type: ignore[union-attr]
        with torch.no_grad():
            ends.append(one.path(some.x, torch.tensor([0.0, 1.0])))
    moved = (ends[1][-1] - ends[1][0]).norm()
    return {
        "depth": depth,
        "state_error": ((ends[0][-1] - ends[1][-1]).norm() / moved).item(),
        "gradient_error": ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item(),
        "accuracy": accuracy(resnet, test),
    }


@torch.no_grad()
def paths(spec: ClassifyRun, folder: Path) -> dict[str, Any]:
    """Hidden states of a few test images on their way, in the plane of the largest variance.

    Returns:
        ``ode`` (T, N, 2), a (L + 1, N, 2) for each L of 2, 8 and 32, and ``labels`` (N,).
    """
    model = MODELS["odenet"](spec)
    assert isinstance(model, ODENet)
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    _, test = load(spec)
    chosen = torch.cat([(test.y == c).nonzero()[: SHOWN // 4, 0] for c in (0, 1, 4, 7)])
    x = test.x[chosen]
    curve = model.solved_by(**_EXACT).path(x, torch.linspace(0, 1, 60))
    everything = curve.reshape(len(curve), len(x), -1)
    flat = everything.reshape(-1, everything.shape[-1])
    centre = flat.mean(0)
    plane = torch.linalg.svd(flat - centre, full_matrices=False).Vh[:2].T

    def seen(states: Tensor) -> Tensor:
        return (states.reshape(len(states), len(x), -1) - centre) @ plane

    found: dict[str, Any] = {"ode": seen(curve), "labels": test.y[chosen]}
    for depth in (2, 8, 32):
        resnet = model.solved_by(solver="euler", dt=1.0 / depth, sensitivity="discrete")
        found[str(depth)] = seen(resnet.path(x, torch.linspace(0, 1, depth + 1)))
    return found


# -- what needs no training -----------------------------------------------------------------------


def _nearest(train: LabelledImages, x: Tensor) -> Tensor:
    """The class of the nearest training image."""
    flat = train.x.flatten(1)
    chunks = [torch.cdist(part.flatten(1), flat).argmin(1) for part in x.split(500)]
    return train.y[torch.cat(chunks)]


def _commonest(train: LabelledImages, x: Tensor) -> Tensor:
    """The class with most training images, for all."""
    return train.y.bincount().argmax().expand(len(x))


_UNTRAINED: dict[str, Callable[[LabelledImages, Tensor], Tensor]] = {
    "nearest": _nearest,
    "commonest": _commonest,
}
