import os

import pytest


@pytest.fixture
def tiny(tmp_path):
    """Arguments of a spiral experiment that takes a second; more options can be added."""

    def arguments(*more: str, models: tuple[str, ...] = ("rnn_t", "last_value")) -> list[str]:
        size = ["--series", "20", "--epochs", "1", "--observed", "10", "--batch-size", "8"]
        where = ["--out", os.fspath(tmp_path / "out"), "--jobs", "1"]
        return ["experiment", "spiral", *size, *where, "--models", *models, *more]

    return arguments
