"""describe: the table of levels of every recipe is golden text.

A change of the table is a change of what a model is; read the difference, then write the new text with::

    NESTLING_GOLDEN=write python -m pytest tests/golden
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import nestling as nl
from tests.laws.subjects import RECIPES, small

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_table_of_levels_is_golden(recipe):
    file = FOLDER / f"{recipe}.txt"
    text = f"{nl.describe(nl.build(recipe, **small(recipe)))}\n"
    if os.environ.get("NESTLING_GOLDEN") == "write":
        file.write_text(text, "utf-8")
    assert file.is_file(), f"no golden text for {recipe}: write it with NESTLING_GOLDEN=write"
    assert text == file.read_text("utf-8")


def test_there_is_no_golden_text_without_a_recipe():
    assert {file.stem for file in FOLDER.glob("*.txt")} == set(RECIPES)
