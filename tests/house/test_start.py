"""The command line answers ``--help`` at once: it does not load torch to print text."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.house.sources import ROOT

PROGRAM = """
import sys
from nestling.cli import main

try:
    status = main()
except SystemExit as stopped:
    status = stopped.code
heavy = {"torch", "numpy", "matplotlib", "tensorboard", "tokenizers"} & set(sys.modules)
sys.exit(f"--help loaded {sorted(heavy)}" if heavy else status)
"""


def test_help_does_not_load_torch() -> None:
    paths = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--help"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
    assert "demo" in done.stdout
