"""The table of levels: complete, in order, and with numbers that are counted elsewhere too (its text is in tests/golden)."""

from __future__ import annotations

import json

import pytest
import torch

import nestling as nl
import nestling.tree as tree
from nestling.core import Level
from nestling.errors import NestlingError
from nestling.models.describe import size
from nestling.nn.cms import levels_of
from nestling.optim import Scheduled
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
    """Definition 2: one level for each frequency; the higher the level, the lower its frequency."""
    levels = nl.describe(nl.build(recipe, **small(recipe))).levels
    keys = [(level.unit == "step", level.period) for level in levels]
    assert keys == sorted(keys) and "weights" in {level.name for level in levels}
    assert [level.level for level in levels] == [1 + sorted(set(keys)).index(key) for key in keys]


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_weights_are_in_one_level_each(recipe):
    model = nl.build(recipe, **small(recipe))
    trained = [level for level in nl.describe(model).levels if level.unit == "step"]
    assert sum(level.parameters for level in trained) == sum(p.numel() for p in model.parameters())


def test_the_levels_of_a_continuum_memory_system_have_their_own_rows():
    rows = {level.name: level for level in nl.describe(nl.build("hope_gated", **small("hope_gated"))).levels}
    periods = {name.removeprefix("blocks.*.channel."): row.period for name, row in rows.items() if row.unit == "step"}
    assert periods == {"fast": 1, "weights": 1, "middle": 16, "slow": 256}
    assert rows["weights"].level == rows["blocks.*.channel.fast"].level


def test_two_levels_of_one_period_stay_two():
    levels = (Level("fast", 1), Level("also fast", 1))
    names = [row.name for row in nl.describe(nl.build("hope", **small("hope", levels=levels))).levels]
    assert {"blocks.*.channel.fast", "blocks.*.channel.also fast"} <= set(names)


def remembered(optimizer: torch.optim.Optimizer) -> dict[str, tuple[int, float]]:
    """name: (level, period) of all that moves in steps"""
    levels = nl.describe(nl.build("hope_attention", **small("hope_attention")), optimizer).levels
    return {f"{row.name} {row.rule}": (row.level, row.period) for row in levels if row.unit == "step"}


def test_an_optimizer_remembers_on_levels_of_its_own():
    """≻ of definition 2: momentum stands before the weights that it moves, Adam's two moments beside one another."""
    model = nl.build("hope_attention", **small("hope_attention"))
    named = list(model.named_parameters())
    plain = remembered(torch.optim.SGD(model.parameters(), lr=0.1))
    assert plain == {"weights SGD": (2, 1)}, "an optimizer without a schedule moves all at every step"
    adam = remembered(Scheduled(torch.optim.AdamW(model.parameters()), named, levels_of(model)))
    assert adam["AdamW.first moment running mean"] == adam["AdamW.second moment running mean"]
    assert adam["Scheduled.gathered gradient Σ g"] == (2, 1)
    assert adam["weights AdamW"] == (3, 1) and adam["blocks.*.channel.slow AdamW"] == (5, 4)
    matrices = [(name, p) for name, p in named if p.dim() == 2]
    slow = remembered(nl.optim.M3(matrices, period=8))
    assert slow["M3.held update Hold(8)"][1] == 8 and min(period for _, period in slow.values()) == 1
    ours = remembered(nl.optim.SGD(named, lr=0.1, momentum=0.9))
    assert ours["SGD.momentum Momentum(decay=0.9)"] == (2, 1) and ours["weights SGD"] == (3, 1)


def test_what_an_optimizer_remembers_is_counted():
    model = nl.build("hope_attention", **small("hope_attention"))
    optimizer = Scheduled(torch.optim.AdamW(model.parameters()), model.named_parameters(), levels_of(model))
    for _ in range(4):
        model(torch.randint(0, 256, (1, 9)))[0].square().sum().backward()
        optimizer.step()
    told = sum(row.state_bytes for row in nl.describe(model, optimizer).levels if row.unit == "step")
    state = optimizer.state_dict()["state"].values()
    assert told == sum(leaf.nbytes for each in state for leaf in each.values() if leaf.dim())


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_says_every_component(tmp_path, suffix):
    system = nl.describe(nl.build("hope_gated", **small("hope_gated")))
    file = system.plot(tmp_path / f"hope.{suffix}")
    assert file.read_bytes()[:4] == (b"<?xm" if suffix == "svg" else b"\x89PNG")
    if suffix == "svg":
        comments = file.read_text()
        assert all(row.name.replace("blocks.*.", "") in comments for row in system.levels)
        assert file.read_bytes() == system.plot(tmp_path / "again.svg").read_bytes(), "the same picture twice"


def test_a_picture_is_svg_or_png(tmp_path):
    with pytest.raises(NestlingError, match=r"\.svg or \.png"):
        nl.describe(nl.build("transformer", **small("transformer"))).plot(tmp_path / "a.gif")


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
        assert sum(level.name in line.split("  ") for line in str(system).splitlines()) == 1
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
