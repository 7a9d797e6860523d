"""Whole periods in C equal the same in torch, and the reference, in outputs, states and every outer gradient."""

from __future__ import annotations

import ctypes

import pytest
import torch

import nestling.ops.native.library as library
import nestling.ops.native.plan as native
import nestling.ops.periods as in_torch
import nestling.tree as tree
from nestling.core import L2, MLP, Decay, Matrix, Memory, Normed, Residual
from nestling.core.architecture import SiLU
from nestling.errors import NestlingError
from nestling.ops import Chunk, Marks, Reference, begin, scan
from nestling.ops.periods import scan_periods
from tests.ops.pieces import in_pieces, marked
from tests.ops.test_periods import DEEP, rules
from tests.ops.test_scan import answers, assert_same, draw

pytestmark = pytest.mark.skipif(library.compiler() is None, reason="needs a C compiler")

WIDTH = 8
"""Of a key: as many numbers as the widest registers hold in float64"""


@pytest.fixture
def only_native(monkeypatch):
    """What is not done by the program fails."""

    def planned(*given):
        raise AssertionError("by torch")

    monkeypatch.setattr(in_torch, "planned", planned)


def memories(rule, period=4):
    for architecture in (Matrix(), Residual(MLP(2, 2, SiLU())), Normed(MLP(3, 3)), DEEP):
        yield Memory(architecture, L2(), Decay(), rule, period, "commit")


@pytest.mark.parametrize("rule", rules(4), ids=repr)
@pytest.mark.parametrize("per_weight", [True, False])
def test_periods_in_c_equal_the_reference(rule, per_weight, only_native):
    for memory in memories(rule):
        given = draw(memory, length=12, per_weight=per_weight, width=WIDTH)
        expected = answers(memory, given, Reference())
        for stride in (None, 1, 2, 9):
            assert_same(answers(memory, given, Chunk(stride=stride, native=True)), expected)


@pytest.mark.parametrize("share", [0.0, 1e9])
def test_what_is_stored_changes_no_answer(share, monkeypatch):
    monkeypatch.setattr(native, "SHARE", share)
    for memory in memories(rules(4)[1]):
        given = draw(memory, length=12, width=WIDTH)
        expected = answers(memory, given, Chunk())
        for stride in (1, 2, 9):
            assert_same(answers(memory, given, Chunk(stride=stride, native=True)), expected)


@pytest.mark.parametrize("shape", [(5, 15, 40), (64, 128, 520), (70, 140, 24), (1, 3, 8)], ids=str)
@pytest.mark.parametrize("rule", [0, 1, 3])
def test_every_remainder_of_tiles_and_panels(shape, rule, only_native, monkeypatch):
    period, length, width = shape
    # Wide enough, and long, for products in several pieces.
    architecture = Matrix() if width > 100 else Residual(Normed(MLP(3, 2)))
    memory = Memory(architecture, L2(), Decay(), rules(period)[rule], period, "commit")
    given = draw(memory, length=length, width=width, heads=1)
    got = answers(memory, given, Chunk(native=True))
    monkeypatch.undo()
    assert_same(got, answers(memory, given, Chunk()))


def test_pieces_documents_and_padding():
    for memory in memories(rules(8)[3], 8):
        given = tree.detach(draw(memory, length=45, width=WIDTH, batch=4))
        whole = scan(memory, *given, path=Reference())
        assert_same(in_pieces(memory, given[0], given[1:], (1, 8, 27, 28, 32, 45), Chunk(block=4, native=True)), whole)
        valid, starts = marked(4, 45)
        for marks in (Marks(valid), Marks(None, starts)):
            expected = scan(memory, *given, marks=marks, path=Reference())
            assert_same(scan(memory, *given, marks=marks, path=Chunk(native=True)), expected)


def test_writes_alone_need_no_queries():
    for rule in rules(4):
        memory = Memory(DEEP, L2(), Decay(), rule, 4, "commit")
        weights, query, key, value, gates = tree.detach(draw(memory, length=8, width=WIDTH))
        before = begin(memory, weights, 2)
        expected = scan_periods(memory, before, (query, key, value, gates))[1]
        y, after = scan_periods(memory, before, (None, key, value, gates), plan=native.planned)
        assert y.shape[2] == 0
        assert_same(after, expected)


def test_float32_is_as_exact_as_torch(only_native, monkeypatch):
    memory = Memory(DEEP, L2(), Decay(), rules(16)[3], 16, "commit")
    exact = draw(memory, length=64, width=32)
    rough = tree.map(lambda leaf: leaf.detach().float().requires_grad_(), exact)
    got = answers(memory, rough, Chunk(native=True))
    monkeypatch.undo()
    expected = answers(memory, exact, Chunk())
    assert_same(tree.map(lambda x: x.double(), got), tree.map(lambda x: x.double(), expected), 1e-5)


def test_memory_that_is_new_needs_no_zeros(poisoned):
    memory = Memory(DEEP, L2(), Decay(), rules(4)[1], 4, "commit")
    given = draw(memory, length=14, width=WIDTH)
    expected = answers(memory, given, Reference())
    for stride in (None, 1, 2):
        assert_same(answers(memory, given, Chunk(stride=stride, native=True)), expected)


@torch.no_grad()
def test_a_state_that_is_gone_on_from_is_left_as_it_is():
    memory = Memory(DEEP, L2(), Decay(), rules(4)[3], 4, "commit")
    weights, *tokens = tree.detach(draw(memory, length=24, width=WIDTH))
    state = begin(memory, weights, 2)
    for length in (4, 8, 16):
        kept = tree.fork(state)
        _, after = scan(memory, state, *tree.map(lambda x, n=length: x[:, :, :n], tokens), path=Chunk(native=True))
        assert all(torch.equal(a, b) for a, b in zip(tree.leaves(state), tree.leaves(kept), strict=True))
        state = after


@pytest.mark.parametrize("rule", rules(4), ids=repr)
def test_gradients_reach_the_state_that_is_gone_on_from(rule, only_native):
    """Momenta too, which are no constants there."""
    memory = Memory(DEEP, L2(), Decay(), rule, 4, "commit")
    weights, *tokens = draw(memory, length=24, width=WIDTH)

    def total(path):
        state, outputs = begin(memory, weights, 2), []
        for part in (slice(0, 12), slice(12, 24)):
            y, state = scan(memory, state, *tree.map(lambda x, part=part: x[:, :, part], tokens), path=path)
            outputs.append(y)
        leaves = [leaf for leaf in tree.leaves((outputs, state)) if leaf.is_floating_point()]
        loss = sum((leaf * torch.linspace(-1, 1, leaf.numel()).view(leaf.shape)).sum() for leaf in leaves)
        return [y.detach() for y in outputs], torch.autograd.grad(
            loss, tree.leaves((weights, tokens)), materialize_grads=True
        )

    assert_same(total(Chunk(native=True)), total(Reference()))


def test_threads_change_nothing():
    memory = Memory(DEEP, L2(), Decay(), rules(4)[1], 4, "commit")
    given, before = draw(memory, length=24, width=WIDTH, batch=3), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 4, 64):
            torch.set_num_threads(threads)
            found.append(answers(memory, given, Chunk(stride=2, native=True)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(tree.leaves(found[0]), tree.leaves(other), strict=True))


def test_what_the_program_has_no_form_for_goes_by_torch():
    rule = rules(4)[1]
    for memory, width in (
        (Memory(DEEP, L2(), Decay(), rule, 4, "commit"), 5),
        (Memory(MLP(2, 9), L2(), Decay(), rule, 4, "commit"), WIDTH),
        (Memory(DEEP, L2(), Decay(), rule, 4), WIDTH),
    ):
        given = draw(memory, length=9, width=width)
        assert_same(answers(memory, given, Chunk(native=True)), answers(memory, given, Reference()))
    memory = Memory(DEEP, L2(), Decay(), rule, 4, "commit")
    half = tree.map(lambda leaf: leaf.detach().bfloat16(), draw(memory, length=8, width=WIDTH))
    assert_same(scan(memory, *half, path=Chunk(native=True)), scan(memory, *half, path=Chunk()), 0)


def test_second_derivatives_are_refused():
    memory = Memory(DEEP, L2(), Decay(), rules(4)[1], 4, "commit")
    weights, q, k, v, gates = draw(memory, length=8, width=WIDTH)
    y, _ = scan(memory, weights, q, k, v, gates, path=Chunk(native=True))
    with pytest.raises(NestlingError, match="no second derivative"):
        torch.autograd.grad(y.sum(), [q], create_graph=True)


@pytest.mark.parametrize("dtype", library.REALS, ids=str)
def test_both_sides_mean_the_same_structs(dtype):
    assert library.library(dtype).job_size() == ctypes.sizeof(library.Job)


def test_small_numbers_stay_in_other_programs():
    """A program that is linked with -ffast-math makes the whole process flush them to zero."""
    library.library(torch.float32)
    tiny = torch.tensor([1e-40])
    assert float((tiny * 0.5)[0]) > 0


def test_a_program_is_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = library._compiled("float")
    assert path.is_relative_to(tmp_path) and path.exists()
    monkeypatch.setattr(library.subprocess, "run", None)
    assert library._compiled("float") == path
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_missing_or_failing_compiler_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    with pytest.raises(NestlingError, match=r"false .*failed"):
        library._compiled("float")
    monkeypatch.delenv("CC")
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    with pytest.raises(NestlingError, match="no C compiler was found"):
        library._compiled("float")
    assert not list(tmp_path.rglob("*.so"))


def test_a_folder_that_cannot_be_written_to_is_told(monkeypatch, tmp_path):
    (tmp_path / "nestling").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NestlingError, match="XDG_CACHE_HOME"):
        library.library.__wrapped__(torch.float32)
