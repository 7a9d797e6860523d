"""States as trees: nested frozen dataclasses, dicts and tuples whose leaves are tensors.

Every layer, block and model of Nestling is ``(x, state) -> (y, state)``. What the state *is* differs from layer to layer;
what can be done with it does not: it can be mapped over, forked, measured, printed, saved and loaded. All of that lives
here, once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import torch
import torch.utils._pytree as pytree
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nestling.atomic import replacing
from nestling.errors import NestlingError

T = TypeVar("T")
N = TypeVar("N")


@dataclass_transform(frozen_default=True)
def state(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass whose fields are the children of a tree.

    >>> @state
    ... class Pair:
    ...     a: Tensor
    ...     b: Tensor
    >>> map(lambda leaf: leaf + 1, Pair(torch.zeros(1), torch.ones(1)))
    Pair(a=tensor([1.]), b=tensor([2.]))
    """
    frozen = dataclasses.dataclass(frozen=True)(cls)
    pytree.register_dataclass(frozen)
    return frozen


def map(function: Callable[..., Any], tree: T, *others: T) -> T:
    """Apply ``function`` to the tensors of one or several trees of the same shape; other leaves stay those of the first."""
    return pytree.tree_map(
        lambda leaf, *rest: function(leaf, *rest) if isinstance(leaf, Tensor) else leaf, tree, *others
    )


def flatten(tree: T) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], T]]:
    """The tensors of ``tree``, and the function that builds such a tree around other tensors.

    >>> tensors, rebuild = flatten((torch.zeros(1), None))
    >>> rebuild([torch.ones(1)])
    (tensor([1.]), None)
    """
    found, spec = pytree.tree_flatten(tree)
    tensors = [leaf for leaf in found if isinstance(leaf, Tensor)]
    # Who keeps the function keeps no tensor by it.
    others = [Tensor if isinstance(leaf, Tensor) else leaf for leaf in found]
    del found, tree

    def rebuild(given: Sequence[Tensor]) -> T:
        each = iter(given)
        return pytree.tree_unflatten([next(each) if leaf is Tensor else leaf for leaf in others], spec)

    return tensors, rebuild


def replaced(tree: T, kind: type[N], change: Callable[[N], Any]) -> T:
    """``tree`` with ``change`` applied to every node of a ``kind``, and nothing else.

    >>> replaced((torch.zeros(1), {"a": (1, 2)}), dict, len)
    (tensor([0.]), 1)
    """
    found: T = pytree.tree_map(
        lambda leaf: change(leaf) if isinstance(leaf, kind) else leaf, tree, is_leaf=lambda leaf: isinstance(leaf, kind)
    )
    return found


def nodes(tree: Any, kind: type[N]) -> list[N]:
    """The nodes of a ``kind`` in ``tree``, in order.

    >>> nodes((torch.zeros(1), {"a": (1, 2)}, {}), dict)
    [{'a': (1, 2)}, {}]
    """
    found = pytree.tree_leaves(tree, is_leaf=lambda leaf: isinstance(leaf, kind))
    return [leaf for leaf in found if isinstance(leaf, kind)]


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of ``tree``, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def items(tree: Any) -> list[tuple[str, Tensor]]:
    """The tensors of ``tree`` with their paths, such as ``blocks.0.memory.dual.w1``."""
    found, _ = pytree.tree_flatten_with_path(tree)
    return [(".".join(_name(key) for key in path), leaf) for path, leaf in found if isinstance(leaf, Tensor)]


def _name(key: Any) -> str:
    match key:
        case pytree.GetAttrKey(name):
            return name
        case pytree.MappingKey(name):
            return str(name)
        case pytree.SequenceKey(index):
            return str(index)
        case _:
            return str(key)


def stack(trees: Sequence[T]) -> T:
    """Trees of the same shape, stacked along a new first dimension."""
    return map(lambda *leaves: torch.stack(leaves), *trees)


def where(condition: Tensor, yes: T, no: T) -> T:
    """Choose per row: ``condition`` holds one bool for each entry of the leaves' leading dimensions."""
    return map(
        lambda a, b: torch.where(condition.reshape(condition.shape + (1,) * (a.dim() - condition.dim())), a, b), yes, no
    )


def detach(tree: T) -> T:
    """The same values, cut off from the graph that computed them (shares memory)."""
    return map(lambda leaf: leaf.detach(), tree)


def fork(tree: T) -> T:
    """A copy that shares nothing with ``tree``: what is written to one never reaches the other."""
    return map(lambda leaf: leaf.detach().clone(), tree)


def to(tree: T, device: torch.device | str) -> T:
    """``tree`` on another device."""
    return map(lambda leaf: leaf.to(device), tree)


def nbytes(tree: Any) -> int:
    """Bytes that the tensors of ``tree`` take."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(tree))


def pformat(tree: Any) -> str:
    """One line a leaf: path, shape, type, and the range of its values."""
    lines = []
    for path, leaf in items(tree):
        values = leaf.detach().double()
        spread = f"[{values.min():.3g}, {values.max():.3g}]" if leaf.numel() else "empty"
        lines.append(f"{path:<48} {tuple(leaf.shape)!s:<24} {str(leaf.dtype).removeprefix('torch.'):<9} {spread}")
    return "\n".join(lines)


def save(path: str | Path, tree: Any, metadata: dict[str, str] | None = None) -> None:
    """Write the tensors of ``tree`` and ``metadata`` to one safetensors file, atomically."""
    tensors: dict[str, Tensor] = {}
    for name, leaf in items(tree):
        if name in tensors:
            raise NestlingError(f"two tensors of the tree have the path {name}: give one another key.")
        tensors[name] = leaf.detach().to("cpu").contiguous().clone()
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata or {"format": "pt"})


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a file written by ``save``. Raises NestlingError when the file is missing or not whole."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def load(path: str | Path, like: T) -> tuple[T, dict[str, str]]:
    """Read a tree of the shape of ``like`` and its metadata. Raises NestlingError that names the first difference.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "state.safetensors"
    >>> save(file, {"w": torch.ones(2)}, {"step": "3"})
    >>> load(file, {"w": torch.zeros(2)})
    ({'w': tensor([1., 1.])}, {'step': '3'})
    """
    wanted = items(like)
    with _opened(path) as file:
        saved = set(file.keys())
        for name, leaf in wanted:
            if name not in saved:
                raise NestlingError(
                    f"{path} is the state of another model: it has no {name}. Load it with the model that saved it."
                )
            shape = tuple(file.get_slice(name).get_shape())
            if shape != tuple(leaf.shape):
                raise NestlingError(
                    f"{path} is the state of another model; first difference: {name} is {shape} there and {tuple(leaf.shape)} here. "
                    "Load it with the model that saved it."
                )
        extra = sorted(saved - {name for name, _ in wanted})
        if extra:
            raise NestlingError(
                f"{path} is the state of another model: this one has no {extra[0]}. Load it with the model that saved it."
            )
        # Copied: a tensor inside a file can lie anywhere in memory, and sums depend in the last bit on how it is aligned.
        loaded = {name: file.get_tensor(name).clone() for name, _ in wanted}
        metadata = dict(file.metadata() or {})
    for name, leaf in wanted:
        if loaded[name].dtype != leaf.dtype:
            raise NestlingError(
                f"{path}: {name} is {loaded[name].dtype} there and {leaf.dtype} here. Convert the model with .to(dtype) first."
            )
    _, rebuild = flatten(like)
    return rebuild([loaded[name].to(leaf.device) for name, leaf in wanted]), metadata


def _opened(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise NestlingError(f"no such file: {path}. Check the path.")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise NestlingError(f"{path} is damaged or truncated ({error}). Use an older copy.") from None
