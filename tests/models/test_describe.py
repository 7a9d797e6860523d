"""The table of levels: complete, in order, and with numbers that are counted elsewhere too (its text is in tests/golden)."""

from __future__ import annotations

import json

import pytest
import torch

import nestling as nl
import nestling.tree as tree
from nestling.models.describe import size
from tests.laws.subjects import RECIPES, small


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_numbers_are_those_of_the_model(recipe):
    model = nl.build(recipe, **small(recipe))
    system = nl.describe(model)
    assert system.parameters == sum(p.numel() for p in model.parameters())
    assert system.state_bytes == tree.nbytes(model.initial_state(1)) == tree.nbytes(model.initial_state(3)) / 3
    held = sum(level.state_bytes for level in system.levels)
    assert 0.9 * system.state_bytes < held <= system.state_bytes


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_ordered_by_frequency_within_tokens_and_steps(recipe):
    levels = nl.describe(nl.build(recipe, **small(recipe))).levels
    keys = [(level.unit == "step", level.period) for level in levels]
    assert keys == sorted(keys) and levels[-1].name == "weights"


@pytest.mark.parametrize("recipe", ["titans_lmm", "hope"])
def test_a_memory_is_counted_in_what_is_written(recipe):
    """parameters of a row: numbers that one sequence writes; its state has them as dual and anchor (and momentum)."""
    model = nl.build(recipe, **small(recipe))
    rows = [level for level in nl.describe(model).levels if level.unit == "token"]
    written = sum(leaf.numel() for path, leaf in tree.items(model.initial_state(1)) if ".dual." in path)
    assert sum(row.parameters for row in rows) == written


def test_layers_that_differ_keep_their_rows():
    model = nl.build("titans_lmm", **small("titans_lmm"))
    assert [level.name for level in nl.describe(model).levels] == ["blocks.*.mixer.memory", "weights"]
    model.blocks[0].mixer.frozen()
    rows = {level.name: level.period for level in nl.describe(model).levels}
    assert rows == {"blocks.0.mixer.memory": float("inf"), "blocks.1.mixer.memory": 16, "weights": 1}


@pytest.mark.parametrize("recipe", RECIPES)
def test_json_and_text_say_the_same(recipe):
    system = nl.describe(nl.build(recipe, **small(recipe)).frozen())
    whole = json.loads(system.json())
    assert [row["name"] for row in whole["levels"]] == [level.name for level in system.levels]
    for row, level in zip(whole["levels"], system.levels, strict=True):
        assert row["period"] == (None if level.period == float("inf") else level.period)
        assert sum(level.name in line for line in str(system).splitlines()) == 1
    assert whole["parameters"] == system.parameters and f"{system.parameters:,}" in str(system)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "-"), (1, "1 B"), (1023, "1,023 B"), (1024, "1.0 KiB"), (1024**2, "1.0 MiB"), (5 * 1024**4, "5,120.0 GiB")],
)
def test_bytes_for_people(count, text):
    assert size(count) == text


def test_a_size_that_was_changed_says_so():
    """The name of a size is that of its shape; the vocabulary is not part of it."""
    assert nl.describe(nl.build("hope", vocab_size=50)).model == "hope (tiny)"
    assert nl.describe(nl.build("hope", dim=64)).model == "hope (tiny, changed)"
    assert nl.describe(nl.build("retnet", conv=2)).model == "retnet (tiny, changed)"


LENGTHS = (1, 40, 200, 1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_it_says_a_sequence_carries_is_what_a_stream_carries(recipe):
    """Bytes of state: those of the table before the first token, and those of the stream however much was read."""
    model = nl.build(recipe, vocab_size=50, **small(recipe))
    said = nl.describe(model).state_bytes
    state = model.initial_state(1)
    with torch.no_grad():
        for length in LENGTHS:
            _, state = model(torch.randint(0, 50, (1, length)), state)
            stored = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in tree.leaves(state)}
            assert tree.nbytes(state) == said, length
            # What a leaf is a view of is kept alive with it; a token of a window of eight may leave one more.
            assert sum(stored.values()) <= 1.15 * said, length
