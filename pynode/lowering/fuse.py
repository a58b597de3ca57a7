"""What is alive, and nodes made one: product plus addend, multiply and add."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pynode.lowering.views import Node, Value, View


def alive(nodes: Sequence[Node], outputs: Sequence[Node]) -> list[Node]:
    """The nodes that outputs need, in order, the outputs last."""
    needed = {id(node) for node in outputs}
    kept = []
    for node in reversed([*nodes, *outputs]):
        if id(node) in needed:
            kept.append(node)
            needed.update(id(o.value.node) for o in node.operands if o.value.node is not None)
    return kept[::-1]


def uses(nodes: Sequence[Node]) -> Counter[Value]:
    """How often each value is an operand."""
    return Counter(operand.value for node in nodes for operand in node.operands)


def fuse(nodes: list[Node], outputs: Sequence[Node]) -> list[Node]:
    """Rewrites nodes in place; returns those alive afterwards."""
    count = uses(nodes)
    for node in nodes:
        if node.op != "binary" or node.kind != "add":
            continue
        for one, other in (node.operands, node.operands[::-1]):
            if count[one.value] == 1 and one.is_whole and _absorb(node, one.value.node, other):
                break
    return alive([node for node in nodes if node not in outputs], outputs)


def _absorb(node: Node, term: Node | None, other: View) -> bool:
    """Make ``term + other`` one node, if there is one for it."""
    if term is None:
        return False
    if term.op == "mm" and len(term.operands) == 2:
        addend = other.reshape(term.value.shape)
        if addend is None:
            return False
        node.op, node.kind, node.operands = "mm", None, (*term.operands, addend)
        node.value.shape = term.value.shape
        return True
    if term.kind == "mul" and term.op == "binary" and term.value.shape == node.value.shape:
        node.op, node.kind, node.operands = "ternary", "fma", (*term.operands, other)
        return True
    return False
