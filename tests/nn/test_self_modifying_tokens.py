"""Token by token: equal to blocks of one token, to a literal loop over the equations, and what bounded values promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import MLP, Delta, Matrix, Residual
from nestling.nn import SelfForm, SelfModifying, SelfRange, Within, self_modifying
from nestling.nn.norm import unit
from nestling.nn.self_modifying_tokens import by_token, tokenwise
from nestling.ops import Chunk, Marks
from tests.laws.subjects import assert_close

PLAIN = SelfForm(memory=Matrix(), projections=Matrix(), retention=Delta())
FORMS = {
    "returning and residual": SelfForm(),
    "plain": PLAIN,
    "bounded": replace(PLAIN, value=Within()),
    "k stands still": SelfForm().without("k"),
    "no decay": SelfForm().without("weight decay"),
    "q adaptive": SelfForm(adaptive=("q", "k", "v", "η", "α"), static=()),
}


def layer(form: SelfForm, seed: int = 0) -> SelfModifying:
    torch.manual_seed(seed)
    return SelfModifying(12, 3, 1, form=form, ranges=SelfRange(slow=-1.0, fast=0.5, retain=2.0)).double()


def read(made: SelfModifying, x: Tensor) -> Tensor:
    """What lies between the convolution and the norm."""
    state = made.initial_state(x.shape[0])
    memories, states = (made.memory, made.projections), (state.memory, state.projections)
    return by_token(memories, states, made.form, made.ranges, (made._by_head(x), made._static(x)))[0]


def answers(made: SelfModifying, x: Tensor, cut: int) -> tuple[object, list[Tensor]]:
    """Outputs and states of both halves of a stream, and a gradient of every parameter through all of it."""
    first, between = made(x[:, :cut])
    second, end = made(x[:, cut:], between)
    told = [leaf for leaf in tree.leaves((first, second, between, end)) if leaf.is_floating_point()]
    generator = torch.Generator().manual_seed(1)
    total = sum((leaf * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)).sum() for leaf in told)
    return (first, second, between, end), list(torch.autograd.grad(total, list(made.parameters())))


@pytest.mark.parametrize("path", [Chunk(), Chunk(stride=2)], ids=["stored", "recomputed"])
@pytest.mark.parametrize("name", FORMS)
def test_it_is_the_block_form_in_outputs_states_and_gradients(
    name: str, path: Chunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, x = layer(FORMS[name]), torch.randn(2, 9, 12, dtype=torch.float64)
    made.path = path
    assert tokenwise(made.memory, made.projections)
    ours, found = answers(made, x, cut=4)
    monkeypatch.setattr(self_modifying, "tokenwise", lambda *memories: False)
    theirs, known = answers(made, x, cut=4)
    assert_close(ours, theirs, 1e-10)
    assert_close(found, known, 1e-9)
    assert all(bool(gradient.any()) for gradient in found)


def test_rows_share_nothing_and_padding_goes_through_blocks() -> None:
    made, x = layer(SelfForm()), torch.randn(3, 6, 12, dtype=torch.float64)
    whole, state = made(x)
    for row in range(3):
        alone, of_row = made(x[row : row + 1])
        assert_close(alone, whole[row : row + 1], 1e-12)
        assert_close(of_row, tree.map(lambda leaf, row=row: leaf[row : row + 1], state), 1e-12)
    padded = torch.cat((torch.zeros_like(x[:, :2]), x), 1)
    valid = (torch.arange(8) >= 2).expand(3, -1)
    assert_close(made(padded, marks=Marks(valid=valid))[0][:, 2:], whole, 1e-10)


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
    made, x = layer(replace(PLAIN, value=Within(0.7))), torch.randn(1, 6, 12, dtype=torch.float64)
    y = read(made, x)
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
