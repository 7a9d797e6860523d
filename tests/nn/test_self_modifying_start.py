"""Heads that begin where a state is held: they add up, they turn around, and nothing in them fades."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from nestling.core import Delta, Matrix
from nestling.errors import NestlingError
from nestling.nn import SelfForm, SelfModifying, SelfRange, Tracking, Within, unit

LINEAR = {"memory": Matrix(), "projections": Matrix(), "retention": Delta(), "value": Within()}
RANGES = SelfRange(slow=0.0, fast=0.0, retain=14.0, projections=0.01)
START = torch.diag(torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.float64))


@pytest.fixture
def layer() -> SelfModifying:
    torch.manual_seed(0)
    form = SelfForm(**LINEAR, start=Tracking(additive=2, reflecting=1))
    made = SelfModifying(32, 4, 1, form=form, conv=1, ranges=RANGES).double()
    with torch.no_grad():
        made.conv.weight.fill_(1.0)
    return made


def written(layer: SelfModifying, x: Tensor) -> Tensor:
    """The main memories after a stream, (H, out, in)."""
    return layer(x)[1].memory.dual["w1"][0]


def test_additive_heads_add_up_whatever_the_order(layer: SelfModifying) -> None:
    x = 3 * torch.randn(1, 20, 32, dtype=torch.float64).sign()
    there, mixed = written(layer, x), written(layer, x[:, torch.randperm(20)])
    apart = (there - mixed).abs().amax((1, 2))
    # Not to the last digit: α is 1 - 10⁻⁶ for what was written 20 tokens ago.
    assert apart[:2].max() < 1e-3 < 1e-2 < apart[2:].min()


def test_additive_heads_grow_in_proportion_to_the_length(layer: SelfModifying) -> None:
    token = 3 * torch.randn(1, 1, 32, dtype=torch.float64)
    ten, hundred = (written(layer, token.expand(1, n, 32))[:2] - START for n in (10, 100))
    torch.testing.assert_close(hundred, 10 * ten, rtol=1e-3, atol=1e-3)
    assert ten.abs().max() > 0.1


def test_reflecting_heads_begin_near_a_reflection(layer: SelfModifying) -> None:
    """What is held along a repeated key turns around with every token, and fades slowly."""
    token = 3 * torch.randn(1, 1, 32, dtype=torch.float64)
    key = torch.nn.functional.normalize(layer.initial_projections["k"]["w1"][2] @ token[0, 0, 16:24], dim=0)
    held = [key, *(written(layer, token.expand(1, n, 32))[2] @ key for n in (1, 2, 3))]
    steps = [now - then for then, now in itertools.pairwise(held)]
    assert all(torch.cosine_similarity(a, b, dim=0) < -0.5 for a, b in itertools.pairwise(steps))


def test_additive_heads_read_the_count_and_nothing_else(layer: SelfModifying) -> None:
    """Empty before the first token, and twice the tokens are twice the reading: no constant that a step of the count drowns in."""
    token, read = torch.randn(1, 1, 32, dtype=torch.float64).sign(), []
    layer.norm.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0][0, :2, -1]))
    for n in (10, 20):
        layer(token.expand(1, n, 32))
    torch.testing.assert_close(read[1], 2 * read[0], rtol=1e-3, atol=1e-3)
    assert not (layer.initial["w1"][:2] @ unit(layer._static(token)["q"][0, :2, 0])[..., None]).any()


def test_additive_heads_write_at_the_bound_for_every_token(layer: SelfModifying) -> None:
    """λ = α to the last digit, whatever is read: u = c."""
    x = torch.randn(200, 8, dtype=torch.float64)
    k, v = (torch.einsum("hoi,ti->hto", layer.initial_projections[name]["w1"][:2], x) for name in ("k", "v"))
    bounded = Within()(v, unit(k), torch.full((1,), 0.1))
    reached = ((bounded * unit(k)).sum(-1) - 2).abs() < 1e-5
    assert reached.double().mean() > 0.97


def test_readings_keep_their_length_up_to_the_bound(layer: SelfModifying) -> None:
    """One count more is one step more, however many there are."""
    layer.requires_grad_(False)
    y = torch.tensor([1.0, 2.0], dtype=torch.float64).outer(torch.ones(8, dtype=torch.float64)).expand(1, 4, 2, 8)
    normed = layer.norm(y)[0, :, :, 0]
    assert (normed[:, 1] / normed[:, 0]).tolist() == pytest.approx([2.0] * 4, rel=2e-3)
    assert layer.norm(1e6 * y)[0, :, 0, 0].tolist() == pytest.approx([50.0] * 4, rel=1e-3)


def test_what_is_kept_begins_the_same_for_every_token(layer: SelfModifying) -> None:
    assert not layer.initial_projections["α"]["w1"].any()
    assert layer.bias["η"].tolist() == pytest.approx([-2.0, -2.0, 0.7, 0.0])


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: SelfModifying(16, 2, 1, form=SelfForm(**LINEAR, start=Tracking(2, 1))), "at least 3 heads"),
        (lambda: SelfModifying(12, 4, 1, form=SelfForm(**LINEAR, start=Tracking())), "even width, got 4 of width 3"),
        (lambda: SelfForm(start=Tracking()), "use memory=Matrix"),
        (lambda: SelfForm(**LINEAR, start=Tracking()).without("k"), "matrices that are written"),
    ],
)
def test_starts_without_a_place_are_refused(make, what) -> None:
    with pytest.raises(NestlingError, match=what):
        make()
