"""Per-sequence weights on top of those that all sequences share: y = W x + Δ_b x, a Δ for each row b of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nestling.errors import NestlingError


def linears(model: nn.Module, owner: Callable[[str], bool]) -> dict[str, nn.Linear]:
    """The linear maps of a model whose weights ``owner`` names, by the names of their weights.

    Raises:
        NestlingError: it names what is no weight of an ``nn.Linear``, or nothing.

    >>> list(linears(nn.Sequential(nn.Linear(2, 2, bias=False)), lambda name: True))
    ['0.weight']
    """
    found: dict[str, nn.Linear] = {}
    for place, module in model.named_modules():
        for name, _ in module.named_parameters(prefix=place, recurse=False):
            if not owner(name):
                continue
            if not (isinstance(module, nn.Linear) and name.endswith("weight")):
                raise NestlingError(
                    f"a context writes matrices of linear maps, got {name} of {type(module).__name__}: choose owns more narrowly."
                )
            found[name] = module
    if not found:
        raise NestlingError("no weight of the model is owned: choose owns such as '*.chain.0.*'.")
    return found


@contextmanager
def applied(modules: Mapping[str, nn.Linear], deltas: Mapping[str, Tensor]) -> Iterator[None]:
    """While this lasts, row b of a batch goes through W + Δ_b; ``deltas`` (B, out, in) by name. Not for several threads at once.

    >>> layer, x = nn.Linear(2, 3, bias=False), torch.ones(4, 5, 2)
    >>> with applied({"w": layer}, {"w": torch.ones(4, 3, 2)}):
    ...     moved = layer(x)
    >>> bool(torch.allclose(moved, layer(x) + 2))
    True
    """
    handles = [modules[name].register_forward_hook(_adding(name, delta)) for name, delta in deltas.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(name: str, delta: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        x = inputs[0]
        if x.dim() != 3 or x.shape[0] != delta.shape[0]:
            raise NestlingError(
                f"{name} is written by rows and must see (B, T, ·), got {tuple(x.shape)}: do not own it."
            )
        # y = W x + Δ_b x
        return y + torch.bmm(x.to(delta.dtype), delta.mT).to(y.dtype)

    return hook
