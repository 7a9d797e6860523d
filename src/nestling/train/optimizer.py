"""AdamW over a model's parameters, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

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
