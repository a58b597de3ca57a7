"""Parses every Julia file of the project; part of `make lint`, so that it needs no Julia.

Run as ``python tests/julia/check_syntax.py``; status 1 and a line for each mistake.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import tree_sitter_julia
from tree_sitter import Language, Node, Parser

ROOT = Path(__file__).resolve().parents[2]


def mistakes(source: bytes) -> Iterator[tuple[int, str]]:
    """Line numbers and texts of what the parser could not read."""
    parser = Parser(Language(tree_sitter_julia.language()))
    stack: list[Node] = [parser.parse(source).root_node]
    while stack:
        node = stack.pop()
        if node.is_error or node.is_missing:
            yield node.start_point.row + 1, node.text.decode(errors="replace")[:60]
        elif node.has_error:
            stack.extend(node.children)


def main() -> int:
    files = sorted([*ROOT.glob("julia/**/*.jl"), *ROOT.glob("examples/**/*.jl")])
    found = [(f, line, text) for f in files for line, text in mistakes(f.read_bytes())]
    for file, line, text in found:
        print(f"{file.relative_to(ROOT)}:{line}: cannot be read from here on: {text!r}")
    print(f"{len(files)} Julia files, {len(found)} mistakes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
