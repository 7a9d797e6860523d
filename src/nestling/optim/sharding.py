"""Weights that are spread over processes: where a rule needs the whole of a matrix, and what other processes have seen.

Sharded parameters (FSDP2) are ``DTensor``s, and so is what an optimizer remembers entry by entry: each process holds its
part. A rule that looks at a whole matrix gathers it, computes the same as every other process, and keeps its own part.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from nestling.errors import NestlingError


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every process; another tensor as it is.

    >>> whole(torch.ones(1))
    tensor([1.])
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(full: Tensor, like: Tensor) -> Tensor:
    """What every process has whole, sharded as ``like`` is.

    >>> part(torch.ones(1), torch.zeros(1))
    tensor([1.])
    """
    if not isinstance(like, DTensor) or isinstance(full, DTensor):
        return full
    everywhere = [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(full, like.device_mesh, everywhere, run_check=False).redistribute(
        placements=like.placements
    )


def sums(tensors: list[Tensor]) -> Tensor:
    """The sum of each tensor, in at least float32: one number each, which is finite where all entries are, if they are not huge.

    Of sharded tensors every process gets the same: one exchange for all.

    >>> sums([torch.ones(2), torch.tensor([torch.nan])]).isfinite()
    tensor([ True, False])
    """
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    wide = [each.sum(dtype=torch.promote_types(each.dtype, torch.float32)).double() for each in local]
    found = torch.stack(wide)
    for mesh in {tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor)}:
        for dimension in range(mesh.ndim):
            dist.all_reduce(found, group=mesh.get_group(dimension))
    return found


def companions(model: nn.Module, weight: Tensor) -> Any:
    """The group of processes that see other inputs of ``weight``: that of DDP or FSDP2; None where there is none."""
    if isinstance(weight, DTensor):
        if weight.device_mesh.ndim > 1:
            raise NestlingError(
                f"a weight is sharded over a mesh of {weight.device_mesh.ndim} dimensions, and inputs are gathered over one: use fully_shard on one."
            )
        return weight.device_mesh.get_group()
    found = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    return found[0].process_group if found else None


def gathered(rows: Tensor, group: Any) -> Tensor:
    """The rows of all processes, one process after the other; they need not have equally many."""
    if group is None:
        return rows
    counts = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, torch.tensor(len(rows), device=rows.device), group=group)
    most = max(int(count) for count in counts)
    found = [rows.new_empty(most, rows.shape[1]) for _ in counts]
    dist.all_gather(found, pad(rows, (0, 0, 0, most - len(rows))).contiguous(), group=group)
    return torch.cat([each[: int(count)] for each, count in zip(found, counts, strict=True)])
