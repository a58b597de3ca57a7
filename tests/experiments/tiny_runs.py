"""Experiments by the command line, at sizes that take seconds."""

import json
import re

from pynode.cli import main
from pynode.experiments import EXPERIMENTS


def run(monkeypatch, out, name, scale, *options):
    """Run an experiment with ``scale`` for its demo one; its rows and the text of its table."""
    monkeypatch.setitem(EXPERIMENTS[name].load().SCALES, "demo", scale)
    assert main(["experiment", name, "--out", str(out), "--jobs", "1", *options]) == 0
    assert (out / "figure.png").stat().st_size > 20_000
    text = (out / "table.md").read_text()
    assert not re.search(r"\bnan\b", text)
    return json.loads((out / "metrics.json").read_text())["rows"], text
