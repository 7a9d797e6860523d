"""Levels that are written in context: NL eqs 71 and 72 against literal loops over rows, and the laws of every model."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import nestling as nl
import nestling.tree as tree
from nestling.core import MLP, Chain, Descend, Level, Memory, Momentum
from nestling.errors import NestlingError
from nestling.models import InContext
from nestling.nn import buffered, settled
from tests.laws.subjects import VOCABULARY, assert_close, assert_equal, draw, small

LENGTH = 29
FAST, SLOW = Level("fast", 4, owns="*.chain.0.*"), Level("slow", 8, owns="*.chain.1.*", rate=0.5)
MOMENTUM = Level("fast", 4, Chain((Momentum(0.5), Descend())), owns="*.chain.0.*")
NESTED = Level("fast", 4, owns="*.chain.0.*", reset=8, carry=0.3)
IDS = ["one level", "two levels", "momentum", "nested"]
WHOLE = [Level("fast", 4, owns="*.chain.0.*", bptt=math.inf), Level("slow", 8, owns="*.chain.1.*", bptt=math.inf)]


@cache
def base(recipe: str = "hope_attention") -> nl.LM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nl.build(recipe, vocab_size=VOCABULARY, **small(recipe, dim=16)).double()
    with torch.no_grad():
        model.embedding.weight.mul_(50)
    return model


def learner(*levels: Level, lr: float = 2.0, recipe: str = "hope_attention") -> InContext:
    return InContext(base(recipe), levels or (FAST, SLOW), lr)


def literal(model: nl.LM, row: Tensor, levels: tuple[Level, ...], lr: float, *, through: bool = False) -> Tensor:
    """One sequence, chunk by chunk, with whole weights in the place of deltas: logits (T, V)."""
    named = dict(model.named_parameters())
    owned = {name: level for name in named for level in levels[::-1] if level.owner(name)}
    theta = {name: named[name] + 0 for name in owned}
    start, memory, sums = dict(theta), {}, {name: torch.zeros_like(named[name]) for name in owned}
    chunk, state, outputs = min(int(level.period) for level in levels), None, []
    for number, low in enumerate(range(0, len(row), chunk)):
        part = row[None, low : low + chunk]
        here = {name: weight + 0 for name, weight in theta.items()}  # the weights of this chunk alone
        logits, state = torch.func.functional_call(model, here, (part, state))
        outputs.append(logits[0])
        if low + chunk >= len(row):
            break
        loss = F.cross_entropy(logits[0], row[low + 1 : low + chunk + 1], reduction="sum")
        grads = torch.autograd.grad(loss, list(here.values()), create_graph=through, retain_graph=True)
        for (name, level), grad in zip(owned.items(), grads, strict=True):
            sums[name] = sums[name] + (grad if through else grad.detach())
            if (number + 1) * chunk % level.period == 0:
                # θ ← θ − η Σ g over C tokens, η = lr / C
                step = -lr * level.rate * sums[name] / level.period
                if level.rule == MOMENTUM.rule:
                    memory[name] = 0.5 * memory.get(name, 0) + sums[name] / level.period
                    step = -lr * level.rate * memory[name]
                theta[name] = theta[name] + step
                sums[name] = torch.zeros_like(sums[name])
            if level.reset and (number + 1) * chunk % level.reset == 0:
                start[name] = start[name] + level.carry * (theta[name] - start[name])
                theta[name] = start[name]
    return torch.cat(outputs)


@pytest.mark.equation("Nested Learning", 71, 72)
@pytest.mark.parametrize("levels", [(FAST,), (FAST, SLOW), (MOMENTUM, SLOW), (NESTED, SLOW)], ids=IDS)
@pytest.mark.parametrize("recipe", ["hope_attention", "hope", "transformer"])
def test_each_row_is_a_literal_loop_of_eq_71(recipe, levels):
    if recipe == "transformer":
        swaps = {"*.chain.0.*": "*.0.channel.*", "*.chain.1.*": "*.1.channel.*"}
        levels = tuple(replace(level, owns=swaps[level.owns]) for level in levels)
    model = learner(*levels, recipe=recipe)
    tokens = draw(model, 2, 18)
    with torch.no_grad():
        got, state = model(tokens)
    assert any(bool(leaf.any()) for written in state.levels for leaf in written.delta.values())
    for row in range(2):
        assert_close(got[row], literal(model.base, tokens[row], levels, 2.0).detach())


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    logits, _ = model(tokens)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("through", [False, True], ids=["first order", "through the updates"])
@pytest.mark.parametrize("recipe", ["hope_attention", "hope"])
def test_the_outer_gradient_is_that_of_the_literal_loop(recipe, through):
    levels = tuple(WHOLE) if through else (FAST, SLOW)
    model = learner(*levels, recipe=recipe)
    tokens = draw(model, 2, 15)
    parameters = list(model.parameters())
    got = torch.autograd.grad(loss_of(model, tokens), parameters)
    assert all(bool(grad.any()) for grad in got)
    losses = []
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        for row in tokens:
            logits = literal(model.base, row, levels, 2.0, through=through)
            losses.append(F.cross_entropy(logits[:-1], row[1:]))
        assert_close(got, torch.autograd.grad(sum(losses) / 2, parameters), 1e-8)


def test_bptt_bounds_how_many_periods_a_gradient_spans():
    """The gradient of the last chunk's loss by θ through the updates: with b periods, what is older than the last cut is constant."""
    tokens = draw(base(), 1, 16)

    def slope(bptt: float) -> Tensor:
        model = learner(Level("fast", 4, owns="*.chain.0.*", bptt=bptt))
        logits, _ = model(tokens)
        weight = dict(model.named_parameters())["blocks.1.channel.chain.0.up.weight"]
        return torch.autograd.grad(logits[:, 12:].square().sum(), weight)[0]

    first, two, three, all_of_it = (slope(b) for b in (1, 2, 3, math.inf))
    assert all((a - b).abs().max() > 1e-9 for a, b in ((first, two), (two, all_of_it), (three, first)))
    assert_close(slope(4), all_of_it)  # four chunks, no cut before the last


def test_bptt_of_two_is_the_whole_of_two_chunks():
    tokens = draw(base(), 1, 8)
    slopes = []
    for bptt in (2, math.inf):
        model = learner(Level("fast", 4, owns="*.chain.0.*", bptt=bptt))
        slopes.append(torch.autograd.grad(loss_of(model, tokens), list(model.parameters())))
    assert_close(*slopes)


def test_the_outer_gradient_is_the_slope_of_the_loss():
    """Central differences along a random direction: with bptt=inf nothing is cut, but for the beginning of a chunk."""
    model = InContext(base("transformer"), [Level("all", 4, owns="*.1.channel.*", bptt=math.inf)], 2.0)
    tokens = draw(model, 2, 15)
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss_of(model, tokens), parameters)
    directions = [torch.randn_like(p) for p in parameters]

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=by)
            value = loss_of(model, tokens)
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(d, alpha=by)
        return value

    expected = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
    assert float((moved(1e-6) - moved(-1e-6)) / 2e-6) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "levels", [(FAST, SLOW), (NESTED, SLOW), (MOMENTUM,)], ids=["two levels", "nested", "momentum"]
)
@pytest.mark.parametrize("cuts", [(0, 4, 8, 29), (0, 1, 2, 9, 10, 23, 29), tuple(range(30))], ids=len)
def test_any_split_of_a_stream_gives_the_same(levels, cuts):
    model = learner(*levels)
    tokens = draw(model, 2, LENGTH)
    with torch.no_grad():
        whole, final = model(tokens)
        state, outputs = None, []
        for low, high in pairwise(cuts):
            logits, state = model(tokens[:, low:high], state)
            outputs.append(logits)
    assert_close(torch.cat(outputs, 1), whole)
    assert_close(state, final)


def test_a_split_stream_has_the_gradients_of_the_whole():
    model = learner(*WHOLE)
    tokens = draw(model, 2, 15)
    slopes = []
    for cuts in ((0, 15), (0, 3, 4, 15)):
        state, outputs = None, []
        for low, high in pairwise(cuts):
            logits, state = model(tokens[:, low:high], state)
            outputs.append(logits)
        slopes.append(torch.autograd.grad(torch.cat(outputs, 1).square().sum(), list(model.parameters())))
    assert_close(*slopes, 1e-8)


def test_a_rate_of_zero_is_the_model_itself():
    model = learner(lr=0.0)
    tokens = draw(model, 2, LENGTH)
    with torch.no_grad():
        got, _ = model(tokens)
        expected, _ = model.base(tokens)
        assert_close(got, expected, 1e-12)
        # bit for bit where the base is read in the same pieces
        state, pieces = model.base.initial_state(2), []
        for low in range(0, LENGTH, 4):
            logits, state = model.base(tokens[:, low : low + 4], state)
            pieces.append(logits)
        assert torch.equal(got, torch.cat(pieces, 1))


def test_a_level_without_end_writes_nothing():
    model = learner(FAST, Level("never", math.inf, owns="*.chain.1.*"))
    assert [level.name for level in model.writer.levels] == ["fast"]
    with pytest.raises(NestlingError, match="finite period"):
        learner(Level("never", math.inf))


def test_it_is_causal():
    """Row j has another token at j; nothing before j moves, not by one bit."""
    model = learner()
    tokens = draw(model, 1, LENGTH).repeat(LENGTH, 1)
    position = torch.arange(LENGTH)
    changed = tokens.clone()
    changed[position, position] = (changed[position, position] + 1) % VOCABULARY
    with torch.no_grad():
        expected, got = model(tokens)[0], model(changed)[0]
    differs = (expected != got).any(-1)
    assert not bool((differs & (position[None] < position[:, None])).any())
    assert bool(differs[:, -1].all()), "what was learnt reaches the last token"


def test_rows_share_nothing_and_padding_is_inert():
    model = learner()
    tokens = draw(model, 4, LENGTH)
    valid = torch.rand(4, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.6
    valid[1], valid[2] = True, False
    with torch.no_grad():
        _, state = model(draw(model, 4, 6, seed=1))
        logits, after = model(tokens, state, valid)
        for row in range(4):
            keep = valid[row].nonzero()[:, 0]
            alone = tree.map(lambda leaf, row=row: leaf[row : row + 1], state)
            if len(keep):
                expected, alone = model(tokens[row : row + 1, keep], alone)
                assert_close(logits[row : row + 1, keep], expected)
            assert_close(tree.map(lambda leaf, row=row: leaf[row : row + 1], after), alone)
    assert not bool(logits[~valid].any())
    assert_equal(*(tree.map(lambda leaf: leaf[2], each) for each in (after, state)))


def test_a_document_that_is_marked_begins_without_what_was_learnt():
    model = learner()
    tokens = draw(model, 3, LENGTH)
    starts, valid = torch.zeros(3, LENGTH, dtype=torch.bool), torch.ones(3, LENGTH, dtype=torch.bool)
    starts[0, 9], starts[1, 8], starts[1, 20], starts[2, 25], valid[2, 24:] = True, True, True, True, False
    with torch.no_grad():
        logits, after = model(tokens, None, valid, starts)
        for row, places in enumerate(((0, 9, 29), (0, 8, 20, 29), (0, 24))):
            for low, high in pairwise(places):
                expected, alone = model(tokens[row : row + 1, low:high])
                assert_close(logits[row : row + 1, low:high], expected)
            alone = model.initial_state(1) if row == 2 else alone
            got = tree.map(lambda leaf, row=row: leaf[row : row + 1], after)
            assert_close(*(model(tokens[:1, :9], each)[0] for each in (got, alone)))


def test_a_session_learns_with_it_and_saves_it(tmp_path):
    model = InContext(nl.build("hope", **small("hope")), [FAST, SLOW], lr=0.5)
    session = nl.Session(model, nl.data.ByteTokenizer(), piece=10)
    reading = session.learn("abcabcabcabcabcabc")
    assert reading.tokens == 18 and session.state.chunks.tolist() == [4]
    session.save(tmp_path / "session")
    child = nl.Session.load(model, tmp_path / "session")
    assert_equal(child.state, session.state)
    assert torch.equal(child.feed([1, 2, 3]), session.feed([1, 2, 3]))
    with pytest.raises(NestlingError, match="another model"):
        nl.Session.load(model.base, tmp_path / "session")


def test_words_of_a_memory_that_could_wait_are_written_with_the_levels() -> None:
    memory = Memory(MLP(2), period=8, read_at="commit")
    model = InContext(
        nl.build("titans_lmm", dim=16, layers=1, heads=2, memory=memory).double(),
        [replace(FAST, owns="*.channel.*")],
        0.5,
    )
    session, direct = (nl.Session(model, nl.data.ByteTokenizer()) for _ in range(2))
    session.feed([*b"abc"])
    words = [*b"abc", *(session.draw(nl.Sampler(temperature=0)) for _ in range(9))]
    direct.feed(words)
    assert_close(session.state, direct.state)
    with torch.no_grad():
        state = buffered(model(torch.tensor([words[:3]]))[1])
        for word in words[3:]:
            _, state = model(torch.tensor([[word]]), state)
    assert_close(settled(state), direct.state)


def test_it_has_the_parameters_of_its_model_and_its_levels_in_the_table():
    model = learner()
    assert dict(model.named_parameters()).keys() == dict(model.base.named_parameters()).keys()
    assert all(a is b for a, b in zip(model.parameters(), model.base.parameters(), strict=True))
    assert {"context.fast", "context.slow"} <= {level.name for level in nl.describe(model).levels}
    assert model.fingerprint != model.base.fingerprint
    assert not isinstance(model.frozen(), InContext)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([FAST, Level("slow", 6, owns="*.chain.1.*")], "multiple of the fastest"),
        ([Level("a", 4, owns="nothing")], "no weight"),
        ([Level("a", 4, owns="embedding.*")], "matrices of linear maps"),
    ],
)
def test_what_cannot_be_is_refused(levels, said):
    with pytest.raises(NestlingError, match=said):
        InContext(base(), levels)
