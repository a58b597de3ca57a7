"""Equations from values: as few terms of many as explain them."""

from __future__ import annotations

import itertools
import math
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


def sparse_fit(terms: Tensor, values: Tensor, tolerance: float) -> Tensor:
    """Coefficients (M, K) with values (n, K) ≈ terms (n, M) @ coefficients, as few as will do.

    Of all choices of terms the smallest whose least-squares residual is within the tolerance, and
    of those of that size the best: exact where thresholding (Brunton, Proctor, Kutz 2016,
    Discovering governing equations from data by sparse identification) drops a term that its
    neighbours can mimic on the data at hand. 2^M fits, so for small libraries.

    Args:
        terms, values: one row for each sample.
        tolerance: largest residual, as a share of the values' root mean square. Where no choice
            is within it, all terms stay.
    """
    coefficients = torch.zeros(terms.shape[1], values.shape[1], dtype=values.dtype)
    for k in range(values.shape[1]):
        chosen, solved = _fewest(terms, values[:, k : k + 1], tolerance)
        coefficients[chosen, k] = solved
    return coefficients


def _fewest(terms: Tensor, values: Tensor, tolerance: float) -> tuple[list[int], Tensor]:
    count = terms.shape[1]
    for size in range(1, count + 1):
        best: tuple[float, list[int], Tensor] = (math.inf, [], values)
        for chosen in map(list, itertools.combinations(range(count), size)):
            solved = torch.linalg.lstsq(terms[:, chosen], values, driver="gelsd").solution
            off = float((terms[:, chosen] @ solved - values).norm() / values.norm())
            if off < best[0]:
                best = off, chosen, solved[:, 0]
        if best[0] <= tolerance or size == count:
            break
    return best[1], best[2]


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
