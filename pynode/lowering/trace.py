"""A field and its derivatives as ATen graphs without mutation, by torch's own tools."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from pynode.errors import LoweringError, PynodeError
from pynode.field import FlatField
from pynode.lowering.aten import OPERATIONS, Unsupported, packet_name

PROGRAMS = {
    "f": ("dz",),
    "vjp": ("gz", "gp", "gt"),
    "vjp_z": ("gz",),
    "vjp_p": ("gp",),
    "pullback": ("dz", "gz", "gp"),
    "jac": ("jac",),
    "tgrad": ("ft",),
}
"""Names of the programs, and of their outputs."""

TAKES_LAM = ("vjp", "vjp_z", "vjp_p", "pullback")

Traced = tuple[GraphModule, list[str | int | Tensor], list[bool]]
"""A graph; what its inputs are: ``"z"``, ``"t"``, ``"lam"``, the number of a parameter, or a
constant; and which of the derivative's results are there (the others are zeros)."""

Derivative = Callable[[Tensor, Tensor, Tensor], list[Tensor | None]]


def derivative(name: str, field: FlatField, parameters: Sequence[Tensor]) -> Derivative:
    """A function of (z, t, λ) that returns what the program ``name`` is to compute: one tensor,
    or None for zeros, for each output; for gp one for each parameter."""

    def gradients(z: Tensor, t: Tensor, lam: Tensor, *of: Tensor) -> list[Tensor | None]:
        out = field(t, z)
        if not out.requires_grad or not of:
            return [None] * len(of)
        # What a closed-over tensor was computed from is shared by all calls: keep its graph.
        return list(torch.autograd.grad(out, of, lam, retain_graph=True, allow_unused=True))

    def pullback(z: Tensor, t: Tensor, lam: Tensor) -> list[Tensor | None]:
        out, of = field(t, z), (z, *parameters)
        if not out.requires_grad:
            return [out] + [None] * len(of)
        return [out, *torch.autograd.grad(out, of, lam, retain_graph=True, allow_unused=True)]

    def jac(z: Tensor, t: Tensor, lam: Tensor) -> list[Tensor | None]:
        rows = field.layout.rows or 1
        width = z.numel() // rows
        out = field(t, z)
        if not out.requires_grad:
            return [None]
        picks = torch.eye(width, dtype=z.dtype, device=z.device)
        picks = picks.unsqueeze(1).expand(-1, rows, -1).reshape(width, -1)

        def pull(pick: Tensor) -> Tensor:
            (row,) = torch.autograd.grad(out, z, pick, retain_graph=True, materialize_grads=True)
            return row

        blocks = torch.func.vmap(pull)(picks)
        return [blocks.reshape(width, rows, width).transpose(0, 1)]

    def tgrad(z: Tensor, t: Tensor, lam: Tensor) -> list[Tensor | None]:
        out = field(t, z.detach())
        if not out.requires_grad:
            return [None]
        # The product λᵀ∂f/∂t is linear in λ: its derivative by λ is ∂f/∂t. (Forward mode under
        # make_fx crashes torch 2.13 where the field writes in place.)
        pick = torch.zeros_like(out, requires_grad=True)
        (pulled,) = torch.autograd.grad(out, t, pick, create_graph=True, allow_unused=True)
        if pulled is None or not pulled.requires_grad:
            return [None]
        return list(torch.autograd.grad(pulled, pick, torch.ones_like(t), allow_unused=True))

    table: dict[str, Derivative] = {
        "f": lambda z, t, lam: [field(t, z)],
        "vjp": lambda z, t, lam: gradients(z, t, lam, z, *parameters, t),
        "vjp_z": lambda z, t, lam: gradients(z, t, lam, z),
        "vjp_p": lambda z, t, lam: gradients(z, t, lam, *parameters),
        "pullback": pullback,
        "jac": jac,
        "tgrad": tgrad,
    }
    return table[name]


def trace(
    name: str, field: FlatField, parameters: Sequence[Tensor], z0: Tensor, t0: float
) -> Traced:
    """The graph of a derivative, functional and decomposed.

    Raises:
        LoweringError: torch cannot trace the field.
        Unsupported: it draws random numbers.
    """
    return graph_of(derivative(name, field, parameters), parameters, z0, t0)


def graph_of(function: Derivative, parameters: Sequence[Tensor], z0: Tensor, t0: float) -> Traced:
    """The graph of a function of (z, t, λ) that depends on ``parameters``, see :func:`trace`."""
    there: list[bool] = []

    def traced(z: Tensor, t: Tensor, lam: Tensor) -> list[Tensor]:
        results = function(z, t, lam)
        there[:] = [r is not None for r in results]
        return [r for r in results if r is not None]

    z = z0.detach().clone().requires_grad_()
    t = torch.tensor(t0, dtype=z.dtype, device=z.device, requires_grad=True)
    lam = torch.ones_like(z0)
    try:
        with plain_kernels(), torch.enable_grad():
            module = make_fx(traced)(z, t, lam)
        inputs = _lift_constants(module, parameters)
        values = [
            {"z": z, "t": t, "lam": lam}[i] if isinstance(i, str)
            else parameters[i] if isinstance(i, int) else i
            for i in inputs
        ]  # fmt: skip
        _refuse_random(module)
        table = _decompositions()
        if not _is_plain(module, table):
            with torch.no_grad():
                detached = [v.detach().clone() for v in values]
                functional = torch.func.functionalize(module, remove="mutations")
                module = make_fx(functional, decomposition_table=table)(*detached)
    except (PynodeError, Unsupported):
        raise
    except Exception as error:
        raise LoweringError(_explain(error)) from error
    _refuse_mutation(module)
    module.graph.eliminate_dead_code()
    return module, inputs, there


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention, transformers and recurrent cells by elementary operations."""
    fast = torch.backends.mha.get_fastpath_enabled()
    mkldnn = torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(mkldnn)


def _lift_constants(module: GraphModule, parameters: Sequence[Tensor]) -> list[str | int | Tensor]:
    """Make tensors that the graph holds inputs of it, telling parameters from constants."""
    inputs: list[str | int | Tensor] = ["z", "t", "lam"]
    numbers = {id(p): i for i, p in enumerate(parameters)}
    places: dict[Any, Any] = {}
    last = [n for n in module.graph.nodes if n.op == "placeholder"][-1]
    for node in list(module.graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(module, node.target)
        key = numbers.get(id(tensor), id(tensor))
        if key not in places:
            with module.graph.inserting_after(last):
                last = places[key] = module.graph.placeholder(f"held_{len(places)}")
            last.meta.update(node.meta)
            inputs.append(numbers.get(id(tensor), tensor))
        node.replace_all_uses_with(places[key])
        module.graph.erase_node(node)
    module.recompile()
    return inputs


def _is_plain(module: GraphModule, table: dict[Any, Any]) -> bool:
    """Whether nothing in the graph mutates, and nothing is to be decomposed."""
    targets = [n.target for n in module.graph.nodes if n.op == "call_function"]
    return not any(t in table or (hasattr(t, "_schema") and t._schema.is_mutable) for t in targets)


@functools.cache
def _decompositions() -> dict[Any, Any]:
    """Core ATen, and more, without what has an instruction of its own."""
    from torch._decomp import core_aten_decompositions, get_decompositions

    aten = torch.ops.aten
    more = get_decompositions(
        [
            aten._softmax, aten._softmax_backward_data, aten._log_softmax,
            aten._log_softmax_backward_data, aten.native_layer_norm,
            aten.native_layer_norm_backward, aten.native_group_norm,
            aten.native_group_norm_backward, aten.native_batch_norm,
            aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training,
            aten.native_batch_norm_backward,
            aten.embedding_dense_backward, aten.linalg_vector_norm, aten.norm, aten.lerp,
            aten.addcdiv, aten.hardtanh, aten.hardtanh_backward, aten.hardswish,
            aten.hardswish_backward, aten.hardsigmoid, aten.hardsigmoid_backward, aten.mish,
            aten.mish_backward, aten.log_sigmoid_forward, aten.log_sigmoid_backward,
            aten.prelu, aten._prelu_kernel, aten._prelu_kernel_backward, aten.glu,
            aten.glu_backward, aten.softshrink, aten.hardshrink, aten.celu, aten.logit,
            aten.tril, aten.triu, aten.xlogy, aten.logaddexp, aten.logsumexp, aten.masked_fill,
            aten.mse_loss, aten.unfold_backward, aten.diagonal_backward, aten.unfold,
            aten.heaviside, aten.hypot, aten.sinc, aten.nan_to_num, aten.trace, aten.threshold,
            aten.rot90, aten.linspace, aten.logspace, aten.cumprod, aten._euclidean_dist,
            aten.max_pool2d_with_indices_backward, aten.avg_pool2d_backward, aten.im2col,
            aten.col2im, aten.pixel_shuffle, aten.upsample_nearest2d,
            aten.rrelu_with_noise_functional, aten.index_add, aten.deg2rad, aten.frac,
        ]
    )  # fmt: skip
    table = {**core_aten_decompositions(), **more}
    return {op: rule for op, rule in table.items() if packet_name(op) not in OPERATIONS}


def _refuse_random(module: GraphModule) -> None:
    for node in module.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Unsupported(packet_name(node.target), "it draws random numbers")


def _refuse_mutation(module: GraphModule) -> None:
    """What functionalization leaves is a copy back into an input: a changed buffer."""
    for node in module.graph.nodes:
        if packet_name(node.target) == "aten.copy_":
            raise LoweringError(
                "the field changes a tensor that it holds while it is evaluated (a running "
                "statistic, a cache): its values would depend on how often it is called. Use "
                "field.eval(), or compute without that tensor."
            )


def _explain(error: Exception) -> str:
    text = str(error)
    if (
        "_local_scalar_dense" in text
        or "GuardOnDataDependent" in type(error).__name__
        or ("data-dependent" in text)
    ):
        return (
            "the field reads a tensor's value in Python (if, while, float(), .item()), so that "
            "which operations it makes depends on data: use torch.where, torch.clamp, ... or "
            'lowering="callback"'
        )
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return (
        f"torch cannot trace the field: {type(error).__name__}: {first:.300} "
        '(lowering="callback" runs the field as it is)'
    )
