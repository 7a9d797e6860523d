"""States as trees: mapped, copied, measured, printed, saved and loaded."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import nestling.tree as tree
from nestling.errors import NestlingError
from nestling.tree import state


@state
class Leaf:
    weight: Tensor
    name: str


@state
class Branch:
    left: Leaf
    rest: tuple


def example(dtype: torch.dtype = torch.float32) -> Branch:
    return Branch(
        Leaf(torch.arange(6, dtype=dtype).reshape(2, 3), "a"),
        (torch.ones(2, dtype=torch.int64), {"x": torch.zeros(2, 0), "y": None}, ()),
    )


def test_leaves_have_readable_paths_in_order():
    assert [path for path, _ in tree.items(example())] == ["left.weight", "rest.0", "rest.1.x"]
    assert [leaf.shape for leaf in tree.leaves(example())] == [(2, 3), (2,), (2, 0)]
    assert tree.items(()) == [] and tree.leaves(None) == []
    assert tree.items(torch.ones(1))[0][0] == ""


def test_a_state_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        example().left.weight = torch.zeros(1)


def test_what_builds_a_tree_keeps_no_tensor_of_the_first():
    first = example()
    there = weakref.ref(first.left.weight)
    _, rebuild = tree.flatten(first)
    del first, _
    assert there() is None
    assert tree.pformat(rebuild(tree.leaves(example()))) == tree.pformat(example())


def test_map_acts_on_tensors_and_keeps_the_rest():
    doubled = tree.map(lambda a, b: a + b, example(), example())
    assert isinstance(doubled, Branch) and doubled.left.name == "a" and doubled.rest[1]["y"] is None
    assert torch.equal(doubled.left.weight, 2 * example().left.weight)
    with pytest.raises(ValueError, match=r"(?i)mismatch|expected|node"):
        tree.map(lambda a, b: a, example(), example().left)


def test_flatten_builds_again():
    leaves, rebuild = tree.flatten(example())
    again = rebuild([leaf + 1 for leaf in leaves])
    assert again.left.name == "a" and torch.equal(again.rest[0], torch.full((2,), 2))


def test_stack_and_where_act_on_the_first_dimension():
    stacked = tree.stack([example(), example(), example()])
    assert stacked.left.weight.shape == (3, 2, 3)
    other = tree.map(lambda leaf: leaf + 10, example())
    chosen = tree.where(torch.tensor([True, False]), example(), other)
    assert torch.equal(chosen.left.weight[0], example().left.weight[0])
    assert torch.equal(chosen.left.weight[1], other.left.weight[1])
    assert chosen.rest[0].tolist() == [1, 11]


def test_a_fork_shares_nothing_and_detach_shares_all():
    whole = tree.map(lambda leaf: leaf.clone().requires_grad_(leaf.is_floating_point()) * 1, example())
    forked, detached = tree.fork(whole), tree.detach(whole)
    for a, b, c in zip(*(tree.leaves(t) for t in (whole, forked, detached)), strict=True):
        assert not b.requires_grad and not c.requires_grad
        if a.numel():
            assert a.data_ptr() != b.data_ptr() and a.data_ptr() == c.data_ptr()
    forked.left.weight.zero_()
    assert bool(whole.left.weight.any())
    expanded = tree.fork(torch.zeros(1, 3).expand(4, 3))
    expanded[0] += 1
    assert not bool(expanded[1].any()), "rows of a fork do not share memory either"


def test_bytes_and_devices():
    assert tree.nbytes(example()) == 6 * 4 + 2 * 8
    assert tree.nbytes(example(torch.bfloat16)) == 6 * 2 + 2 * 8
    moved = tree.to(example(), "meta")
    assert {leaf.device.type for leaf in tree.leaves(moved)} == {"meta"} and moved.left.name == "a"


def test_pformat_is_one_line_a_leaf():
    lines = tree.pformat(example()).splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["left.weight", "(2,", "3)", "float32", "[0,", "5]"]
    assert lines[2].split()[-1] == "empty"


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_save_then_load_is_bit_equal(tmp_path, dtype):
    values = torch.tensor([0.0, -0.0, 1.0, 3.5, 100.0, 0.1]).to(dtype)
    if dtype.is_floating_point:
        values[0], values[1] = float("nan"), float("-inf")
    saved = {"values": values, "transposed": torch.ones(2, 3, dtype=dtype).T, "scalar": values[3], "none": None}
    tree.save(tmp_path / "state", saved, {"step": "3", "note": "größer\n{}"})
    like = {**tree.map(torch.zeros_like, saved), "none": None}
    loaded, metadata = tree.load(tmp_path / "state", like)
    for (path, a), b in zip(tree.items(loaded), tree.leaves(saved), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, path
        assert (
            a.contiguous().reshape(-1).view(torch.uint8).tolist()
            == b.contiguous().reshape(-1).view(torch.uint8).tolist()
        )
    assert metadata == tree.read_metadata(tmp_path / "state") == {"step": "3", "note": "größer\n{}"}


def test_what_is_loaded_lies_as_what_is_made(tmp_path):
    """At multiples of 64 bytes, as torch allocates: else the same numbers give other sums, and a session does not go on bit for bit."""
    made = {"a": torch.randn(7), "b": torch.randn(33, 5), "c": torch.zeros((), dtype=torch.int64)}
    tree.save(tmp_path / "state.safetensors", made, {"a name": "x" * 13})
    loaded, _ = tree.load(tmp_path / "state.safetensors", made)
    assert all(leaf.data_ptr() % 64 == 0 for leaf in tree.leaves(loaded))


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    shared = torch.zeros(3)
    tree.save(tmp_path / "state", {"a": shared, "b": shared, "c": shared.expand(2, 3)})
    with safe_open(tmp_path / "state", framework="pt") as file:
        assert sorted(file.keys()) == ["a", "b", "c"]
    loaded, _ = tree.load(tmp_path / "state", {"a": torch.ones(3), "b": torch.ones(3), "c": torch.ones(2, 3)})
    loaded["a"] += 1
    assert not bool(loaded["b"].any())


def test_two_leaves_of_one_path_are_refused(tmp_path):
    """A dict key with a dot in it: one of the two would be lost."""
    with pytest.raises(NestlingError, match=r"a\.b"):
        tree.save(tmp_path / "state", {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)})
    assert not (tmp_path / "state").exists()


DIFFERENT = [
    ({"w": torch.zeros(2), "b": torch.zeros(1)}, "has no b"),
    ({}, "this one has no w"),
    ({"v": torch.zeros(2)}, "has no v"),
    ({"w": torch.zeros(3)}, r"w is \(2,\) there and \(3,\) here"),
    ({"w": torch.zeros(2, 1)}, r"w is \(2,\) there and \(2, 1\) here"),
    ({"w": torch.zeros(2, dtype=torch.float64)}, "torch.float32 there and torch.float64 here"),
]


@pytest.mark.parametrize(("like", "message"), DIFFERENT)
def test_another_tree_is_refused_with_the_first_difference(tmp_path, like, message):
    tree.save(tmp_path / "state", {"w": torch.zeros(2)})
    with pytest.raises(NestlingError, match=message) as raised:
        tree.load(tmp_path / "state", like)
    assert "\n" not in str(raised.value)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "state"
    tree.save(path, {"w": torch.arange(20.0)}, {"step": "3"})
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(NestlingError, match="damaged or truncated"):
            tree.load(path, {"w": torch.zeros(20)})
        with pytest.raises(NestlingError, match="damaged or truncated"):
            tree.read_metadata(path)


@pytest.mark.parametrize("content", [b"not a tensor", b"\xff" * 64, b"PK\x03\x04" + b"\0" * 64])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(NestlingError, match="damaged or truncated"):
        tree.load(tmp_path / "state", {"w": torch.zeros(2)})


def test_no_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(NestlingError, match="no such file"):
            tree.load(path, {})


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "state"
    tree.save(path, {"w": torch.ones(2)})
    with pytest.raises(Exception, match=r"(?i)metadata|str|argument"):
        tree.save(path, {"w": torch.zeros(2)}, {"step": 3})
    assert torch.equal(tree.load(path, {"w": torch.zeros(2)})[0]["w"], torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
