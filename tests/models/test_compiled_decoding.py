"""One token more as one compiled program: no graph breaks, one compilation for all tokens, the same answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import nestling as nl
from nestling import tree
from nestling.core import L2, MLP, Chain, Decay, Descend, Every, Level, Memory, Momentum, Normed
from nestling.data import ByteTokenizer
from nestling.errors import NestlingError
from nestling.models import InContext
from nestling.nn import settled
from nestling.ops.layers import read
from nestling.recipes.titans import LONG_TERM_MEMORY
from nestling.stream import Program, Sampler, Session

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


ONCE = Memory(MLP(2), L2(), Decay(), Chain((Descend(), Every(8, Momentum()))), 8, "commit")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("titans_mac", {"segment": 8, "persistent": 2, "memory": ONCE}),
        ("titans_mac", {"segment": 8, "persistent": 2}),
        pytest.param("titans_lmm", {"memory": ONCE}, marks=pytest.mark.slow),
        pytest.param("titans_lmm", {}, marks=pytest.mark.slow),
        ("titans_lmm", {"memory": replace(LONG_TERM_MEMORY, period=1)}),
        ("yaad", {}),
        pytest.param("hope", {}, marks=pytest.mark.slow),
    ],
)
def test_words_that_wait_are_the_same_program(name, changes):
    torch.manual_seed(0)
    model = nl.build(name, vocab_size=256, dim=16, layers=1, heads=2, **changes).eval()
    counter = CompileCounter()
    program = Program(model, backend=counter)
    tokens = torch.randint(32, (2, 40))
    with torch.no_grad():
        expected, after = model(tokens)
    first, state = program(tokens[:, :3])
    logits = [first]
    for t in range(3, 40):
        one, state = program(tokens[:, t : t + 1], state)
        logits.append(one)
    assert counter.frame_count == 1
    torch.testing.assert_close(torch.cat(logits, 1), expected, rtol=1e-4, atol=1e-5)
    for (path, leaf), (_, other) in zip(tree.items(settled(state)), tree.items(after), strict=True):
        torch.testing.assert_close(leaf, other, rtol=1e-4, atol=1e-5, msg=path)


@torch.no_grad()
def test_the_program_is_of_tokens_at_which_nothing_happens(monkeypatch):
    """No choice between weights is in it; what falls due is the model's: a commit every 16 tokens, a segment's end every 8."""
    torch.manual_seed(0)
    model = nl.build("titans_mac", vocab_size=32, dim=16, layers=2, heads=2, segment=8, persistent=2).eval()
    graphs, asked = [], []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    program = Program(model, backend=backend)
    monkeypatch.setattr(program, "model", lambda tokens, *rest: asked.append(t) or model(tokens, *rest))
    tokens, state, t = torch.randint(32, (2, 40)), None, 0
    _, state = program(tokens[:, :3])
    for t in range(3, 40):
        _, state = program(tokens[:, t : t + 1], state)
    # The first shows whether tokens may wait; a segment ends with tokens 7, 15 …; a write commits before tokens 16 and 32.
    assert asked == [0, 3, 7, 15, 16, 23, 31, 32, 39]
    (graph,) = graphs
    weight = min(leaf.numel() for leaf in state[0][0].memory.memory.written.dual.values())
    choices = [n.meta["example_value"].numel() for n in graph.graph.nodes if n.target is torch.where]
    assert choices and max(choices) < weight


@torch.no_grad()
def test_rows_that_are_not_alike_have_a_program_too():
    """One in which everything may happen, to some rows and not to others."""
    torch.manual_seed(0)
    model = nl.build("titans_mac", vocab_size=32, dim=16, layers=1, heads=2, segment=8, persistent=2).eval()
    counter = CompileCounter()
    program = Program(model, backend=counter)
    tokens, valid = torch.randint(32, (2, 31)), torch.ones(2, 5, dtype=torch.bool)
    valid[1, 3:] = False
    _, state = model(tokens[:, :5], None, valid)
    expected = state
    for t in range(5, 31):
        one, state = program(tokens[:, t : t + 1], state)
        other, expected = model(tokens[:, t : t + 1], expected)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1
    for path, leaf in tree.items(settled(state)):
        torch.testing.assert_close(leaf, dict(tree.items(expected))[path], rtol=1e-4, atol=1e-5, msg=path)


def test_a_product_with_one_row_stays_a_product():
    """The compiler for processors would make a sum of it, and compute what makes the row anew for every output."""
    architecture = Normed(MLP(2))
    weights = {name: torch.randn(1, 2, *shape) for name, shape in architecture.shapes(8, 8).items()}
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: read(architecture, weights, x), backend=backend, fullgraph=True)
    for rows, wanted in ((1, torch.baddbmm), (3, torch.bmm)):
        x = torch.randn(1, 2, rows, 8)
        torch.testing.assert_close(compiled(x), read(architecture, weights, x))
        products = [n.target for n in graphs[-1].graph.nodes if n.target in (torch.bmm, torch.baddbmm)]
        assert products == [wanted, wanted]


def test_a_compiled_session_says_the_same(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = nl.build("titans_lmm", vocab_size=256, dim=16, layers=1, heads=2, memory=ONCE).double()
    monkeypatch.setattr(Program.__init__, "__defaults__", ("eager",))
    words = []
    for compiled in (False, True):
        session = Session(model, ByteTokenizer(), compiled=compiled)
        session.learn("Once upon a time")
        said = session.generate(max_tokens=7, sampler=Sampler(temperature=0))
        session.save(tmp_path / "session.safetensors")
        again = Session.load(model, tmp_path / "session.safetensors", compiled=compiled)
        words.append(
            [said, *(each.fork().generate(max_tokens=7, sampler=Sampler(seed=1)) for each in (session, again))]
        )
        assert (type(session._read) is Program) == (type(session.fork()._read) is Program) == compiled
    assert words[0] == words[1] and words[0][1] == words[0][2]


def test_levels_that_learn_in_context_have_no_program():
    model = nl.build("transformer", vocab_size=256, dim=16, layers=1, heads=2)
    learner = InContext(model, [Level("fast", period=16, owns="*.channel.*")])
    with pytest.raises(NestlingError, match="has no one program: give its base"):
        Session(learner, ByteTokenizer(), compiled=True)
