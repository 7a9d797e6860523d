"""Optimizers on two processes: DDP and FSDP2 (gloo, processor) move weights as one process with all the data does."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from nestling import NestlingError, optim
from nestling.optim.sharding import whole
from tests.optim.makers import MAKERS
from tests.optim.problem import network

STEPS, WORLD = 5, 2


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.dim() == 2]


def rows(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return tuple(torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (5, 3))


def run(model: nn.Module, make: Any, rank: int, world: int) -> list[torch.Tensor]:
    """All weights after a few steps on a share of the rows."""
    optimizer = make(model)
    for step in range(STEPS):
        x, y = (each.chunk(world)[rank] for each in rows(step))
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return [whole(p.detach()).clone() for p in model.parameters()]


def wrapped(kind: str) -> nn.Module:
    model = network()
    if kind == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model:
        fully_shard(layer, mesh=mesh) if isinstance(layer, nn.Linear) else None
    return fully_shard(model, mesh=mesh)


def nan_on_one_process() -> str:
    """The message that a process gets where another one's part of a gradient is not a number."""
    model = wrapped("fsdp")
    optimizer = optim.SGD(model.parameters(), 0.1)
    x, y = rows(0)
    (model(x) - y).square().mean().backward()
    if dist.get_rank() == 0:
        model[0].weight.grad.to_local()[0, 0] = torch.nan
    try:
        optimizer.step()
    except NestlingError as error:
        return str(error)
    return ""


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    found: dict[str, Any] = {}
    for kind in ("ddp", "fsdp"):
        for name, make in MAKERS.items():
            try:
                found[f"{kind} {name}"] = run(wrapped(kind), make, rank, WORLD)
            except Exception as error:  # shown by the test of that optimizer
                found[f"{kind} {name}"] = f"{type(error).__name__}: {error}"
    model = wrapped("fsdp")
    optimizer = optim.M3(matrices(model), 0.05)
    run(model, lambda _: optimizer, rank, WORLD)
    momentum = [leaf for state in optimizer.state.values() for leaf in state.values() if leaf.dim() == 2]
    found["sharded"] = all(isinstance(leaf, DTensor) for leaf in momentum)
    found["nan"] = nan_on_one_process()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_are_one(found, kind: str, name: str) -> None:
    expected = run(network(), MAKERS[name], 0, 1)
    for rank in range(WORLD):
        torch.testing.assert_close(found[rank][f"{kind} {name}"], expected, rtol=1e-7, atol=1e-9)
    same = zip(found[0][f"{kind} {name}"], found[1][f"{kind} {name}"], strict=True)
    assert all(torch.equal(a, b) for a, b in same), "processes drift apart"


@pytest.mark.slow
def test_what_is_remembered_entry_by_entry_is_sharded_as_the_weight(found) -> None:
    assert found[0]["sharded"] and found[1]["sharded"]


@pytest.mark.slow
def test_all_processes_refuse_what_one_has_seen(found) -> None:
    assert "nan" in found[0]["nan"] and found[0]["nan"] == found[1]["nan"]
