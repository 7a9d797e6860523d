"""The continuum memory system: its wirings (NL eqs 70 and 74), and who owns what (its updates stand outside)."""

from __future__ import annotations

import math

import pytest
import torch

from nestling.core import Level
from nestling.errors import NestlingError
from nestling.nn import CMS, Attention, Fused, Gated, Independent, InSequence, Nested, SwiGLU
from nestling.nn.cms import levels_of, schedule

LEVELS = [Level("fast", 1), Level("slow", 8), Level("slower", 64)]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.equation("Nested Learning", 70, 73)
@pytest.mark.parametrize("wiring", [InSequence(), Nested()])
def test_it_is_a_chain_with_a_residual_and_a_norm_between(wiring):
    """NL eq. 70: y = MLP_k(… MLP_1(x)); the block adds x to the whole."""
    cms = CMS(8, LEVELS, wiring=wiring).double()
    x = drawn(2, 5, 8)
    total = x + cms.chain[0](x)[0]
    for norm, mlp in zip(cms.norms, cms.chain[1:], strict=True):
        total = total + mlp(norm(total))[0]
    torch.testing.assert_close(cms(x)[0], total - x, rtol=1e-10, atol=1e-12)


@pytest.mark.equation("Nested Learning", 74)
def test_independent_levels_are_a_learnt_sum():
    """NL eq. 74"""
    cms = CMS(8, LEVELS, wiring=Independent()).double()
    with torch.no_grad():
        cms.gain.copy_(torch.tensor([0.5, -2.0, 3.0]))
    x = drawn(2, 5, 8)
    expected = 0.5 * cms.chain[0](x)[0] - 2 * cms.chain[1](x)[0] + 3 * cms.chain[2](x)[0]
    torch.testing.assert_close(cms(x)[0], expected, rtol=1e-12, atol=1e-12)


def test_gated_levels_are_a_sum_by_softmax():
    cms, x, other = CMS(8, LEVELS, wiring=Gated(others=1)).double(), drawn(2, 5, 8), drawn(2, 5, 8).flip(0)
    branches = [mlp(x)[0] for mlp in cms.chain] + [other]
    scores = x @ cms.gate.weight.mT + cms.gate.bias
    parts = scores.exp() / scores.exp().sum(-1, keepdim=True)
    expected = sum(4 * parts[..., i, None] * branch for i, branch in enumerate(branches))
    torch.testing.assert_close(cms.fused(x, other), expected, rtol=1e-12, atol=1e-12)


def test_a_fused_block_gates_its_mixer_and_its_levels():
    block = Fused(8, Attention(8, 2, 4), LEVELS).double()
    x = drawn(2, 5, 8)
    o, state = block.mixer(block.mixer_norm(x))
    expected = x + block.channel.fused(block.channel_norm(x + o), o)
    y, (got, _) = block(x)
    assert torch.equal(y, expected) and torch.equal(got.key, state.key)


@pytest.mark.parametrize("period", [1, math.inf])
def test_one_level_is_the_mlp_of_a_plain_transformer_block(period):
    """NL §7.1: k = 1, frequency 0"""
    cms = CMS(8, [Level("only", period)])
    x = torch.randn(2, 5, 8)
    plain = SwiGLU(8)
    assert cms.chain[0].state_dict().keys() == plain.state_dict().keys() and len(list(cms.parameters())) == 2
    plain.load_state_dict(cms.chain[0].state_dict())
    assert torch.equal(cms(x)[0], plain(x)[0])


def test_each_level_owns_the_parameters_of_its_own_mixer():
    cms = CMS(8, LEVELS)
    owned = [
        {name for name, _ in cms.named_parameters(prefix="blocks.0.channel") if level.owner(name)}
        for level in cms.schedule
    ]
    assert all(owned) and sum(map(len, owned)) == len(set().union(*owned)) == 6


def test_the_levels_of_a_model_are_named_after_their_place():
    model = torch.nn.ModuleList([CMS(8, LEVELS), torch.nn.Linear(2, 2), CMS(8, LEVELS[:1], wiring=Nested())])
    levels = levels_of(model)
    assert [level.name for level in levels] == ["0.fast", "0.slow", "0.slower", "2.fast"]
    names = [name for name, _ in model.named_parameters()]
    owned = [{name for name in names if level.owner(name)} for level in levels]
    assert all(len(each) == 2 for each in owned) and len(set().union(*owned)) == 8


@pytest.mark.equation("Nested Learning", 72)
def test_a_nested_level_begins_anew_when_the_next_slower_one_is_updated():
    assert [level.reset for level in schedule(LEVELS, Nested(0.25))] == [8, 64, None]
    assert {level.carry for level in schedule(LEVELS, Nested(0.25))[:2]} == {0.25}
    assert [level.reset for level in schedule([LEVELS[0], Level("never", math.inf)], Nested())] == [None, None]
    assert [level.reset for level in schedule(LEVELS)] == [None, None, None]


def test_levels_share_the_width_of_one_mixer():
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(CMS(192, LEVELS[:2])) == pytest.approx(count(SwiGLU(192)), rel=0.01)


@pytest.mark.parametrize(
    ("levels", "wiring", "said"),
    [
        ([], InSequence(), "at least one level"),
        ([Level("a", 1), Level("a", 2)], InSequence(), "different names"),
        ([Level("a", 4), Level("b", 2)], InSequence(), "from fast to slow"),
        ([Level("a", 4), Level("b", 6)], Nested(), "multiple of the faster"),
    ],
)
def test_what_cannot_be_is_refused(levels, wiring, said):
    with pytest.raises(NestlingError, match=said):
        CMS(8, levels, wiring=wiring)
