"""round-trip and fork: a state can be saved, loaded, copied and refused."""

from __future__ import annotations

import pytest
import torch

import nestling as nl
import nestling.tree as tree
from nestling.errors import NestlingError
from nestling.models.belongs import shapes
from tests.laws.subjects import EVERYTHING, RECIPES, VOCABULARY, assert_equal, build, call, draw, small, subject


@pytest.mark.parametrize("name", EVERYTHING)
def test_save_then_load_is_bit_equal(name, tmp_path):
    module = subject(name)
    x = draw(module, 2, 21)
    with torch.no_grad():
        _, state = call(module, x)
        tree.save(tmp_path / "state", state, {"at": "21"})
        loaded, metadata = tree.load(tmp_path / "state", module.initial_state(2))
        assert metadata == {"at": "21"}
        assert_equal(loaded, state)
        y, after = call(module, x, state)
        z, again = call(module, x, loaded)
    assert torch.equal(y, z)
    assert_equal(again, after)


def others(recipe: str) -> list[tuple[str, nl.LM]]:
    """Models whose states must not be taken for one of ``recipe``; where all paths and shapes agree, the fingerprint decides."""
    own = shapes(build(recipe).initial_state(1))
    models = [nl.build(name, vocab_size=VOCABULARY, **small(name)) for name in RECIPES]
    recipes = [("recipe", model) for model in models if shapes(model.initial_state(1)) != own]
    wider = nl.build(recipe, vocab_size=VOCABULARY, **small(recipe, dim=64))
    deeper = nl.build(recipe, vocab_size=VOCABULARY, **small(recipe, layers=3))
    return [*recipes, ("width", wider), ("depth", deeper)]


@pytest.mark.parametrize("name", RECIPES)
def test_a_state_of_another_model_is_refused_with_the_first_difference(name, tmp_path):
    model = build(name)
    with torch.no_grad():
        _, state = model(draw(model, 1, 5))
    tree.save(tmp_path / "state", state)
    own = {path for path, _ in tree.items(state)}
    for what, other in others(name):
        other.double()
        theirs = {path for path, _ in tree.items(other.initial_state(1))}
        with pytest.raises(NestlingError) as raised:
            tree.load(tmp_path / "state", other.initial_state(1))
        said = str(raised.value)
        assert "\n" not in said and "another model" in said, (what, said)
        assert any(path in said for path in own | theirs), (what, said)
    with pytest.raises(NestlingError, match="float64"):
        tree.load(tmp_path / "state", tree.map(lambda leaf: leaf.float(), model.initial_state(1)))


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_refuses_a_state_that_is_not_its_own(name):
    model = build(name)
    tokens = draw(model, 1, 5)
    for what, other in others(name):
        _, state = other.double()(tokens)
        with pytest.raises(NestlingError) as raised:
            model(tokens, state)
        assert "\n" not in str(raised.value), what
    _, state = model(draw(model, 2, 5))
    for batch in (1, 3):
        with pytest.raises(NestlingError, match=f"2.*{batch}"):
            model(draw(model, batch, 5), state)


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_a_child_writes_never_reaches_its_parent_or_sibling(name):
    module = subject(name)
    x = draw(module, 2, 21)
    _, state = call(module, x)
    one, other = tree.fork(state), tree.fork(state)
    for a, b, c in zip(*(tree.leaves(t) for t in (state, one, other)), strict=True):
        pointers = {leaf.untyped_storage().data_ptr() for leaf in (a, b, c) if leaf.numel()}
        assert len(pointers) == (3 if a.numel() else 0)
        assert not b.requires_grad and b.grad_fn is None
    with torch.no_grad():
        expected, _ = call(module, x, state)
        before = tree.fork(state)
        _, written = call(module, x.flip(1), one)
        for leaf in (*tree.leaves(one), *tree.leaves(written)):
            leaf.zero_()
        assert_equal(state, before)
        assert_equal(other, before)
        assert torch.equal(call(module, x, other)[0], expected)


@pytest.mark.parametrize("name", EVERYTHING)
def test_rows_of_an_initial_state_share_nothing(name):
    """Writing into one row in place does not write into another."""
    state = subject(name).initial_state(2)
    for path, leaf in tree.items(tree.detach(state)):
        if leaf.numel():
            kept = leaf[1].clone()
            leaf[0] += 1
            assert torch.equal(leaf[1], kept), path
            leaf[0] -= 1


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", EVERYTHING)
def test_a_state_shares_nothing_with_the_parameters(name, batch):
    """A step of an optimizer in place leaves what was read before as it was read."""
    module = build(name)
    with torch.no_grad():
        states = [module.initial_state(batch)]
        states += [call(module, draw(module, batch, length))[1] for length in (1, 11)]
        before = tree.fork(states)
        for parameter in module.parameters():
            parameter += 1
    assert_equal(states, before)
