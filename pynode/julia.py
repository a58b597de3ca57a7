"""Julia from Python: is it there, install it, start it. See docs/julia.md."""

from pynode.engines.julia.runtime import JuliaStatus, install, running, start, status

__all__ = ["JuliaStatus", "install", "running", "start", "status"]
