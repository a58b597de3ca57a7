"""Equations from values: few terms of many, by sequentially thresholded least squares."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def monomials(x: Tensor, names: Sequence[str], degree: int) -> tuple[Tensor, list[str]]:
    """All products of at most ``degree`` coordinates of x (n, D): (n, M), and what they are."""
    columns, labels = [torch.ones_like(x[:, 0])], ["1"]
    for order in range(1, degree + 1):
        for chosen in itertools.combinations_with_replacement(range(x.shape[1]), order):
            columns.append(x[:, list(chosen)].prod(1))
            labels.append("".join(names[i] for i in chosen))
    return torch.stack(columns, 1), labels


def sparse_fit(terms: Tensor, values: Tensor, threshold: float, rounds: int = 20) -> Tensor:
    """Coefficients (M, K) with values (n, K) ≈ terms (n, M) @ coefficients, most of them zero.

    Brunton, Proctor, Kutz 2016, Discovering governing equations from data by sparse identification
    of nonlinear dynamical systems: least squares, then again without the terms whose
    contribution is small, until none is.

    Args:
        terms, values: one row for each sample.
        threshold: a term is dropped whose root mean square is below this share of the value's.
        rounds: at most.
    """
    coefficients = torch.zeros(terms.shape[1], values.shape[1], dtype=values.dtype)
    sizes = terms.square().mean(0).sqrt()
    for k in range(values.shape[1]):
        kept = torch.ones(terms.shape[1], dtype=torch.bool)
        least = threshold * values[:, k].square().mean().sqrt()
        for _ in range(rounds):
            solved = torch.linalg.lstsq(terms[:, kept], values[:, k : k + 1], driver="gelsd")
            found = torch.zeros_like(coefficients[:, k])
            found[kept] = solved.solution[:, 0]
            smaller = kept & (found.abs() * sizes >= least)
            done = bool((smaller == kept).all()) or not smaller.any()
            kept = smaller
            if done:
                break
        coefficients[:, k] = torch.where(kept, found, torch.zeros_like(found))
    return coefficients


def in_words(coefficients: Tensor, labels: Sequence[str]) -> str:
    """One equation's right-hand side, as in "0.80 uv − 0.10 u"."""
    found = [(float(c), label) for c, label in zip(coefficients, labels, strict=True) if c]
    if not found:
        return "0"
    parts = []
    for i, (value, label) in enumerate(found):
        sign = "−" if value < 0 else "" if i == 0 else "+"
        gap = " " if i else ""
        name = "" if label == "1" else f" {label}"
        parts.append(f"{sign}{gap}{abs(value):.2f}{name}")
    return " ".join(parts)
