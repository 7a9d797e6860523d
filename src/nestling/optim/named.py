"""The optimizers that everybody knows, each as the rule that it is."""

from __future__ import annotations

from nestling.core.rule import Chain, Descend, Momentum, NewtonSchulz, Rule, Scale, Sum
from nestling.optim.base import Group, Params
from nestling.optim.decay import Decoupled, Ridge
from nestling.optim.rules import Before, Quotient, Root, Sign, Square, Stretch, mean, nesterov, unbiased


class SGD(Ridge):
    """Gradient descent with momentum: m ← β m + g, W ← W − η m (NL eqs 33-34, with the rate outside, as in torch).

    The momentum is a memory without keys, ``Memory(Constant(), DotProduct(), Decay())``, that is read whole.
    ``kind="nesterov"`` steps along g + β m. ``weight_decay`` adds λ W to the gradient. Equal to ``torch.optim.SGD``.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = SGD([weight], lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     weight.grad = torch.ones(1)
    ...     optimizer.step()
    >>> weight.data  # 1 − 0.1 − 0.19
    tensor([0.7100])
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        kind: str = "heavy ball",
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "kind": kind})

    def rule(self, group: Group) -> Rule:
        """Momentum, then the rate"""
        beta = group["momentum"]
        if beta == 0:
            return Descend()
        if group["kind"] == "nesterov":
            return Chain((nesterov(Momentum(beta), beta, 1.0), Descend()))
        return Chain((Momentum(beta), Descend()))


class Adam(Ridge):
    """Two running means of one gradient and their quotient: W ← W − η m̂ / (√v̂ + ε) (NL eqs 101-105).

    The quotient is what a memory m with ‖m ⊙ g − P‖² and P = √Σg² holds in closed form. ``weight_decay`` adds λ W to the
    gradient. Equal to ``torch.optim.Adam``.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = Adam([weight], lr=0.1)
    >>> weight.grad = torch.tensor([100.0]); optimizer.step(); weight.data
    tensor([0.9000])
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def rule(self, group: Group) -> Rule:
        """m̂ / (√v̂ + ε), then the rate"""
        return _adam(group)


class AdamW(Decoupled):
    """Adam whose weights are forgotten by themselves: W ← (1 − ηλ) W − η m̂ / (√v̂ + ε) (Loshchilov & Hutter 2019).

    The decay is the retention ``core.Decay`` of the weights. Equal to ``torch.optim.AdamW``.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = AdamW([weight], lr=0.1, weight_decay=0.5)
    >>> weight.grad = torch.zeros(1); optimizer.step(); weight.data
    tensor([0.9500])
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def rule(self, group: Group) -> Rule:
        """That of Adam"""
        return _adam(group)


class AdaGrad(Ridge):
    """W ← W − η m / (√Σg² + ε), m ← β m + g: nothing of H = Σg² is forgotten (NL eq. 111, by entry).

    ``momentum=0`` is ``torch.optim.Adagrad``; ``momentum=1`` is the paper's memory, M = Σg.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = AdaGrad([weight], lr=0.1)
    >>> weight.grad = torch.tensor([7.0]); optimizer.step(); weight.data
    tensor([0.9000])
    """

    def __init__(
        self, params: Params, lr: float = 1e-2, momentum: float = 0.0, eps: float = 1e-10, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": weight_decay})

    def rule(self, group: Group) -> Rule:
        """m / (√Σg² + ε), then the rate"""
        beta = group["momentum"]
        top = Scale(1.0) if beta == 0 else Momentum(beta)
        return Chain((Quotient(top, _root(Momentum(1.0), group["eps"])), Descend()))


class RMSProp(Ridge):
    """b ← μ b + g / (√v + ε), W ← W − η b, with v the running mean of g² (Hinton 2012). Equal to ``torch.optim.RMSprop``.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = RMSProp([weight], lr=0.1, beta=0.75)
    >>> weight.grad = torch.tensor([8.0]); optimizer.step(); weight.data  # 1 − 0.1 · 8/4
    tensor([0.8000])
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        beta: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "beta": beta, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, defaults)

    def rule(self, group: Group) -> Rule:
        """g / (√v + ε), then momentum, then the rate"""
        scaled = Quotient(Scale(1.0), _root(mean(group["beta"]), group["eps"]))
        if group["momentum"] == 0:
            return Chain((scaled, Descend()))
        return Chain((scaled, Momentum(group["momentum"]), Descend()))


class Lion(Decoupled):
    """W ← (1 − ηλ) W − η sign(β₁ m + (1 − β₁) g), then m ← β₂ m + (1 − β₂) g (Chen et al. 2023, algorithm 2).

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = Lion([weight], lr=0.5)
    >>> weight.grad = torch.tensor([3.0, -0.1]); optimizer.step(); weight.data
    tensor([0.5000, 1.5000])
    """

    def __init__(
        self, params: Params, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def rule(self, group: Group) -> Rule:
        """The sign of a memory that is read before it is written"""
        first, second = group["betas"]
        old = Chain((Scale(1 - second), Before(second), Scale(first)))
        return Chain((Sum((old, Scale(1 - first))), Sign(), Descend()))


class Muon(Decoupled):
    """Momentum that is made orthogonal: W ← (1 − ηλ) W − η √max(1, out/in) NewtonSchulz(m) (NL eq. 42; Jordan et al. 2024).

    Of matrices only; ``split`` gives the others to AdamW. Equal to ``torch.optim.Muon``, whose iteration runs in bfloat16;
    here it runs in the type of the weights, at least float32. ``kind="heavy ball"`` leaves out the look ahead. With ``rms``
    = 0.2 the step is 0.2 √max(out, in) instead, and rates of AdamW serve (torch's ``match_rms_adamw``).

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
    >>> optimizer = Muon([weight], lr=1.0)
    >>> weight.grad = torch.diag(torch.tensor([5.0, 1.0])); optimizer.step()
    >>> bool(((weight.diagonal() < -0.6) & (weight.diagonal() > -1.3)).all())
    True
    """

    needs_matrices = "singular values are made equal"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        kind: str = "nesterov",
        newton_schulz: int = 5,
        rms: float | None = None,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "kind": kind, "rms": rms}
        super().__init__(params, {**defaults, "newton_schulz": newton_schulz})

    def rule(self, group: Group) -> Rule:
        """Momentum, Newton-Schulz, the step of the shape, the rate"""
        beta = group["momentum"]
        memory: Rule = mean(beta)
        if group["kind"] == "nesterov":
            memory = nesterov(memory, beta, 1 - beta)
        return Chain((memory, NewtonSchulz(group["newton_schulz"]), Stretch(group["rms"]), Descend()))


def _adam(group: Group) -> Rule:
    """m̂ / (√v̂ + ε), then the rate"""
    first, second = group["betas"]
    return Chain((Quotient(unbiased(first), _root(unbiased(second), group["eps"])), Descend()))


def _root(memory: Chain | Momentum, eps: float) -> Chain:
    """√ of what a memory of g² says, + ε"""
    rules = memory.rules if isinstance(memory, Chain) else (memory,)
    return Chain((Square(), *rules, Root(eps)))
