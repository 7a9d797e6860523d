"""What holds for every test: one thread for each worker, the same random numbers each time, no display, a GPU only where there is one."""

from __future__ import annotations

import os

# Before torch is imported, and inherited by every process that a test starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import random
import signal

import hypothesis
import numpy
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Before Triton is imported: where there is no GPU, kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A job started in the background ignores interrupts, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples are derived from the test itself: the same ones each time, never a timing.
hypothesis.settings.register_profile("nestling", deadline=None, derandomize=True, max_examples=25, print_blob=True)
hypothesis.settings.load_profile("nestling")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
