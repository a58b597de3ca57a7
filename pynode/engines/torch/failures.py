"""Failed solves in words: where, why, and what to try."""

from __future__ import annotations

from pynode.engines.torch.integrate import End, first_non_finite
from pynode.options import SolveOptions
from pynode.solution import Retcode
from pynode.state import StateLayout

SEVERITY = (Retcode.MAX_STEPS, Retcode.DT_UNDERFLOW, Retcode.NON_FINITE)
"""From bad to worst."""

NAMED = 3
"""Samples whose failure is told in full."""


def explain(
    end: End, options: SolveOptions, layout: StateLayout, of: str = "the solve"
) -> tuple[int | None, str]:
    """The sample to blame, where there is one, and the message."""
    sample, place = None, ""
    began_badly = first_non_finite(end.z)
    entry = end.entry if began_badly is None else began_badly
    if entry is not None and entry < layout.size:
        sample, where = layout.locate(entry)
        place = f" ({where})"
    method = f"{options.solver}, rtol={options.rtol}, atol={options.atol}"
    if not options.is_adaptive:
        steps = "a grid of steps" if options.grid else f"dt={options.dt:g}"
        method = f"{options.solver}, {steps}"
    at = f"{of} with {method} stopped at t={end.t:.6g}"
    if end.retcode is Retcode.MAX_STEPS:
        cause = (
            f"max_steps={options.max_steps} attempted steps were not enough (the next would have "
            f"had size {end.dt:.2g}). If the problem is stiff, use a stiff solver; else raise "
            "max_steps or loosen rtol and atol"
        )
    elif end.retcode is Retcode.DT_UNDERFLOW:
        cause = (
            f"the step size fell to {end.dt:.2g}, the spacing of floating-point numbers there. "
            "The solution may blow up near that time, or the field jump: check the field, give "
            "tstops=[...] where it jumps, or loosen rtol and atol"
        )
        if options.sensitivity == "reversible":
            cause += (
                ". Or the two states that sensitivity='reversible' steps have drifted apart, as "
                "they do where solutions contract fast or over long spans: use 'discrete', with "
                "checkpoints=k if memory is short"
            )
    elif end.retcode is Retcode.NOT_CONVERGED:
        cause = (
            f"Newton's iteration does not converge in a step of size {end.dt:.2g}. "
            + ("" if options.is_adaptive else "Lessen dt, or use an adaptive solver. ")
            + "Is jac right, if it was given? Are samples independent of each other, and the "
            "field smooth there? A Rosenbrock solver (rodas5p) needs no iteration"
        )
    elif began_badly is not None:
        cause = (
            f"the state it began with holds NaN or infinity{place}. Look at what z0 is computed "
            "from (in a backward pass: at the gradient of the loss)"
        )
    elif options.is_adaptive:
        cause = (
            f"the field returns NaN or infinity{place} however small the step. Evaluate the field "
            "there; look for log, sqrt or division at the edge of their domain, or exploding "
            "parameters"
        )
    else:
        cause = (
            f"the next step of size {end.dt:.2g} gives NaN or infinity{place}. Fixed steps may be "
            "too large for the problem: lessen dt or use an adaptive solver; else look for log, "
            "sqrt or division at the edge of their domain"
        )
    return sample, f"{at}: {cause}."


def explain_samples(
    ends: dict[int, End], options: SolveOptions, layout: StateLayout
) -> tuple[int, str, dict[int, str]]:
    """Failures of samples that step by themselves.

    Returns:
        The first of the samples that failed worst, the message, and one for each sample.
    """
    one = layout.of_rows(1)
    messages = {
        row: explain(end, options, one, of=f"sample {row}")[1].replace("(sample 0, ", "(")
        for row, end in sorted(ends.items())
    }
    worst = min(messages, key=lambda row: (-SEVERITY.index(ends[row].retcode), row))
    return worst, together(messages, worst, layout.rows), messages


def together(messages: dict[int, str], worst: int, samples: int | None) -> str:
    """One message for samples that failed, that of the ``worst`` first."""
    if len(messages) == 1:
        return messages[worst]
    named = [worst, *(row for row in messages if row != worst)]
    told = " ".join(messages[row] for row in named[:NAMED])
    rest = named[NAMED:]
    more = f" So did samples {', '.join(map(str, rest[:10]))}" if rest else ""
    more += f" and {len(rest) - 10} more" if len(rest) > 10 else ""
    head = f"{len(messages)} of {samples} samples failed, the others are complete."
    if len(messages) == samples:
        head = f"All {samples} samples failed."
    return f"{head} {told}{more + '.' if more else ''}"
