"""Each floor imports only the floors below it: the contracts of pyproject.toml, checked by import-linter."""

from __future__ import annotations

import pytest
from importlinter.cli import lint_imports

from tests.house.sources import ROOT


def test_no_floor_imports_upwards(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert status == 0, capsys.readouterr().out
