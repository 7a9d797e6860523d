from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nestling.data import IGNORED, Batch, BPETokenizer, ByteTokenizer, Document
from nestling.recipes import build, recipes
from nestling.train.step import Score, backward, evaluate, score
from tests.each import each


def batch(rows: int, length: int = 12, seed: int = 0) -> Batch:
    """Random rows, a third of whose targets are ignored: not the same number in each."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(256, (rows, length + 1), generator=draw)
    ignored = torch.rand(rows, length, generator=draw) < torch.linspace(0.0, 0.7, rows)[:, None]
    starts = torch.rand(rows, length, generator=draw) < 0.2
    starts[:, 0] = True
    return Batch(tokens[:, :-1], torch.where(ignored, IGNORED, tokens[:, 1:]), starts)


def split(whole: Batch, rows: int) -> list[Batch]:
    cuts = zip(*(part.split(rows) for part in (whole.tokens, whole.targets, whole.starts)), strict=True)
    return [Batch(*parts) for parts in cuts]


@pytest.mark.parametrize("recipe", each(recipes()))
def test_accumulation_is_the_large_batch(recipe: str) -> None:
    model = build(recipe, dim=16, layers=1, heads=2).double()
    whole = batch(6)
    losses, gradients = [], []
    for batches in ([whole], split(whole, 2), split(whole, 1)):
        model.zero_grad()
        losses.append(float(backward(model, batches)))
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("recipe", each(recipes()))
def test_stretches_that_are_computed_again_have_the_gradients_of_the_whole(recipe: str) -> None:
    model, whole, gradients = build(recipe, dim=16, layers=1, heads=2).double(), batch(3), []
    for held in (None, 5):
        model.zero_grad()
        loss = float(backward(model, [whole], recompute=held))
        gradients.append({"loss": torch.tensor(loss), **{name: p.grad for name, p in model.named_parameters()}})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    scores = [evaluate(model, [whole], ByteTokenizer(), stretch=held).loss for held in (None, 5)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-9)


def test_the_loss_is_the_mean_over_all_targets() -> None:
    model = build("transformer", dim=16, layers=1, heads=2).double()
    whole = batch(6)
    logits, _ = model(whole.tokens, starts=whole.starts)
    expected = F.cross_entropy(logits.flatten(0, 1), whole.targets.flatten())
    assert float(backward(model, split(whole, 2))) == pytest.approx(expected.item(), rel=1e-12)


def test_a_step_without_targets_has_no_gradient() -> None:
    model = build("transformer", dim=16, layers=1, heads=2)
    empty = batch(2)
    empty.targets.fill_(IGNORED)
    assert float(backward(model, [empty])) == 0.0
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_documents_do_not_see_each_other() -> None:
    model = build("hope", dim=16, layers=1, heads=2).double()
    whole = batch(1)
    whole.starts[:] = False
    whole.starts[0, 0] = whole.starts[0, 6] = True
    whole.targets[0, :6] = IGNORED
    alone = Batch(whole.tokens[:, 6:], whole.targets[:, 6:], whole.starts[:, 6:])
    assert float(backward(model, [whole])) == pytest.approx(float(backward(model, [alone])), rel=1e-9)


def test_evaluation_leaves_no_trace() -> None:
    model = build("hope", dim=16, layers=1, heads=2).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    first, second = (evaluate(model, split(batch(4), 2), ByteTokenizer()) for _ in range(2))
    assert first == second
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())


def test_evaluation_is_the_mean_over_all_targets() -> None:
    model = build("transformer", dim=16, layers=1, heads=2).double()
    whole, parts = (evaluate(model, batches, ByteTokenizer()) for batches in ([batch(4)], split(batch(4), 1)))
    assert whole.loss == pytest.approx(parts.loss, rel=1e-12)
    assert (whole.tokens, whole.bytes) == (parts.tokens, parts.bytes) == (int((batch(4).targets != IGNORED).sum()),) * 2


def test_bits_per_byte_counts_bytes_not_tokens() -> None:
    tokenizer = BPETokenizer.train([Document("a", "the then them theme " * 9)], 260)
    ids = torch.tensor([[259, 257, IGNORED, 97]])
    found = score(math.log(2), [Batch(ids, ids, ids > 0)], tokenizer)
    size = tokenizer.count_bytes([259, 257, 97])
    assert size > 3
    assert found == Score(loss=math.log(2), tokens=3, bytes=size)
    assert found.bits_per_byte == pytest.approx(3 / size)


def test_a_uniform_guess_is_eight_bits() -> None:
    assert Score(math.log(256), 10, 10).bits_per_byte == pytest.approx(8.0)


def test_bfloat16_is_near_float32() -> None:
    model = build("transformer", dim=16, layers=1, heads=2)
    wide, narrow = (float(backward(model, [batch(4)], dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert wide != narrow
    assert wide == pytest.approx(narrow, rel=1e-2)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
