"""Shapes at the door: what does not fit is refused by name, whatever the path, and never broadcast."""

from __future__ import annotations

import pytest
import torch

import nestling.tree as tree
from nestling.core import MLP, Gates, Memory
from nestling.errors import NestlingError
from nestling.ops import Chunk, Marks, Reference, Resumed, begin, scan

MEMORY = Memory(MLP(2, 2), period=4)
B, H, T, D = 3, 2, 6, 4


def weights(heads: int = H) -> dict[str, torch.Tensor]:
    return {name: torch.randn(heads, *shape) for name, shape in MEMORY.architecture.shapes(D, D).items()}


def mask(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


BAD = [
    ({"marks": Marks(mask(B, T - 1))}, r"valid must be bool \(B, T\) = \(3, 6\), got \(3, 5\)"),
    ({"marks": Marks(mask(1, T))}, r"valid must be bool .* got \(1, 6\)"),
    ({"marks": Marks(torch.ones(B, T))}, "valid must be bool .* torch.float32"),
    ({"marks": Marks(None, mask(B, T + 1))}, "starts must be bool"),
    ({"state": weights(1)}, r"initial weights w1: .* needs \(2, 8, 4\) here, got \(1, 8, 4\)"),
    ({"state": {name: w[0] for name, w in weights().items()}}, r"initial weights w1: .* got \(8, 4\)"),
    ({"state": {"w1": weights()["w1"]}}, "initial weights w2: .* got nothing"),
    ({"state": {**weights(), "w3": torch.zeros(1)}}, "initial weights w3: .* needs no such weight"),
    ({"state": begin(MEMORY, weights(), 1)}, r"the state w1: .* needs \(3, 2, 8, 4\) here, got \(1, 2, 8, 4\)"),
    ({"state": Resumed(begin(MEMORY, weights(), B), weights(1))}, "initial weights w1"),
    ({"width": D + 1}, r"initial weights w1: .* needs \(2, 10, 5\)"),
    ({"gates": Gates(lr={"w1": 0.1})}, r"gate lr is for \['w1'\], the weights are \['w1', 'w2'\]"),
    ({"gates": Gates(retain=torch.ones(B, H, T + 1))}, r"gate retain has shape \(3, 2, 7\)"),
    ({"gates": Gates(lr={"w1": 0.1, "w2": torch.ones(5)})}, r"gate lr\['w2'\] has shape \(5,\)"),
]


@pytest.mark.parametrize("path", [Chunk(), Reference()], ids=repr)
@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_does_not_fit_is_refused_in_one_line(change, message, path):
    given = {"state": weights(), "gates": Gates(0.1), "marks": Marks(), "width": D, **change}
    x = torch.randn(B, H, T, given["width"])
    with pytest.raises(NestlingError, match=message) as raised:
        scan(MEMORY, given["state"], x, x, x, given["gates"], marks=given["marks"], path=path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", [Chunk(), Reference()], ids=repr)
def test_gates_of_fewer_dimensions_stand_for_all_heads_rows_or_tokens(path):
    x = torch.nn.functional.normalize(torch.randn(B, H, T, D), dim=-1)
    w = weights()
    for gate in (torch.tensor(0.1), torch.rand(T), torch.rand(H, 1), torch.rand(B, 1, T)):
        full = Gates(lr=gate.expand(B, H, T), retain={"w1": gate.expand(B, H, T), "w2": gate.expand(B, H, T)})
        y, state = scan(MEMORY, w, x, x, x, Gates(lr=gate, retain={"w1": gate, "w2": gate}), path=path)
        z, after = scan(MEMORY, w, x, x, x, full, path=path)
        assert torch.equal(y, z)
        assert all(torch.equal(a, b) for a, b in zip(tree.leaves(state), tree.leaves(after), strict=True))
