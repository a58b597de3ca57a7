"""Where Julia keeps and solves a field: where the state lies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pynode import catalogue
from pynode.engines.julia import runtime
from pynode.errors import InputError
from pynode.options import SolveOptions

CPU = "cpu"


def place_of(device: torch.device) -> str:
    """Julia's name of a device: ``"cpu"``, ``"cuda:0"``.

    Raises:
        InputError: it has none.
    """
    if device.type == "cpu":
        return CPU
    if device.type == "cuda":
        return f"cuda:{device.index or 0}"
    raise InputError(f"engine='julia' solves on the CPU and on CUDA devices, not on {device}")


def load(place: str) -> None:
    """Load the Julia packages that a place needs.

    Raises:
        JuliaError: one is not there.
    """
    if place != CPU:
        runtime.load("CUDA" if place.startswith("cuda") else "KernelAbstractions")


def check(options: SolveOptions, own: bool) -> None:
    """Refuse what is done on the CPU only; ``own``: the field is written in Julia.

    Raises:
        InputError: it is asked for.
    """
    remedy = "move the state to the CPU, or take engine='torch'"
    if own:
        raise InputError(f"a JuliaField runs on the CPU: {remedy}")
    if options.lowering == "callback":
        raise InputError(f'lowering="callback" is for states on the CPU: {remedy}')
    backward = options.adjoint_solver or options.solver
    if catalogue.solver(options.solver).stiff or catalogue.solver(backward).stiff:
        raise InputError(
            f"engine='julia' has no stiff solvers on a GPU: {remedy}. Many small systems are "
            'solved there by ensemble(..., engine="julia", backend="cuda")'
        )
    if options.step_control == "per_sample":
        raise InputError(
            f"engine='julia' takes no steps per sample on a GPU: {remedy}. Many small systems are "
            'solved so by ensemble(..., engine="julia", backend="cuda")'
        )


def check_together(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Refuse tensors that do not lie where the state does: Julia would read wild memory.

    Raises:
        InputError: one lies elsewhere.
    """
    for x in tensors:
        if x.device != device:
            raise InputError(
                f"the state lies on {device}, but a parameter or an entry of args of shape "
                f"{tuple(x.shape)} on {x.device}: move them together"
            )


def go_back_here(x: Tensor) -> None:
    """Let this thread's backward passes run in it, for a state on a GPU, where autograd would take
    a thread of its own.

    Julia can be called by that one, too, but on a GPU it was seen to work by this way only: see
    docs/verified.md. It costs what several GPUs would gain by going backward at once.
    """
    if x.is_cuda:
        torch.autograd.set_multithreading_enabled(False)


def hand_over(x: Tensor) -> None:
    """Wait until the device has done what torch asked it to in the present stream: Julia's work is
    in a stream of its own. Julia waits for its own before it returns."""
    if x.is_cuda:
        torch.cuda.current_stream(x.device).synchronize()
