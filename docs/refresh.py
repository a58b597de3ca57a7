"""Copy what experiments wrote into the pages that show it.

A page marks a place with ``<!-- from: PATH#HEADING -->`` and ``<!-- end -->``; what stands between
them is replaced by the section HEADING of the file PATH (relative to the page). Run from anywhere:
``python docs/refresh.py``; ``--check`` changes nothing and fails where a page is out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- from: (\S+?)#(.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(page: Path) -> str:
    """The text of a page with all its tables renewed."""

    def renew(block: re.Match[str]) -> str:
        return f"{block[1]}{section(page.parent / block[2], block[3])}\n{block[4]}"

    return BLOCK.sub(renew, page.read_text())


def section(file: Path, heading: str) -> str:
    """The text below a heading of a Markdown file, up to the next heading."""
    parts = re.split(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    if heading not in found:
        raise SystemExit(f"{file} has no section {heading!r}; it has {', '.join(found)}")
    return found[heading].strip()


def main(arguments: list[str]) -> int:
    stale = [page for page in PAGES if refreshed(page) != page.read_text()]
    if "--check" in arguments:
        for page in stale:
            print(f"{page.relative_to(ROOT)} is out of date: run python docs/refresh.py")
        return bool(stale)
    for page in stale:
        page.write_text(refreshed(page))
        print(f"renewed {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
