"""Are the gradients right? The chosen sensitivity against a tight reference."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode import catalogue
from pynode.errors import InputError
from pynode.neural_ode import NeuralODE
from pynode.solution import Statistics
from pynode.state import State


@dataclass(frozen=True)
class GradientCheck:
    """One tensor's gradient.

    Attributes:
        name: ``z0``, ``t``, ``args`` (numbered where there are several), or a parameter's name.
        error: ‖g − g_ref‖ / ‖g_ref‖; the norm of g itself where the reference is zero.
        size: ‖g_ref‖.
    """

    name: str
    error: float
    size: float


@dataclass(frozen=True)
class GradientReport:
    """Errors of all gradients, readable as a table.

    Attributes:
        rows: one for each tensor.
        stats: counts of the checked solve and its backward pass.
        settings, reference: how gradients and reference were computed.
    """

    rows: tuple[GradientCheck, ...]
    stats: Statistics
    settings: str
    reference: str

    @property
    def worst(self) -> float:
        """The largest relative error."""
        return max(row.error for row in self.rows)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        s = self.stats
        lines = [
            f"gradients by {self.settings}",
            f"against      {self.reference}",
            f"{'':{width}}  relative error  norm of gradient",
            *(f"{row.name:{width}}  {row.error:14.1e}  {row.size:16.3e}" for row in self.rows),
            f"nfe {s.nfe} forward, {s.nfe_backward} backward, {s.vjp} vector-Jacobian products",
        ]
        return "\n".join(lines)


def check_gradients(
    node: NeuralODE,
    z0: State,
    t: Any,
    args: Any = None,
    t0: float | Tensor | None = None,
    *,
    rtol: float = 1e-11,
    seed: int = 0,
) -> GradientReport:
    """Compare the gradients of ``node`` with discrete ones at a tight tolerance in float64.

    The loss is a fixed random linear function of all outputs. Nothing of ``node`` is changed.

    Args:
        node, z0, t, args, t0: the solve to check, as it would be called.
        rtol: of the reference, whose atol is a hundredth of it.
        seed: of the random loss.

    Returns:
        A report; ``print`` it, or look at its ``worst``.

    Raises:
        InputError: the solve has no tensor to differentiate by.
        SolveError: one of the solves failed.
    """
    options = node.options
    solver = "rodas5p" if catalogue.solver(options.solver).stiff else "dop853"
    tight = replace(
        options,
        solver=solver,
        sensitivity="discrete",
        checkpoints=None,
        adaptive=None,
        rtol=rtol,
        atol=rtol * 1e-2,
        dt=None,
        max_steps=max(options.max_steps, 1_000_000),
    )
    got, stats, names = _gradients(node, z0, t, args, t0, seed)
    twin = copy.deepcopy(node).double()
    twin.options = tight
    want, _, _ = _gradients(twin, _double(z0), _double(t), _double(args), _double(t0), seed)
    rows = tuple(
        GradientCheck(name, _relative(g, r), float(r.norm()))
        for name, g, r in zip(names, got, want, strict=True)
    )
    steps = (
        f"rtol={options.rtol}, atol={options.atol}" if options.is_adaptive else f"dt={options.dt}"
    )
    return GradientReport(
        rows,
        stats,
        f"{options.sensitivity}, {options.solver}, {steps}",
        f"discrete, {solver}, rtol={rtol:g}, float64",
    )


def _gradients(
    node: NeuralODE, z0: State, t: Any, args: Any, t0: Any, seed: int
) -> tuple[list[Tensor], Statistics, list[str]]:
    """Gradients of the random loss for z0, t, args and parameters, as float64, with names."""
    names: list[str] = []
    tensors: list[Tensor] = []

    def live(name: str, tree: Any) -> Any:
        leaves, spec = pytree.tree_flatten(tree)
        wanted = [
            isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) for x in leaves
        ]
        for i, leaf in enumerate(leaves):
            if wanted[i]:
                leaves[i] = leaf.detach().clone().requires_grad_()
                names.append(name if sum(wanted) == 1 else f"{name}[{i}]")
                tensors.append(leaves[i])
        return pytree.tree_unflatten(leaves, spec)

    with torch.enable_grad():
        z0, t, args, t0 = live("z0", z0), live("t", t), live("args", args), live("t0", t0)
        for name, parameter in _named_parameters(node):
            names.append(name)
            tensors.append(parameter)
        if not tensors:
            raise InputError("there is no tensor to differentiate by")
        zs = node(z0, t, args, t0)
        loss = _random_loss(zs, seed)
    grads = torch.autograd.grad(loss, tensors, allow_unused=True)
    flat = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, tensors, strict=True)]
    return [_wide(g) for g in flat], node.stats, names


def _named_parameters(node: NeuralODE) -> list[tuple[str, Tensor]]:
    field = node.field
    return list(field.named_parameters()) if isinstance(field, torch.nn.Module) else []


def _random_loss(zs: State, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(())
    for leaf in pytree.tree_leaves(zs):
        real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
        weights = torch.randn(real.shape, generator=generator, dtype=torch.float64)
        total = total + (weights.to(real) * real.nan_to_num()).sum().cpu()
    return total


def _double(tree: Any) -> Any:
    def widen(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.is_complex():
            return x.to(torch.complex128)
        return x.double() if x.is_floating_point() else x

    return pytree.tree_map(widen, tree)


def _wide(grad: Tensor) -> Tensor:
    wide = torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad
    return wide.detach().double().cpu()


def _relative(got: Tensor, want: Tensor) -> float:
    size = float(want.norm())
    return float((got - want).norm()) / size if size else float(got.norm())
