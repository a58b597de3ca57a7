"""Which module an ATen operation comes from, for error messages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from pynode.field import FlatField


class _Finder(TorchDispatchMode):
    """Notes which modules are being called when an operation is made."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.calling: list[nn.Module] = []
        self.found: nn.Module | None = None
        self.seen = False

    def leave(self, *_: Any) -> None:
        self.calling.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = str(func.overloadpacket).removesuffix("_")
        if made == self.name.removesuffix("_") and not self.seen:
            self.seen = True
            self.found = self.calling[-1] if self.calling else None
        return func(*args, **(kwargs or {}))


def module_of(name: str, field: FlatField, z0: Tensor, t0: float) -> str:
    """Words for where the operation ``name`` (``"aten.sort"``) comes from."""
    finder = _Finder(name)
    before = register_module_forward_pre_hook(lambda module, _: finder.calling.append(module))
    after = register_module_forward_hook(finder.leave)
    try:
        with torch.no_grad(), finder:
            field(t0, z0.detach())
    except Exception:  # the field itself fails where it did before: the words are a help only
        finder.seen = finder.seen or bool(finder.calling)
    finally:
        before.remove()
        after.remove()
    if not finder.seen:
        return "made by a derivative or within another operation"
    if finder.found is None:
        return "in the field itself"
    root = field.fn if isinstance(field.fn, nn.Module) else None
    kind = type(finder.found).__name__
    path = "" if root is None else _path(root, finder.found)
    return f"in {kind}, module {path!r}" if path else f"in {kind}"


def _path(root: nn.Module, module: nn.Module) -> str:
    for path, candidate in root.named_modules():
        if candidate is module:
            return path
    return ""
