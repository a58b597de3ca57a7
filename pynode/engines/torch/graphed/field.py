"""A field and its vector-Jacobian product as fused functions of tensors in fixed memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pynode.engines.torch.compiled.units import refusal
from pynode.engines.torch.graphed.graphs import fused
from pynode.errors import LoweringError
from pynode.field import FlatField
from pynode.lowering.aten import Unsupported
from pynode.lowering.trace import Derivative, graph_of
from pynode.solution import Statistics


class TracedField:
    """f(t, z) and λᵀ∂f of a field, with copies of all values that it depends on.

    The graphs read the copies: :meth:`refresh` brings them up to date, so that new values of
    parameters, args and buffers cost no new graph.

    Args:
        field: on flat states; its autocast, if any, is in force in the graphs, too.
        found: tensors that require grad and that it depends on beside its args.
        z0, t0: a state and a time to trace it at.

    Attributes:
        size: P, the number of entries of all tensors that require grad.
    """

    def __init__(self, field: FlatField, found: list[Tensor], z0: Tensor, t0: float) -> None:
        leaves, spec = pytree.tree_flatten(field.args)
        own = [_own(leaf) for leaf in leaves]
        self._args = pytree.tree_unflatten(own, spec)
        self._parameters = [*found, *_trainable(own)]
        self._places = {id(x): i for i, x in enumerate(own) if isinstance(x, Tensor)}
        self._like, self._t0 = z0.detach().clone(), t0
        self.size = sum(x.numel() for x in self._parameters)
        self._sources: list[int | Tensor] = []  # a leaf's number in args, or a tensor of the field
        self._copies: list[Tensor] = []
        twin = self._twin(field)
        f = self._kernel(lambda z, t, lam: [twin(t, z)])
        self.f: Callable[[Tensor, Tensor], Tensor] = lambda t, z: f(z, t, z)[0]
        self._vjp: Callable[..., list[Tensor]] | None = None

    def vjp(self, field: FlatField) -> Callable[[Tensor, Tensor, Tensor], list[Tensor]]:
        """(t, z, λ) to λᵀ∂f/∂z (N,) and λᵀ∂f/∂θ (P,), traced when first asked for.

        ``field`` is given again: what is kept for a field must not keep it alive.
        """
        if self._vjp is None:
            twin = self._twin(field)
            kernel = self._kernel(lambda z, t, lam: self._products(twin, z, t, lam))
            self._vjp = lambda t, z, lam: kernel(z, t, lam)
        return self._vjp

    def refresh(self, field: FlatField) -> None:
        """Take the present values of what ``field``, which is of the same structure, depends on."""
        leaves = pytree.tree_leaves(field.args)
        present = [x if isinstance(x, Tensor) else leaves[x] for x in self._sources]
        if present:
            torch._foreach_copy_(self._copies, [x.detach() for x in present])

    def split(self, flat: Tensor, found: list[Tensor], args: Any) -> dict[int, Tensor]:
        """A vector (P,) in the parameters' shapes, by the identity of the caller's tensors."""
        tensors = [*found, *_trainable(pytree.tree_leaves(args))]
        pieces = flat.split([x.numel() for x in tensors])
        return {
            id(x): piece.reshape(x.shape).to(x.dtype)
            for x, piece in zip(tensors, pieces, strict=True)
        }

    def _twin(self, field: FlatField) -> FlatField:
        """The field as it is traced: with args of its own, and counting nothing."""
        quiet = None if field.autocast is None else replace(field.autocast, cache=False)
        return FlatField(field.fn, field.layout, self._args, Statistics(), autocast=quiet)

    def _products(self, field: FlatField, z: Tensor, t: Tensor, lam: Tensor) -> list[Tensor | None]:
        out = field(t, z)
        wanted = [z, *self._parameters]
        grads: list[Tensor | None] = [None] * len(wanted)
        if out.requires_grad:
            grads = list(
                torch.autograd.grad(out, wanted, lam, retain_graph=True, allow_unused=True)
            )
        of_state, *rest = [
            torch.zeros_like(x) if grad is None else grad
            for grad, x in zip(grads, wanted, strict=True)
        ]
        of_parameters = [x.reshape(-1).to(z.dtype) for x in rest]
        return [of_state, torch.cat(of_parameters) if rest else z.new_zeros(0)]

    def _kernel(self, function: Derivative) -> Callable[..., list[Tensor]]:
        try:
            module, inputs, _ = graph_of(function, self._parameters, self._like, self._t0)
        except (LoweringError, Unsupported) as error:
            raise refusal(error) from error
        held = [self._copy(x) for x in inputs[3:]]
        t = self._like.new_zeros(())
        kernel = fused(module, self._like, t, self._like, *held)
        return lambda z, t, lam: kernel(z, t, lam, *held)

    def _copy(self, held: str | int | Tensor) -> Tensor:
        """Fixed memory for a tensor that a graph holds."""
        assert not isinstance(held, str)
        tensor = self._parameters[held] if isinstance(held, int) else held
        self._sources.append(self._places.get(id(tensor), tensor))
        self._copies.append(tensor.detach().clone())
        return self._copies[-1]


def _own(leaf: Any) -> Any:
    """A leaf of args as it is traced: a twin, since the next call brings another one."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.detach().clone().requires_grad_(leaf.requires_grad)


def _trainable(leaves: list[Any]) -> list[Tensor]:
    return [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
