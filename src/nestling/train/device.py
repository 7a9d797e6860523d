"""Where a run computes, and in which precision."""

from __future__ import annotations

import resource
import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from nestling.errors import NestlingError


def choose_device(name: str) -> torch.device:
    """The device of ``TrainConfig.device``.

    Raises:
        NestlingError: the name is no device, or this machine does not have it.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise NestlingError(f"device {name!r} cannot be used here ({reason}): use auto or cpu.") from error
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of matrix products for ``TrainConfig.precision`` on ``device``.

    >>> choose_dtype("auto", torch.device("cpu"))
    torch.float32
    """
    match precision:
        case "auto" if device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.bfloat16
        case "bfloat16":
            return torch.bfloat16
        case _:
            return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Matrix products in ``dtype`` while the context lasts; float32 changes nothing."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU so far, or that this process took on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes, but on macOS
