"""A case as torch tensors, shared by the contenders that run on torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cases import Case
from benchmarks.contenders import Task
from benchmarks.fields import FIELDS, torch_ops


class TorchField(nn.Module):
    """The case's field as f(t, z), its arrays as parameters."""

    def __init__(self, case: Case, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        tensors = [torch.tensor(x, dtype=dtype, device=device) for x in case.params]
        self.p = nn.ParameterList([nn.Parameter(x) for x in tensors])
        self.arrays = list(self.p)  # a list costs less to read than a ParameterList
        self.formula, self.ops = FIELDS[case.field], torch_ops()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.formula(self.ops, t, z, self.arrays)


class TorchProblem:
    """Tensors of a case, and the two passes around a library's solve."""

    def __init__(self, case: Case, device: str, gradient: bool) -> None:
        self.case, self.device, self.gradient = case, device, gradient
        self.dtype = getattr(torch, case.dtype)
        self.field = TorchField(case, self.dtype, device)
        if not gradient:
            self.field.requires_grad_(False)
        self.z0 = self._tensor(case.z0).requires_grad_(gradient)
        self.times = self._tensor(case.times)
        self.weights = self._tensor(case.weights())

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.tensor(x, dtype=self.dtype, device=self.device)

    def shared_times(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Times for a library that knows only shared ones, and how to pick (T, B, D) from them."""
        if self.times.ndim == 1:
            return self.times, lambda zs: zs
        union, place = torch.unique(self.times, return_inverse=True)
        rows = torch.arange(len(self.z0), device=self.device)
        return union, lambda zs: zs[place.T, rows]

    def run(self, solve: Callable[[], Tensor]) -> Any:
        """States, or states and gradients of the weighted sum of them."""
        if not self.gradient:
            with torch.no_grad():
                zs, grads = solve(), None
        else:
            zs = solve()
            loss = (zs * self.weights).sum()
            wanted = [self.z0, *self.field.arrays]
            grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        if self.device != "cpu":
            torch.cuda.synchronize()
        return zs, grads

    def read(self, raw: Any) -> tuple[np.ndarray, tuple[np.ndarray, list[np.ndarray]] | None]:
        zs, grads = raw
        states = zs.detach().double().cpu().numpy()
        if grads is None:
            return states, None
        like = [self.z0, *self.field.arrays]
        arrays = [
            (torch.zeros_like(x) if g is None else g).double().cpu().numpy()
            for g, x in zip(grads, like, strict=True)
        ]
        return states, (arrays[0], arrays[1:])

    def count_calls(self, run: Callable[[], Any]) -> dict[str, int]:
        """Calls of the field in one more run."""
        calls = [0]

        def count(*_: object) -> None:
            calls[0] += 1

        hook = self.field.register_forward_pre_hook(count)
        try:
            run()
        finally:
            hook.remove()
        return {"field calls": calls[0]}

    def task(
        self,
        solve: Callable[[], Tensor],
        solver: str,
        counts: Callable[[Any], dict[str, int]] | None = None,
    ) -> Task:
        def run() -> Any:
            return self.run(solve)

        return Task(run, self.read, counts or (lambda _: self.count_calls(run)), solver)
