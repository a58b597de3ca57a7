"""Functions on fixed memory: fused into few kernels, and replayed as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pynode.errors import CompileError

FUSED_ON = {"cuda"}
"""Kinds of device on which Inductor makes the kernels; elsewhere functions run as they are."""

MOST_SUMMED, MOST_COLUMNS = 8, 4
"""Products over so few entries, or to so few columns, are made part of other kernels."""

OPTIONS: dict[str, Any] = {"combo_kernels": True}
"""Of Inductor: kernels that do not depend on each other are one launch."""


@dataclass
class Counts:
    """Of this process: functions fused and graphs made, graphs replayed, waits for the device."""

    fused: int = 0
    made: int = 0
    replayed: int = 0
    waits: int = 0


counts = Counts()


def fused(function: Callable[..., Any], *inputs: Tensor) -> Callable[..., Any]:
    """A function of tensors as few kernels, for inputs of these shapes.

    Args:
        function: it may write into its inputs (those given here stay as they are).
    """
    counts.fused += 1
    if inputs[0].device.type not in FUSED_ON:
        return function
    # Traced anew for each shape: torch.compile keeps few versions of one and the same code.
    traced = make_fx(lambda *given: function(*given), decomposition_table=_THIN)
    module = traced(*(x.clone() for x in inputs))
    return torch.compile(module, dynamic=False, fullgraph=True, options=OPTIONS)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A thin matrix product as a sum, which kernels before and after it can take in.

    As a call of the BLAS it would be a kernel of its own that lasts as long as its launch.
    """
    if a.shape[1] > MOST_SUMMED and b.shape[1] > MOST_COLUMNS:
        return NotImplemented  # to make_fx: it stays what it is
    return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)


def _product_and(
    bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    product = _product(a, b)
    return product if product is NotImplemented else beta * bias + alpha * product


_THIN: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.mm.default: _product,
    torch.ops.aten.addmm.default: _product_and,
}


class Replayed:
    """A function without arguments that reads and writes fixed memory.

    On CUDA it is run twice, so that kernels are made and libraries have their memory, and then
    captured as a graph; elsewhere it is called.

    Raises:
        CompileError: a kernel cannot be made, or the function cannot be captured.
    """

    def __init__(self, run: Callable[[], None], device: torch.device) -> None:
        self._run = run
        counts.made += 1
        if device.type != "cuda":
            return
        try:
            self._run = _captured(run, device)
        except Exception as error:
            text = str(error).strip() or type(error).__name__
            raise CompileError(
                "compile=True cannot make a CUDA graph of this field: "
                f"{text.splitlines()[0]:.300}. Kernels are made by Triton, which needs a C "
                "compiler; and the field may not move tensors between devices. compile=False "
                "runs the field as it is, more slowly"
            ) from error

    def __call__(self, times: int = 1) -> None:
        for _ in range(times):
            self._run()
        counts.replayed += times


def _captured(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    return graph.replay
