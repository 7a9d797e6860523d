"""The sampler against its definition, written out with Python's own numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import NestlingError
from nestling.stream import Sampler


def literally(row: list[float], temperature: float, top_k: int | None, top_p: float) -> list[float]:
    """The distribution of one row, token by token."""
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))[:top_k]
    weights = {token: math.exp((row[token] - max(row)) / temperature) for token in order}
    mass, kept, whole = 0.0, [], sum(weights.values())
    for token in order:
        if mass >= top_p:
            break
        kept.append(token)
        mass += weights[token] / whole
    rest = sum(weights[token] for token in kept)
    return [weights[token] / rest if token in kept else 0.0 for token in range(len(row))]


@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 3, 7, 100]),
    top_p=st.sampled_from([0.05, 0.5, 0.93, 1.0]),
)
def test_the_distribution_is_its_definition(seed: int, temperature: float, top_k: int | None, top_p: float) -> None:
    logits = 2 * torch.randn(3, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = Sampler(temperature, top_k, top_p).probabilities(logits)
    expected = torch.tensor([literally(row, temperature, top_k, top_p) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_nucleus_includes_the_token_that_crosses_the_mass() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    torch.testing.assert_close(
        Sampler(top_p=0.6).probabilities(logits), torch.tensor([[0.625, 0.375, 0.0]], dtype=torch.float64)
    )


def test_the_nucleus_ends_where_the_mass_is_reached() -> None:
    assert Sampler(top_p=0.5).probabilities(torch.zeros(1, 4)).tolist() == [[0.5, 0.5, 0, 0]]


def test_top_k_comes_before_top_p() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    # After the cut to two tokens the first has 4/7 of the mass, which is enough.
    assert Sampler(top_k=2, top_p=0.55).probabilities(logits).tolist() == [[1, 0, 0, 0]]


def test_equal_logits_keep_the_lower_ids() -> None:
    assert Sampler(top_k=2).probabilities(torch.zeros(1, 5)).tolist() == [[0.5, 0.5, 0, 0, 0]]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 1.5, 0.0, 2.0, -1.0])
    sampler, count = Sampler(temperature=1.3, top_k=4, top_p=0.95), 20_000
    p = sampler.probabilities(logits[None])[0]
    drawn = sampler(logits.expand(count, -1), torch.Generator().manual_seed(0)).bincount(minlength=5) / count
    assert ((drawn - p).abs() <= 4 * (p * (1 - p) / count).sqrt()).all()
    assert (drawn[p == 0] == 0).all()


def test_greedy_is_the_likeliest_whatever_the_random_numbers() -> None:
    logits = torch.randn(50, 30)
    greedy = Sampler(temperature=0, top_k=3, top_p=0.1)
    assert torch.equal(greedy(logits, torch.Generator().manual_seed(1)), logits.argmax(1))
    assert torch.equal(greedy(logits), logits.argmax(1))


def test_rows_may_be_forbidden_tokens_in_part() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    assert Sampler(top_k=3, top_p=0.99).probabilities(logits).tolist() == [[0.5, 0, 0.5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_small_temperature_does_not_overflow(dtype: torch.dtype) -> None:
    assert Sampler(temperature=1e-37).probabilities(torch.tensor([[30.0, 300.0, -30.0]], dtype=dtype)).tolist() == [
        [0, 1, 0]
    ]


def test_random_numbers_are_those_of_a_seed_and_a_position() -> None:
    logits = torch.zeros(1, 10_000)
    draws = {
        (seed, position): int(Sampler(seed=seed)(logits, Sampler(seed=seed).generator(position)))
        for seed in range(4)
        for position in range(4)
    }
    assert len(set(draws.values())) == len(draws)
    assert draws[2, 3] == int(Sampler(seed=2)(logits, Sampler(seed=2).generator(3)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"temperature": math.nan}, "temperature must be at least 0, got nan"),
        ({"temperature": math.inf}, "temperature must be at least 0, got inf"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(NestlingError, match=message):
        Sampler(**fields)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=0), Sampler(top_p=0.5)])
def test_logits_that_are_no_numbers_are_refused(sampler: Sampler, bad: float) -> None:
    with pytest.raises(NestlingError, match="the logits hold NaN or inf"):
        sampler(torch.tensor([[0.0, bad, 1.0]]))


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(NestlingError, match=r"a sampler reads logits \(B, V\), got \(1, 2, 3\)"):
        Sampler()(torch.zeros(1, 2, 3))
