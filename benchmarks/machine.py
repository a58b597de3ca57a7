"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

PACKAGES = ("pynode-ode", "torch", "numpy", "scipy", "torchdiffeq", "torchode", "torchdyn")
JAX = ("jax", "jaxlib", "diffrax", "equinox", "juliacall")


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float | None:
    """The load average of the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def describe(device: str) -> str:
    """The processor, or the GPU, in words."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = model[1] if model else platform.processor() or platform.machine()
    return f"{name}, {cores()} cores, {platform.system()}"


def versions() -> dict[str, str]:
    """Of Python, Julia and the packages that are there."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *JAX):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    from pynode import julia

    version = julia.status().version
    return found | ({"julia": version} if version else {})
