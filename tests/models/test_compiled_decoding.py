"""One token more as one compiled program: no graph breaks, one compilation for all tokens, the same answers."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import nestling as nl
from nestling import tree

MODELS = {
    "titans_lmm": {},
    "titans_mac": {"segment": 8, "persistent": 2},
    "titans_mag": {"window": 8, "persistent": 2},
    "hope": {},
    "hope_attention": {"window": 8},
    "gated_deltanet": {},
}


@pytest.mark.parametrize(
    "name", [n if n in ("hope", "titans_mac") else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_a_token_is_one_program_whatever_commits_with_it(name):
    """Across commits (every 16 tokens), ends of segments and full windows."""
    torch.manual_seed(0)
    model = nl.build(name, vocab_size=32, dim=16, layers=1, heads=2, **MODELS[name]).eval()
    counter = CompileCounter()
    program = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    tokens = torch.randint(32, (2, 40))
    with torch.no_grad():
        _, state = model(tokens[:, :3])
        expected, after = model(tokens[:, 3:], state)
        logits = []
        for t in range(3, 40):
            one, state = program(tokens[:, t : t + 1], state)
            logits.append(one)
    assert counter.frame_count == 1
    torch.testing.assert_close(torch.cat(logits, 1), expected, rtol=1e-4, atol=1e-5)
    for path, leaf in tree.items(state):
        torch.testing.assert_close(leaf, dict(tree.items(after))[path], rtol=1e-4, atol=1e-5)
