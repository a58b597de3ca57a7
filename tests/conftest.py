"""One thread and float64 reproducibility for every test."""

import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(int(os.environ.get("PYNODE_TEST_THREADS", "1")))
settings.register_profile(
    "pynode", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("pynode")

# Shells let processes in the background ignore SIGINT, and Python then leaves it so; what is tested
# about Ctrl-C, here and in processes started from here, wants the usual handler.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def float64() -> object:
    """Modules and tensors made in the test are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
