"""Tests marked ``julia`` run where `pynode julia status` says ready, and say why where not."""

import pytest

from pynode import julia


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("julia")]
    if not marked:
        return
    found = julia.status()
    if not found.ready:
        skip = pytest.mark.skip(reason=f"no Julia here: {found.problem.split('. ')[0]}")
        for item in marked:
            item.add_marker(skip)
