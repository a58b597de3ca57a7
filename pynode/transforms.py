"""What of torch.func's transforms a solve has to know."""

from __future__ import annotations

import torch
from torch import Tensor


def transforms_active() -> bool:
    """Whether a torch.func transform or forward-mode AD is going on."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def is_batched(x: Tensor) -> bool:
    """Under vmap, other transforms inside of it or not, values cannot be looked at."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False
