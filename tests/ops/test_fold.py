"""Writes folded into a weight: the equation, and both derivatives by every term."""

import pytest
import torch

from nestling.ops.fold import fold, through


def given(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("trace", [True, False], ids=["momentum", "plain"])
def test_the_fold_is_its_equation_with_both_derivatives(trace):
    torch.manual_seed(0)
    kept, weight, pairs, inputs = given(2, 2), given(2, 2, 3, 4), given(2, 2, 5, 3), given(2, 2, 5, 4)
    carried, held = given(2, 2), given(2, 2, 3, 4)
    terms = (carried, held) if trace else ()

    def run(kept, weight, pairs, inputs, *term):
        return fold((kept, weight), term or None, pairs, inputs)

    expected = kept[..., None, None] * weight + torch.einsum("bhto,bhti->bhoi", pairs, inputs)
    if trace:
        expected = expected + carried[..., None, None] * held
    torch.testing.assert_close(run(kept, weight, pairs, inputs, *terms), expected)
    assert torch.autograd.gradcheck(run, (kept, weight, pairs, inputs, *terms))
    assert torch.autograd.gradgradcheck(run, (kept, weight, pairs, inputs, *terms))


def test_a_weight_shared_by_the_batch_is_folded_for_each_row():
    torch.manual_seed(0)
    weight = torch.randn(1, 1, 3, 4, dtype=torch.float64).expand(2, 2, 3, 4)
    pairs, inputs = given(2, 2, 5, 3), given(2, 2, 5, 4)
    folded = fold((torch.ones(2, 2, dtype=torch.float64), weight), None, pairs, inputs)
    torch.testing.assert_close(folded, weight + pairs.mT @ inputs)


def test_a_product_is_itself_with_both_derivatives():
    torch.manual_seed(0)
    weight, x = given(2, 3, 4), given(2, 5, 4)
    torch.testing.assert_close(through(weight, x), x @ weight.mT)
    assert torch.autograd.gradcheck(through, (weight, x))
    assert torch.autograd.gradgradcheck(through, (weight, x))
