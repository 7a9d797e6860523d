"""The language model: what goes in and out, what it refuses, and what names it."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

import nestling as nl
from nestling.errors import NestlingError
from nestling.models import LM
from nestling.recipes import from_spec
from tests.laws.subjects import RECIPES, small


def tiny(recipe: str = "titans_lmm", **changes) -> LM:
    return nl.build(recipe, vocab_size=50, **{**small(recipe), **changes})


@pytest.mark.parametrize("recipe", RECIPES)
def test_tokens_go_in_and_logits_come_out(recipe):
    model = tiny(recipe)
    logits, state = model(torch.randint(0, 50, (3, 7)))
    assert logits.shape == (3, 7, 50) and logits.dtype == torch.float32
    assert isinstance(state, tuple) and len(state) == 2
    logits, state = model(torch.randint(0, 50, (3, 1), dtype=torch.int32), state)
    assert logits.shape == (3, 1, 50)


def test_a_tied_head_is_the_embedding():
    tied, own = tiny(tied=True), tiny(tied=False)
    assert tied.head is None and own.head is not None
    assert sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in tied.parameters()) == 50 * 32
    tokens = torch.randint(0, 50, (1, 4))
    seen = {}
    tied.norm.register_forward_hook(lambda module, args, y: seen.update(y=y))
    torch.testing.assert_close(tied(tokens)[0], F.linear(seen["y"], tied.embedding.weight))


def test_residual_branches_start_small_enough_for_any_depth():
    """The stream after many blocks is of the size of the stream after few."""
    tokens, sizes = torch.randint(0, 50, (2, 16)), []
    for layers in (1, 12):
        torch.manual_seed(0)
        model = tiny("transformer", layers=layers)
        model.norm.register_forward_hook(lambda module, args, y: sizes.append(args[0].norm().item()))
        with torch.no_grad():
            model(tokens)
    assert sizes[1] < 3 * sizes[0]


BAD = [
    (lambda t: (t.float(),), "type int64 with B, T ≥ 1"),
    (lambda t: (t[0],), "tokens \\(B, T\\)"),
    (lambda t: (t[:, :0],), "T ≥ 1, got \\(2, 0\\)"),
    (lambda t: (t[:0],), "B, T ≥ 1, got \\(0, 5\\)"),
    (lambda t: (t + 50,), "outside the model's vocabulary of 50"),
    (lambda t: (t - 100,), "token -100 is outside"),
    (lambda t: (t, None, t > 0, t), "starts must be bool"),
    (lambda t: (t, None, t[:, 1:] > 0), "valid must be bool of the shape of tokens \\(2, 5\\), got \\(2, 4\\)"),
    (lambda t: (t, None, t), "valid must be bool"),
    (lambda t: (t, ()), "another model"),
    (lambda t: (t, (1, 2)), "another model"),
    (lambda t: (t, {"a": torch.zeros(2, 3)}), "another model"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_refused_in_one_line(change, message):
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(NestlingError, match=message) as raised:
        tiny()(*change(tokens))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_spec_builds_the_same_model(recipe):
    model = tiny(recipe, expand=2, tied=False)
    again = from_spec(model.spec)
    assert again.config == model.config and again.fingerprint == model.fingerprint and again.spec == model.spec
    again.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 50, (1, 9))
    assert torch.equal(again(tokens)[0], model(tokens)[0])


def test_a_spec_is_made_of_json_values():
    model = tiny("hope", levels=(nl.Level("only", 4.0),))
    assert from_spec(json.loads(json.dumps(model.spec))).config == model.config


@pytest.mark.parametrize("config", ["Level('a', 1)", "3", "Config('x', 'tiny', 8, 8, 1, 1)", "open('x')"])
def test_a_spec_of_something_else_is_refused(config):
    with pytest.raises(NestlingError):
        from_spec({"recipe": "hope", "config": config})


def test_fingerprints_tell_models_apart():
    models = [tiny(), tiny(dim=64), tiny(layers=3), tiny(conv=3), tiny(tied=False), tiny("hope"), tiny().double()]
    assert len({model.fingerprint for model in models}) == len(models)
    memory = nl.Memory(nl.Matrix())
    assert tiny(memory=memory).fingerprint != tiny(memory=nl.Memory(nl.Matrix(), period=2)).fingerprint
    assert tiny().fingerprint == tiny().fingerprint and len(tiny().fingerprint) == 64
