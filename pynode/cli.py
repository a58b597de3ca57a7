"""The command ``pynode``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pynode
from pynode.engines.julia import runtime
from pynode.engines.julia.runtime import OPTIONAL
from pynode.errors import PynodeError
from pynode.experiments import EXPERIMENTS
from pynode.fitting import arguments as fitting
from pynode.train.distributed import process_group

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own).

    Returns:
        The exit status: 0, 2 for a mistake in the arguments or any other PynodeError (its message
        on stderr, without a traceback), 130 after Ctrl-C.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as end:  # argparse has printed help or the mistake
        return end.code if isinstance(end.code, int) else 0
    try:
        with process_group():
            return arguments.run(arguments)
    except PynodeError as error:
        print(f"pynode: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"\npynode: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pynode", description="Neural ODEs for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    experiment = commands.add_parser("experiment", help="run an experiment")
    names = experiment.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, entry in EXPERIMENTS.items():
        module = entry.load()
        sub = names.add_parser(name, help=entry.summary, description=f"{entry.summary}.")
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)

    fit = commands.add_parser(
        "fit", help="fit a model to an irregular table", description=fitting.__doc__
    )
    fitting.add_arguments(fit)
    fit.set_defaults(run=fitting.run)

    julia = commands.add_parser("julia", help="the Julia engine: is it there, install it, test it")
    julia.set_defaults(run=_julia_status)
    verbs = julia.add_subparsers(dest="verb", metavar="VERB")
    verbs.add_parser("status", help="what there is (the default); starts and downloads nothing")
    install = verbs.add_parser("install", help="find or download Julia and its packages")
    install.add_argument(
        "--with",
        dest="packages",
        nargs="+",
        default=[],
        choices=sorted(OPTIONAL),
        help="optional packages: DiffEqGPU for ensembles, CUDA for GPUs",
    )
    install.set_defaults(run=_julia_install)
    verbs.add_parser("test", help="run the Julia package's own tests").set_defaults(run=_julia_test)

    for name, run, text in (
        ("solvers", _solvers, "list the solvers"),
        ("sensitivities", _sensitivities, "list the ways to compute gradients"),
        ("version", _version, "print the version"),
    ):
        commands.add_parser(name, help=text).set_defaults(run=run)
    return parser


def _solvers(_: argparse.Namespace) -> int:
    rows = [
        (s.name, str(s.order), _yes(s.adaptive), _yes(s.stiff), ", ".join(s.engines), s.reference)
        for s in pynode.solvers()
    ]
    _print_table(("solver", "order", "adaptive", "stiff", "engines", "reference"), rows)
    return 0


def _sensitivities(_: argparse.Namespace) -> int:
    rows = [(s.name, ", ".join(s.engines), s.summary, s.reference) for s in pynode.sensitivities()]
    _print_table(("sensitivity", "engines", "summary", "reference"), rows)
    return 0


def _julia_status(_: argparse.Namespace) -> int:
    found = runtime.status()
    print(found)
    return 0 if found.ready else 1


def _julia_install(arguments: argparse.Namespace) -> int:
    print(runtime.install(tuple(arguments.packages)))
    return 0


def _julia_test(_: argparse.Namespace) -> int:
    return runtime.test()


def _version(_: argparse.Namespace) -> int:
    import torch

    print(f"pynode {pynode.__version__} (torch {torch.__version__})")
    return 0


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
