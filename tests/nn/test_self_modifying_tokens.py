"""Token by token: equal to blocks of one token, to a literal loop over the equations, and what bounded values promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nestling.core import MLP, Delta, Matrix, Residual
from nestling.nn import SelfModifying, SelfRange
from nestling.nn.norm import unit
from nestling.nn.self_modifying_form import SelfForm
from nestling.nn.self_modifying_tokens import Within, by_token, tokenwise

PLAIN = SelfForm(memory=Matrix(), projections=Matrix(), retention=Delta())
FORMS = {
    "returning and residual": SelfForm(),
    "plain": PLAIN,
    "k stands still": SelfForm().without("k"),
    "no decay": SelfForm().without("weight decay"),
    "q adaptive": SelfForm(adaptive=("q", "k", "v", "η", "α"), static=()),
}


def layer(form: SelfForm, seed: int = 0) -> SelfModifying:
    torch.manual_seed(seed)
    return SelfModifying(12, 3, 1, form=form, ranges=SelfRange(slow=-1.0, fast=0.5, retain=2.0)).double()


def tokens(made: SelfModifying, x: Tensor, states=None, value: Within | None = None):  # type: ignore[no-untyped-def]
    """What lies between the convolution and the norm."""
    state = made.initial_state(x.shape[0])
    memories, states = (made.memory, made.projections), states or (state.memory, state.projections)
    return by_token(memories, states, made.form, made.ranges, made._by_head(x), made._static(x), value)


@pytest.mark.parametrize("name", FORMS)
def test_it_is_the_block_form_in_outputs_states_and_gradients(name: str) -> None:
    made, x = layer(FORMS[name]), torch.randn(2, 7, 12, dtype=torch.float64)
    assert tokenwise(made.memory, made.projections)
    read: list[Tensor] = []
    made.norm.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    _, expected = made(x)
    y, states = tokens(made, made.conv(x)[0])
    torch.testing.assert_close(y, read[0], rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(states, (expected.memory, expected.projections), strict=True):
        for leaf in ("dual", "anchor", "origin"):
            for weight, other in zip(getattr(ours, leaf).values(), getattr(theirs, leaf).values(), strict=True):
                torch.testing.assert_close(weight, other, rtol=1e-10, atol=1e-12)
        assert torch.equal(ours.phase, theirs.phase)
    weight = torch.randn_like(y)
    parameters = [p for name, p in made.named_parameters() if not name.startswith(("norm", "gate", "out"))]
    found = torch.autograd.grad((y * weight).sum(), parameters)
    known = torch.autograd.grad((read[0] * weight).sum(), parameters)
    assert all(gradient.abs().max() > 0 for gradient in found)
    for ours, theirs in zip(found, known, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("cut", [1, 4])
def test_a_stream_may_be_cut_anywhere(cut: int) -> None:
    made, x = layer(SelfForm()), torch.randn(2, 6, 12, dtype=torch.float64)
    whole, end = tokens(made, x)
    first, states = tokens(made, x[:, :cut])
    second, last = tokens(made, x[:, cut:], states)
    torch.testing.assert_close(torch.cat((first, second), 2), whole)
    torch.testing.assert_close(last[1].dual["w1"], end[1].dual["w1"])
    torch.testing.assert_close(last[0].anchor["w1"], end[0].anchor["w1"])


@pytest.mark.parametrize(
    "form",
    [
        replace(PLAIN, memory=Residual(MLP(1, 2))),
        replace(PLAIN, read_at="commit"),
        PLAIN.without("DGD"),
        replace(PLAIN, period=2),
    ],
)
def test_what_is_not_linear_and_token_exact_is_left_to_blocks(form: SelfForm) -> None:
    made = layer(form)
    assert not tokenwise(made.memory, made.projections)


def test_bounded_values_against_a_literal_loop() -> None:
    """NL eqs 83-88, one head of one row, matrices as they are printed."""
    made, x = layer(PLAIN), torch.randn(1, 6, 12, dtype=torch.float64)
    y, _ = tokens(made, x, value=Within(0.7))
    head, width = 1, 4
    names = ("k", "v", "η", "α")
    memory = {"main": made.initial["w1"][head], **{n: made.initial_projections[n]["w1"][head] for n in names}}
    query = x @ made.static["q"].mT
    for t in range(6):
        token = x[0, t, head * width : (head + 1) * width]
        k, raw = unit(memory["k"] @ token), memory["v"] @ token
        lr = torch.sigmoid(memory["η"] @ token + made.bias["η"][head])
        retain = torch.sigmoid(memory["α"] @ token + made.bias["α"][head])
        u, o = raw @ k, raw - (raw @ k) * k
        v = u.clamp(2 - 2 / lr.item(), 2) * k + o * min(1.0, 0.7 / o.norm().item())
        for name, weight in memory.items():
            part = 1.0 if name == "main" else made.ranges.projections
            kept, rate = 1 - part * (1 - retain), part * lr
            erased = weight @ (kept * torch.eye(width, dtype=torch.float64) - rate * torch.outer(k, k))
            memory[name] = erased - rate * torch.outer(weight @ k - weight @ v, k)
        q = unit(query[0, t, head * width : (head + 1) * width])
        torch.testing.assert_close(y[0, head, t], memory["main"] @ q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_bounded_values_keep_the_transition_between_minus_one_and_one(scale: float) -> None:
    torch.manual_seed(0)
    k, v = unit(torch.randn(500, 8, dtype=torch.float64)), scale * torch.randn(500, 8, dtype=torch.float64)
    lr = torch.rand(500, 1, dtype=torch.float64) * 2
    bounded = Within()(v, k, lr)
    along = (bounded * k).sum(-1, keepdim=True)
    kept = 1 - lr * (2 - along)
    assert kept.min() >= -1 - 1e-9
    assert kept.max() <= 1 + 1e-9
    assert (bounded - along * k).norm(dim=-1).max() <= 1 + 1e-9
    if scale == 30.0:
        assert (kept > 1 - 1e-9).any() and (kept < -1 + 1e-9).any()  # both ends are held exactly
