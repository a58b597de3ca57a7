"""Numbers from the device to the host, also under torch.func.vmap."""

from __future__ import annotations

import torch
from torch import Tensor


class _MaxOverBatch(torch.autograd.Function):
    """The identity; under vmap, the largest value of the batch.

    Step sizes are decided on the host by one number, so a vmapped solve takes the steps that
    suit its worst sample, as a batched one does.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(ctx, grad) -> None:  # type: ignore[no-untyped-def]
        return None

    @staticmethod
    def jvp(ctx, tangent):  # type: ignore[no-untyped-def]
        return None

    @staticmethod
    def vmap(info, in_dims, x: Tensor):  # type: ignore[no-untyped-def]
        return _MaxOverBatch.apply(x.amax(dim=in_dims[0])), None


def to_host(x: Tensor, transformed: bool) -> float:
    """A 0-d tensor as a number: the one synchronisation of a step."""
    if transformed:
        x = _MaxOverBatch.apply(x.detach())
    return float(x)
