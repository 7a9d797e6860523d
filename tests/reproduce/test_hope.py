"""The start that counting needs, and that bounded writes learn what others cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nestling.data.synthetic.automata import LANGUAGES, task
from nestling.errors import NestlingError
from nestling.nn.self_modifying_tokens import by_token
from nestling.ops import Marks
from nestling.reproduce import automata
from nestling.reproduce.automata import CONTENDERS
from nestling.reproduce.config import AutomataConfig
from nestling.reproduce.hope import TokenExact, token_exact


def written(layer: TokenExact, x: Tensor) -> Tensor:
    """The main memories after a stream, (H, out, in)."""
    state = layer.initial_state(1)
    memories, states = (layer.memory, layer.projections), (state.memory, state.projections)
    _, (main, _) = by_token(
        memories, states, layer.form, layer.ranges, layer._by_head(x), layer._static(x), layer.value
    )
    return main.dual["w1"][0]


def test_additive_heads_add_up_whatever_the_order() -> None:
    torch.manual_seed(0)
    layer = TokenExact(32, heads=4, additive=2, reflecting=1).double()
    x = 3 * torch.randn(1, 20, 32, dtype=torch.float64)
    there, mixed = written(layer, x), written(layer, x[:, torch.randperm(20)])
    apart = (there - mixed).abs().amax((1, 2))
    # Not to the last digit: α is 1 - 10⁻⁶ for what was written 20 tokens ago.
    assert apart[:2].max() < 1e-3 < 1e-2 < apart[2:].min()


def test_additive_heads_grow_in_proportion_to_the_length() -> None:
    torch.manual_seed(0)
    layer = TokenExact(32, heads=4, additive=2, reflecting=1).double()
    token = 3 * torch.randn(1, 1, 32, dtype=torch.float64)
    eye = torch.eye(8, dtype=torch.float64)
    ten, hundred = (written(layer, token.expand(1, n, 32))[:2] - eye for n in (10, 100))
    torch.testing.assert_close(hundred, 10 * ten, rtol=1e-3, atol=1e-3)
    assert ten.abs().max() > 0.1


def test_reflecting_heads_begin_near_a_reflection() -> None:
    """What is held along a repeated key turns around with every token, and fades slowly."""
    torch.manual_seed(0)
    layer = TokenExact(32, heads=4, additive=2, reflecting=1).double()
    token = 3 * torch.randn(1, 1, 32, dtype=torch.float64)
    key = torch.nn.functional.normalize(layer.initial_projections["k"]["w1"][2] @ token[0, 0, 16:24], dim=0)
    held = [written(layer, token.expand(1, n, 32))[2] @ key for n in (1, 2, 3)]
    turned = [
        torch.cosine_similarity(now - then, then - before, dim=0)
        for before, then, now in zip([key], held, held[1:], strict=False)
    ]
    assert all(each < -0.5 for each in turned)


def test_streams_go_on_and_marks_are_refused() -> None:
    torch.manual_seed(0)
    model = token_exact(3, dim=32, heads=4, layers=1).double()
    tokens = torch.randint(3, (2, 12))
    whole, _ = model(tokens)
    first, state = model(tokens[:, :5])
    second, _ = model(tokens[:, 5:], state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    with pytest.raises(NestlingError, match="read one word a row"):
        TokenExact(32, 4, 2, 1)(torch.randn(1, 3, 32), marks=Marks(valid=torch.ones(1, 3, dtype=torch.bool)))


@pytest.mark.slow
@pytest.mark.parametrize("language", ["(aa)*", "parity"])
def test_hope_tells_odd_from_even_far_beyond_what_it_has_learnt(language: str) -> None:
    config = replace(AutomataConfig(), every=50)
    made = task(LANGUAGES[language], train=2000, test=100)
    best = max(sum(point.bins) for point in automata.train(CONTENDERS["hope"], language, 0, config, made))
    assert best > 1.9
