"""Training in several processes: ``torchrun --nproc-per-node=N -m pynode …``.

Every process holds the model and works on its share of each batch; torch's
DistributedDataParallel averages the gradients. Without torchrun there is one process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from pynode.data.series import IrregularSeries
    from pynode.models.base import LossTerms, SeriesModel

T = TypeVar("T")


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """In here, this process is one of those that torchrun started, if it did.

    Gloo carries what lies on the CPU, NCCL what lies on GPUs, of which each process gets one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not dist.is_available():
        yield
        return
    if dist.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(backend)
    try:
        yield
        # Gloo aborts a process that leaves while others still send to it.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """Which process this is, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_main() -> bool:
    """Whether this process writes files and speaks: the first one, or the only one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def same(value: T) -> T:
    """The first process's value, in all of them."""
    if rank_and_size()[1] == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def summed(numbers: dict[str, float]) -> dict[str, float]:
    """The sums of all processes' numbers."""
    if rank_and_size()[1] == 1:
        return numbers
    total = torch.tensor([numbers[name] for name in sorted(numbers)], dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(sorted(numbers), total.tolist(), strict=True))


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return summed({"flag": float(flag)})["flag"] > 0


class _Loss(nn.Module):
    """A model's loss as a forward pass, which is what DistributedDataParallel knows."""

    def __init__(self, model: SeriesModel) -> None:
        super().__init__()
        self.model = model
        self.terms: LossTerms | None = None

    def forward(self, batch: IrregularSeries, options: dict[str, Any]) -> Tensor:
        self.terms = self.model.loss(batch, **options)
        return self.terms.total


class Replicas:
    """The model as all processes train it.

    Args:
        model: the same in each of them; the first one's weights are taken.
    """

    def __init__(self, model: SeriesModel) -> None:
        self.rank, self.size = rank_and_size()
        self._loss = _Loss(model)
        self._parallel: nn.Module | None = None
        if self.size > 1:
            device = next(model.parameters()).device
            self._parallel = nn.parallel.DistributedDataParallel(
                self._loss,
                device_ids=[device.index] if device.type == "cuda" else None,
                # A field, say, that no gap of this share of a batch calls for.
                find_unused_parameters=True,
            )

    def parts(self, rows: int, accumulate: int) -> list[tuple[int, int]]:
        """Rows of a batch for this process, in ``accumulate`` parts, of which some may be empty."""
        count = self.size * accumulate
        borders = [round(rows * i / count) for i in range(count + 1)]
        mine = range(self.rank * accumulate, (self.rank + 1) * accumulate)
        return [(borders[i], borders[i + 1]) for i in mine]

    def loss(self, batch: IrregularSeries, options: dict[str, Any]) -> LossTerms:
        """The model's loss on a part of a batch."""
        (self._parallel or self._loss)(batch, options)
        terms = self._loss.terms
        assert terms is not None
        self._loss.terms = None
        return terms

    def exchange(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward of a part: gradients are averaged with the last one."""
        if self._parallel is None or last:
            return contextlib.nullcontext()
        return self._parallel.no_sync()  # type: ignore[operator]
