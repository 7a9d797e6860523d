"""Every example runs by itself, from any folder, and says something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.sources import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


LONG = ("05_forecast_a_time_series.py", "06_dna.py")
"""They train for half a minute"""


@pytest.mark.parametrize(
    "example",
    [pytest.param(e, id=e.name, marks=[pytest.mark.slow] if e.name in LONG else []) for e in EXAMPLES],
)
def test_the_example_runs(example: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": paths, "NESTLING_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
