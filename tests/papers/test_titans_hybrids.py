"""Titans with attention: the persistent prefix, memory as a gate, memory as a layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import nestling as nl
from nestling import tree
from nestling.core import Chain, Descend, Every, Momentum, linear
from nestling.nn import (
    Attention,
    Identity,
    MemoryAsContext,
    MemoryAsGate,
    MemoryAsLayer,
    MemoryLayer,
    Segment,
    rotate,
    unit,
)
from nestling.recipes.titans import H3, LONG_TERM_MEMORY, Samba
from tests.laws.subjects import draw, small

DIM, HEADS, LENGTH = 12, 2, 17
WIDTH = DIM // HEADS
SEGMENTWISE = Chain((Descend(), Every(6, Momentum())))


def vectors(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.equation("Titans", 19, 27)
@pytest.mark.parametrize("window", [1, 4, 40])
def test_eqs_19_and_27_attention_sees_the_prefix_from_everywhere(window):
    """Titans eq. 19, SW-Attn* of eq. 27 (Fig. 3b): softmax over all N_p persistent tokens and the last ``window`` tokens."""
    layer, x = Attention(DIM, HEADS, window, persistent=3).double(), vectors()
    with torch.no_grad():
        weights = layer.qkv.weight.view(3, HEADS, WIDTH, DIM)
        expected = torch.zeros_like(x)
        for row in range(2):
            for head in range(HEADS):
                q, k, v = (x[row] @ weights[part, head].T for part in range(3))
                prefix_k, prefix_v = (layer.persistent @ weights[part, head].T for part in (1, 2))
                turned_q, turned_k = rotate(q, 0), rotate(k, 0)
                for t in range(LENGTH):
                    near = slice(max(0, t - window + 1), t + 1)
                    scores = torch.cat((prefix_k @ q[t], turned_k[near] @ turned_q[t])) / WIDTH**0.5
                    y = torch.softmax(scores, 0) @ torch.cat((prefix_v, v[near]))
                    expected[row, t, head * WIDTH : (head + 1) * WIDTH] = y
        expected = expected @ layer.out.weight.T
        torch.testing.assert_close(layer(x)[0], expected, rtol=1e-10, atol=1e-11)
        first, state = layer(x[:, :5])
        second, _ = layer(x[:, 5:], state)
        torch.testing.assert_close(torch.cat((first, second), 1), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.equation("Titans", 26, 27, 28)
def test_eqs_26_to_28_memory_as_gate():
    """Titans eqs 26-28: o = y ⊗ M(x̃); both normed by learnable vectors, then σ on the memory's side."""
    memory, attention = MemoryLayer(DIM, HEADS, LONG_TERM_MEMORY), Attention(DIM, HEADS, 4, 3)
    layer, x = MemoryAsGate(DIM, memory, attention).double(), vectors()

    def normed(a: Tensor, gain: Tensor) -> Tensor:
        return gain * a / torch.sqrt(a.square().mean(-1, keepdim=True) + 1e-6)

    with torch.no_grad():
        layer.memory_norm.gain.copy_(torch.linspace(-1, 2, DIM))
        layer.attention_norm.gain.copy_(torch.linspace(2, 1, DIM))
        m, y = memory(x)[0], attention(x)[0]
        expected = normed(y, layer.attention_norm.gain) / (1 + torch.exp(-normed(m, layer.memory_norm.gain)))
        torch.testing.assert_close(layer(x)[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.equation("Titans", 29, 30, 31)
def test_eqs_29_to_31_memory_as_layer():
    """Titans eqs 30-31: y = M(x), o = SW-Attn(y)."""
    memory, attention = MemoryLayer(DIM, HEADS, LONG_TERM_MEMORY).double(), Attention(DIM, HEADS, 4, 3).double()
    x = vectors()
    with torch.no_grad():
        expected, _ = attention(memory(x)[0])
        assert torch.equal(MemoryAsLayer(memory, attention)(x)[0], expected)


@pytest.mark.equation("Titans", 30, 31)
def test_as_a_layer_a_memory_that_is_the_identity_leaves_sliding_window_attention():
    attention, x = Attention(DIM, HEADS, 4).double(), vectors()
    with torch.no_grad():
        assert torch.equal(MemoryAsLayer(Identity(), attention)(x)[0], attention(x)[0])


@pytest.mark.equation("Titans", "NeurIPS §3.2")
def test_blocks_of_the_samba_style_take_turns():
    """NeurIPS version of Titans, §3.2."""
    model = nl.build("titans_mal", vocab_size=50, **small("titans_mal", layers=4))
    assert [type(block.mixer) for block in model.blocks] == [MemoryLayer, Attention] * 2
    assert model.config.stack == Samba()


def test_the_h3_style_is_another_value():
    """Titans, version 1, App. D.2: memory, then attention, in every block; any split of a stream gives the same."""
    model = nl.build("titans_mal", vocab_size=50, stack=H3(), **small("titans_mal")).double()
    assert {type(block.mixer) for block in model.blocks} == {MemoryAsLayer}
    tokens = draw(model, 2, 21)
    with torch.no_grad():
        whole, _ = model(tokens)
        first, state = model(tokens[:, :13])
        second, _ = model(tokens[:, 13:], state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=1e-9, atol=1e-10)
    with pytest.raises(nl.NestlingError, match="stack is Samba"):
        nl.build("titans_mal", stack="L2()")
    with pytest.raises(nl.NestlingError, match="persistent ≥ 0"):
        Attention(DIM, HEADS, 4, -1)


def normed(a: Tensor, gain: Tensor) -> Tensor:
    return gain * a / torch.sqrt(a.square().mean(-1, keepdim=True) + 1e-6)


def segment_attention(layer: MemoryAsContext, x: Tensor, reads: Tensor) -> Tensor:
    """Eqs 22-23 for each token i: softmax over [p ‖ the means of all full pools among h_1 … h_i ‖ x_1 … x_i]."""
    form, weights = layer.segment, layer.qkv.weight.view(3, HEADS, WIDTH, DIM)
    tokens = form.length // form.pool
    y = torch.zeros_like(x)
    for i in range(len(x)):
        full = (i + 1) // form.pool
        h = [reads[m * form.pool : (m + 1) * form.pool].mean(0) for m in range(full)]
        seen = torch.cat((layer.persistent, *(each[None] for each in h), x[: i + 1]))
        places = [*range(form.persistent + full), *range(form.persistent + tokens, form.persistent + tokens + i + 1)]
        for head in range(HEADS):
            q, k, v = (seen @ weights[part, head].T for part in range(3))
            k = torch.stack([rotate(k[j : j + 1], place)[0] for j, place in enumerate(places)])
            scores = k @ rotate(q[-1:], places[-1])[0] / WIDTH**0.5
            y[i, head * WIDTH : (head + 1) * WIDTH] = torch.softmax(scores, 0) @ v
    return y


def recalled(layer: MemoryAsContext, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Eq. 21: M_t-1(q(x)) for each head, with SiLU and unit length as everywhere, and the norm of the memory layer."""
    memory = layer.memory
    h = torch.zeros_like(x)
    for head in range(HEADS):
        columns = slice(head * WIDTH, (head + 1) * WIDTH)
        q = unit(torch.nn.functional.silu(x @ memory.qkv.weight[:DIM][columns].T))
        now = {name: weight[0, head] for name, weight in weights.items()}
        h[:, columns] = normed(memory.memory.architecture(linear(now), q), memory.norm.gain)
    return h


def context(pool: int) -> MemoryAsContext:
    torch.manual_seed(0)
    return MemoryAsContext(MemoryLayer(DIM, HEADS, LONG_TERM_MEMORY), Segment(6, persistent=2, pool=pool)).double()


@pytest.mark.equation("Titans", 21, 22, 23, 24, 25)
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_eqs_21_to_25_memory_as_context(pool):
    """Titans eqs 21-25, segment by segment: read the old memory, attend, write token by token, gate with the memory after it."""
    layer, x = context(pool), vectors()[:1]
    with torch.no_grad():
        state, expected = layer.memory.initial_state(1), []
        for low in range(0, LENGTH, 6):
            now = x[0, low : low + 6]
            y = segment_attention(layer, now, recalled(layer, state.memory.dual, now))
            for token in y:
                m, state = layer.memory(token[None, None], state)
                gate = torch.sigmoid(normed(m[0, 0], layer.memory_norm.gain))
                expected.append((normed(token, layer.attention_norm.gain) * gate) @ layer.out.weight.T)
        torch.testing.assert_close(layer(x)[0][0], torch.stack(expected), rtol=1e-8, atol=1e-9)


def test_as_context_a_memory_that_never_writes_leaves_segment_attention():
    """What is read and what gates is the same for every segment: [p ‖ M₀(q) ‖ x] of the token's own segment, gated by M₀(y)."""
    layer, x = context(2), vectors()[:1]
    layer.memory.frozen()
    with torch.no_grad():
        start = {name: weight[None] for name, weight in layer.memory.weights().items()}
        y = torch.cat(
            [segment_attention(layer, s, recalled(layer, start, s)) for s in x[0].split(6)],
        )
        m, _ = layer.memory(y[None])
        gate = torch.sigmoid(normed(m[0], layer.memory_norm.gain))
        expected = (normed(y, layer.attention_norm.gain) * gate) @ layer.out.weight.T
        torch.testing.assert_close(layer(x)[0][0], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "memory",
    [LONG_TERM_MEMORY, replace(LONG_TERM_MEMORY, rule=SEGMENTWISE, period=6, read_at="commit")],
    ids=["by token", "once a segment"],
)
def test_as_context_whole_segments_equal_tokens_one_by_one(memory):
    """Outputs, states and the gradients of all parameters."""
    torch.manual_seed(0)
    layer = MemoryAsContext(MemoryLayer(DIM, HEADS, memory), Segment(6, persistent=2, pool=2)).double()
    x, found = vectors(19)[:2], []
    for pieces in (x.split(19, 1), x.split(1, 1), x.split((6, 7, 6), 1)):
        state, outputs = None, []
        for piece in pieces:
            y, state = layer(piece, state)
            outputs.append(y)
        y = torch.cat(outputs, 1)
        loss = y.square().sum() + sum(leaf.sum() for leaf in state.before.values())
        found.append((y, tree.leaves(state), torch.autograd.grad(loss, list(layer.parameters()))))
    for y, leaves, grads in found[1:]:
        for a, b in zip((y, *leaves, *grads), (found[0][0], *found[0][1], *found[0][2]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_a_segment_that_cannot_be_is_refused():
    with pytest.raises(nl.NestlingError, match="multiple of pool"):
        Segment(7, pool=2)


@pytest.mark.parametrize("length", [64, 128])
def test_as_context_a_token_costs_one_row_of_attention(length, monkeypatch):
    """After any number of tokens: one query against what is there of [p ‖ h ‖ x], and projections, reads and writes of that token alone."""
    torch.manual_seed(0)
    layer = MemoryAsContext(MemoryLayer(DIM, HEADS, LONG_TERM_MEMORY), Segment(length, persistent=2, pool=2)).double()
    seen, plain = [], torch.nn.functional.scaled_dot_product_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, **given: Tensor) -> Tensor:
        seen.append((q.shape[2], k.shape[2]))
        return plain(q, k, v, **given)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    counts = []
    with torch.no_grad():
        for slot in (3, 4, 40):
            tokens = slot if slot == 40 else length + slot
            _, state = layer(vectors(tokens))
            seen.clear()
            with FlopCounterMode(display=False) as counter:
                layer(vectors(1), state)
            assert seen == [(1, 2 + (slot + 1) // 2 + slot + 1)]
            counts.append(counter.get_total_flops())
    # The token at place 3 completes a memory token, whose key and value are made of it.
    rows, made = 2, 2 * DIM * 2 * DIM
    # The two persistent tokens are projected with the token, to queries that nobody asks for, too.
    each = 15_552 + 2 * (2 * DIM * DIM)
    assert counts == [each + rows * made, each, each], (
        "products of matrices, attention not counted: the same for all lengths"
    )
