"""Copy what experiments wrote into the pages that show it.

A page marks a place with ``<!-- table: PATH -->`` and ``<!-- end -->``; what stands between them
is replaced by the file PATH (relative to the page). Run from anywhere: ``python docs/refresh.py``;
``--check`` changes nothing and fails where a page is out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(page: Path) -> str:
    """The text of a page with all its tables renewed."""

    def renew(block: re.Match[str]) -> str:
        table = (page.parent / block[2]).read_text().strip()
        return f"{block[1]}{table}\n{block[3]}"

    return BLOCK.sub(renew, page.read_text())


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
