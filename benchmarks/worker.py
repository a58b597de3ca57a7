"""The process that measures, started by ``run.py`` with a job as JSON; writes a journal.

Threads of torch, XLA and Julia are fixed by the environment before this process starts.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, all_cases
from benchmarks.contenders import FORWARD, Contender, all_contenders, kind_of
from benchmarks.measure import clean, keep_freed_memory, measure_case, peak_memory
from benchmarks.reference import reference


class Journal:
    """Lines of JSON; what was begun last is known even if this process dies."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a")

    def write(self, **line: Any) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def begin(self, case: Case, contender: str, mode: str) -> None:
        self.write(event="begin", case=case.name, contender=contender, mode=mode)


def present(job: dict[str, Any], journal: Journal, contenders: list[Contender]) -> list[Contender]:
    """The contenders that can run, started; the others are written down with the reason."""
    found = []
    for contender in contenders:
        if contender.name not in job["contenders"]:
            continue
        journal.write(event="begin", case="", contender=contender.name, mode="start")
        why = contender.missing(job["device"])
        if not why:
            try:
                contender.start(job["threads"])
            except Exception as error:
                why = f"it did not start: {error}"
        if why:
            journal.write(event="missing", contender=contender.name, why=clean(why))
        else:
            found.append(contender)
    return found


def entries(job: dict[str, Any], case: Case, contenders: list[Contender]) -> list[Any]:
    """(contender, mode) of a case, without those that were given up before."""
    skip, kinds = {tuple(x) for x in job["skip"]}, job["kinds"]
    modes = [(c, m) for c in contenders for m in c.modes(case)]
    if kinds is not None:
        modes = [(c, m) for c, m in modes if (kind_of(m) or FORWARD) in kinds]
    return [(c, m) for c, m in modes if (case.name, c.name, m) not in skip]


def main(job: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(job["threads"])
    keep_freed_memory(job["what"] == "time")
    warnings.filterwarnings("ignore")
    journal = Journal(Path(job["journal"]))
    contenders = present(job, journal, all_contenders())
    cases = [case for case in all_cases(job["quick"]) if case.name in job["cases"]]
    for case in cases:
        if job["what"] == "memory":
            for contender, mode in entries(job, case, contenders):
                journal.begin(case, contender.name, mode)
                try:
                    size = peak_memory(contender, case, mode, job["device"])
                except Exception as error:
                    journal.write(event="failed", why=clean(str(error)))
                    continue
                journal.write(
                    event="memory", case=case.name, contender=contender.name, mode=mode, bytes=size
                )
        else:
            journal.write(event="begin", case=case.name, contender="scipy", mode="reference")
            truth = reference(case, Path(job["cache"]))
            rows = measure_case(
                case,
                entries(job, case, contenders),
                truth,
                job["threads"],
                job["device"],
                job["budget"],
                journal.begin,
                job["patience"],
            )
            journal.write(event="case", case=case.name, rows=[row.as_dict() for row in rows])
        journal.write(event="done", case=case.name)
    journal.write(event="end")
    # Julia's and XLA's threads need not be taken down one by one.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
