"""Engines by name. An engine solves and differentiates; it never sees a model."""

from __future__ import annotations

from functools import cache
from typing import Any

from pynode.engines.torch.engine import TorchEngine


@cache
def engine(name: str) -> Any:
    """The engine of that name; the julia engine is imported when it is asked for."""
    if name == "julia":
        from pynode.engines.julia.engine import JuliaEngine

        return JuliaEngine()
    return TorchEngine()
