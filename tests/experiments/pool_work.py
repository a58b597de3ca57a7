"""Work for worker processes, which must be able to import it."""

import os
import time
from pathlib import Path

import torch

from pynode.errors import InputError


def square(item, report):
    report("working")
    if item < 0:
        raise InputError(f"{item} is negative")
    return item**2, torch.get_num_threads()


def die(item, report):
    os._exit(7)


def wait_and_save(path, report):
    report("ready")
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.3)  # a second signal would cut this short
        Path(path).write_text("saved")
        raise
