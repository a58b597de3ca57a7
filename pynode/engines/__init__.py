"""Engines by name. An engine solves and differentiates; it never sees a model."""

from __future__ import annotations

from pynode.engines.torch.engine import TorchEngine

_ENGINES = {"torch": TorchEngine()}


def engine(name: str) -> TorchEngine:
    return _ENGINES[name]
