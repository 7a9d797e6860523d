"""Saved sessions: they go on bit for bit, and belong to the model and the tokenizer that wrote them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import nestling
from nestling import tree
from nestling.data import BPETokenizer, ByteTokenizer
from nestling.errors import NestlingError
from nestling.models import LM
from nestling.stream import Sampler, Session
from tests.each import each
from tests.stream.tiny import Letters, random_tokens, tiny

BYTES = ByteTokenizer()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "session.safetensors"


@pytest.fixture
def saved(path: Path) -> Path:
    session = Session(tiny("hope"), BYTES)
    session.feed(random_tokens(37))
    session.save(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0, 1, 37])
@pytest.mark.parametrize("recipe", each(nestling.recipes()))
def test_a_loaded_session_goes_on_bit_for_bit(recipe: str, length: int, dtype: torch.dtype, path: Path) -> None:
    model = tiny(recipe, dtype)
    session = Session(model, BYTES, piece=17)
    session.feed(random_tokens(length))
    session.save(path)
    loaded = Session.load(tiny(recipe, dtype), path)  # in another process the model is another object
    assert (loaded.position, loaded.piece, loaded.nbytes) == (length, 17, session.nbytes)
    for _ in range(2):
        assert torch.equal(loaded.feed(random_tokens(50, seed=1)), session.feed(random_tokens(50, seed=1)))
        text = session.generate("Say: ", max_tokens=15, sampler=Sampler(top_p=0.9, seed=5))
        assert loaded.generate("Say: ", max_tokens=15, sampler=Sampler(top_p=0.9, seed=5)) == text
    found, expected = tree.leaves(loaded.state), tree.leaves(session.state)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_saving_does_not_touch_the_session_and_replaces_the_file(path: Path) -> None:
    session = Session(tiny("hope"), BYTES)
    for position in (10, 20):
        session.feed(random_tokens(10))
        session.save(path)
        assert Session.load(session.model, path).position == position
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def other_weights() -> LM:
    model = tiny("hope")
    with torch.no_grad():
        model.blocks[0].mixer.out.weight.mul_(1 + 1e-6)
    return model


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: tiny("transformer"), "recipe is 'hope' there and 'transformer' here"),
        (lambda: tiny("hope", dim=64), "dim is 32 there and 64 here"),
        (lambda: tiny("hope", vocab_size=300), "vocab_size is 256 there and 300 here"),
        (lambda: tiny("hope", torch.float32), r"embedding.weight is float64 .* there and float32 .* here"),
        (lambda: tiny("hope", seed=1), r"embedding.weight is float64 \(256, 32\) \w+ there and"),
        (other_weights, r"blocks.0.mixer.out.weight is float64 \(32, 32\) \w+ there and float64 \(32, 32\) \w+ here"),
        (lambda: tiny("hope").frozen(), r"the period of blocks.0.mixer.\S+ is 8 there and inf here"),
    ],
)
def test_a_session_of_another_model_is_refused_by_name(saved: Path, other: Callable[[], LM], difference: str) -> None:
    message = rf"is a session of another model; first difference: {difference}.*Load it with the model that saved it"
    with pytest.raises(NestlingError, match=message) as caught:
        Session.load(other(), saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [BPETokenizer(merges=()), Letters(20)])
def test_a_session_of_another_tokenizer_is_refused(saved: Path, other: BPETokenizer) -> None:
    with pytest.raises(
        NestlingError, match=r"saved with the tokenizer \w{12}, got \w{12}. Pass the tokenizer that saved it"
    ):
        Session.load(tiny("hope"), saved, other)


def test_a_truncated_file_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:size])
        with pytest.raises(NestlingError, match="damaged or truncated"):
            Session.load(tiny("hope"), saved)


def test_a_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(NestlingError, match="no such file"):
        Session.load(tiny("hope"), path)


def test_a_file_of_something_else_is_refused(path: Path) -> None:
    tree.save(path, {"weight": torch.zeros(3)})
    with pytest.raises(NestlingError, match=r"is not a session\. Pass a file that Session.save wrote"):
        Session.load(tiny("hope"), path)


def test_a_file_of_a_later_version_is_refused(saved: Path) -> None:
    tensors, metadata = tree.load(saved, Session(tiny("hope"), BYTES)._moment)
    tree.save(saved, tensors, {**metadata, "version": "2"})
    with pytest.raises(NestlingError, match=r"is a session of version 2, this is 1\. Update nestling"):
        Session.load(tiny("hope"), saved)
