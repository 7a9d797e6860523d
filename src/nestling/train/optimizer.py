"""The optimizer over a model's parameters, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from nestling import optim
from nestling.nn.cms import levels_of
from nestling.train.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of update ``step`` = 1, …, ``steps``: linear warm-up, then a cosine (Loshchilov & Hutter 2017, eq. 5).

    lr · s/W for s ≤ W, then lr · (f + (1 − f) (1 + cos(π (s − W)/(S − W)))/2), which ends at lr · f.

    >>> config = OptimizerConfig(lr=1.0, warmup=1 / 3, floor=0.1)
    >>> [round(learning_rate(config, step, 12), 3) for step in (1, 4, 8, 12)]
    [0.25, 1.0, 0.55, 0.1]
    """
    warmup = round(config.warmup * steps)
    if step <= warmup:
        return config.lr * step / warmup
    done = (step - warmup) / (steps - warmup)
    return config.lr * (config.floor + (1 - config.floor) * (1 + math.cos(math.pi * done)) / 2)


def scheduled(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of ``config``, which moves the levels of every ``CMS`` in the model at their own periods, in steps.

    >>> from nestling.core import Level
    >>> from nestling.nn import CMS
    >>> type(scheduled(CMS(8, [Level("fast", 1), Level("slow", 4)]), OptimizerConfig())).__name__
    'Scheduled'
    """
    return by_levels(optimizer_of(model, config), model)


def by_levels(inner: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """``inner``, which moves the levels of every ``CMS`` in the model at their own periods; ``inner`` itself if all move at every step.

    >>> model = nn.Linear(2, 2)
    >>> type(by_levels(torch.optim.SGD(model.parameters(), lr=0.1), model)).__name__
    'SGD'
    """
    levels = levels_of(model)
    if all(level.period == 1 and level.reset is None for level in levels):
        return inner
    return optim.Scheduled(inner, model.named_parameters(), levels)


def optimizer_of(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """What ``config.name`` names, over the hidden matrices, and AdamW over everything else; torch's AdamW for ``adamw``.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    >>> [group["param_names"] for group in optimizer_of(model, OptimizerConfig(name="m3")).param_groups]
    [['1.weight'], ['0.weight'], ['1.bias']]
    """
    if config.name == "adamw":
        return adamw(model.named_parameters(), config)
    rate, decay = config.matrix_lr or config.lr, config.weight_decay
    makers: dict[str, optim.Maker] = {
        "muon": partial(optim.Muon, lr=rate, weight_decay=decay, rms=0.2),
        "m3": partial(optim.M3, lr=rate, weight_decay=decay),
        "dgd": partial(optim.DGD, lr=rate, watch=model),
        "delta_momentum": partial(optim.DeltaMomentum, lr=rate, weight_decay=decay),
        "deep_momentum": partial(optim.DeepMomentum, lr=rate, weight_decay=decay),
    }

    def others(pairs: list[tuple[str, Tensor]]) -> optim.AdamW:
        decayed = [pair for pair in pairs if is_matrix(*pair)]
        kept = [pair for pair in pairs if not is_matrix(*pair)]
        groups = [{"params": decayed, "weight_decay": decay}, {"params": kept, "weight_decay": 0.0}]
        return optim.AdamW([group for group in groups if group["params"]], lr=config.lr, betas=config.betas)

    return optim.split(model, makers[config.name], others)


def set_rate(optimizer: torch.optim.Optimizer, config: OptimizerConfig, rate: float) -> None:
    """Give every group the rate of a step; hidden matrices the same part of ``matrix_lr`` as the others have of ``lr``.

    >>> optimizer = optimizer_of(nn.Linear(2, 2), OptimizerConfig(name="m3", lr=0.1, matrix_lr=1.0))
    >>> set_rate(optimizer, OptimizerConfig(name="m3", lr=0.1, matrix_lr=1.0), 0.05)
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.5, 0.05]
    """
    for group in optimizer.param_groups:
        own = config.matrix_lr and group.get("part") == 0
        group["lr"] = rate * config.matrix_lr / config.lr if own else rate


def adamw(parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) that decays matrices only.

    >>> groups = adamw(torch.nn.Linear(2, 3).named_parameters(), OptimizerConfig()).param_groups
    >>> [(group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in groups]
    [(0.1, [(3, 2)]), (0.0, [(3,)])]
    """
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for name, parameter in parameters:
        if parameter.requires_grad:
            (decayed if is_matrix(name, parameter) else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, betas=config.betas)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to what mixes channels, not to gains, biases, norms and taps of any shape.

    >>> is_matrix("mlp.up.weight", torch.zeros(4, 2)), is_matrix("heads.norm.weight", torch.zeros(4, 2))
    (True, False)
    """
    kept = ("norm", "bias", "gain", "conv")  # short convolutions act on each channel by itself
    return parameter.dim() >= 2 and not any(word.endswith(kept) for word in name.split("."))
