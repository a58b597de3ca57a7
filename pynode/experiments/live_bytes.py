"""Peak memory, counted: the bytes of all tensors that are alive at once."""

from __future__ import annotations

import gc
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations inside the block return, for as long as they live.

    Views count once, and what no operation touches counts for nothing. Neither the allocator nor
    the rest of the process blurs the count, so that it is the same on every machine.

    Attributes:
        live: bytes alive now.
        peak: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: Any = WeakIdKeyDictionary()

    def __enter__(self) -> LiveBytes:
        gc.collect()  # what an earlier computation left in cycles is not to die in here
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self._watch(x.untyped_storage())
        return out

    def _watch(self, storage: Any) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        self._seen[storage] = _Finaliser(self, size)


class _Finaliser:
    """Dies with the storage it is kept for."""

    def __init__(self, owner: LiveBytes, size: int) -> None:
        self.owner, self.size = owner, size

    def __del__(self) -> None:
        self.owner.live -= self.size
