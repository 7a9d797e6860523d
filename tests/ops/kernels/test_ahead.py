"""The kernels compile for a GPU (sm_90a), where none is: Triton's own compiler and assembler say what they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.house.sources import ROOT

SHARED = 227 * 1024
"""Bytes of shared memory that a program can have on an H100 or H200"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "spilt"),
    [
        ("prepare:64:64", 0),
        ("advance:64:64", 0),
        ("look:64:64", 0),
        ("told:64:64", 0),
        ("retreat:64:64", 0),
        ("derive:64:64", 400),
        ("tables:16:64", 0),
        ("tables_back:16:64", 0),
        ("walk:16:64", 600),
        ("retrace:16:64", 5000),
    ],
)
def test_kernels_compile_for_a_gpu(kernel, spilt, kernels):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-W", "ignore", "-m", "tests.ops.kernels.ahead", kernel]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["spilt"] <= spilt
    assert said["shared"] <= SHARED
