"""What a module's programs depend on, in as little Python as possible: asked at each solve."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import nn

from pynode.lowering import cache

_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None)))
_CONTAINERS = (list, tuple, dict)


def stamp(module: nn.Module) -> Hashable:
    """A key that changes with all but the values of parameters and buffers.

    It holds what the lowering's cache looks at: the modules, what they hold as plain numbers and
    switches, and which tensors.
    """
    parts: list[Hashable] = []
    held: list[Any] = []
    waiting = [module]
    while waiting:
        here = waiting.pop()
        own = here.__dict__
        plain = [x for x in own.values() if type(x) in _PLAIN]
        parts.append((type(here), tuple(own), tuple(plain), tuple(map(type, plain))))
        for name, value in own.items():
            if isinstance(value, _CONTAINERS) and not name.startswith("_"):
                parts.extend(cache.settings(value))
        held += own["_parameters"].values()
        held += own["_buffers"].values()
        waiting += [x for x in own["_modules"].values() if x is not None]
    for x in held:
        if x is not None:
            parts.append((id(x), x.shape, x.dtype, x.requires_grad))
    return tuple(parts)
