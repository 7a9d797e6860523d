"""Self-modifying Titans (NL §8): a layer against its equations, token by token."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestling.nn import SelfModifying, SelfRange
from nestling.ops import Chunk
from tests.papers.setting import same

DIM, HEADS, LENGTH = 8, 2, 37
WIDTH = DIM // HEADS


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum() + 1e-12)


def literal(layer: SelfModifying, x: Tensor, period: int) -> tuple[Tensor, dict[str, Tensor]]:
    """NL eqs 83-88 in the chunks of eq. 90, for one sequence (T, dim): what the heads read, and the memories at the end.

    □ ∈ {memory, k, v, η, α}, each a linear map of its own. c(t) is the end of the chunk before token t.
    """
    ranges, outputs, finals = layer.ranges, [], {name: [] for name in ("memory", "k", "v", "η", "α")}
    taps = layer.conv.weight
    seen = torch.stack([sum(taps[j] * x[t - j] for j in range(len(taps)) if t >= j) for t in range(len(x))])
    queries = seen @ layer.query.weight.T
    eye = torch.eye(WIDTH, dtype=torch.float64)
    for head in range(HEADS):
        part = slice(head * WIDTH, (head + 1) * WIDTH)
        made = layer.initial_projections[head]
        m = {
            "memory": layer.initial[head],
            "k": made[:WIDTH],
            "v": made[WIDTH : 2 * WIDTH],
            "η": made[2 * WIDTH : 2 * WIDTH + 1],
            "α": made[2 * WIDTH + 1 :],
        }
        read = []
        for t in range(len(x)):
            if t % period == 0:
                c = m
            now = seen[t, part]
            k, v = unit(c["k"] @ now), unit(c["v"] @ now)
            eta = ranges.lr * torch.sigmoid(c["η"] @ now + layer.bias[head, 0])
            alpha = torch.sigmoid(c["α"] @ now + layer.bias[head, 1])
            after = {}
            for name, before in m.items():
                soft = 1.0 if name == "memory" else ranges.projections
                rate, keep = soft * eta, 1 - soft * (1 - alpha)
                target = c[name] @ v  # v̂_□ = M_□,c(t) v                                                   eq. 87
                slope = torch.outer(c[name] @ k - target, k)  # ∇½‖M_□,c(t) k - v̂_□‖²
                after[name] = before @ (keep * eye - rate * torch.outer(k, k)) - rate * slope  # eqs 88, 90
            m = after
            read.append(m["memory"] @ unit(queries[t, part]))
        outputs.append(torch.stack(read))
        for name, memory in m.items():
            finals[name].append(memory)
    return torch.stack(outputs), {name: torch.stack(each) for name, each in finals.items()}


@pytest.mark.parametrize(
    "ranges", [SelfRange(), SelfRange(slow=-3.0, fast=-1.0, retain=2.0, projections=1.0)], ids=repr
)
@pytest.mark.parametrize("period", [1, 4, 16])
def test_eqs_83_to_90_a_memory_that_writes_its_own_keys_values_and_rates(period, ranges):
    """NL eqs 83-88 with the chunks of eq. 90, linear memories and L2: every memory generates its own target, v̂_□ = M_□(v).

    y is read from the running memory (eq. 90 prints the last commit); ``projections=1`` is the paper's rate for M_k … M_α.
    """
    layer = SelfModifying(DIM, HEADS, period, ranges=ranges, path=Chunk(block=8)).double()
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.add_(0.3 * torch.randn_like(layer.bias))
        layer.initial.add_(0.2 * torch.randn_like(layer.initial))
        y, state = layer(x)
        for row in range(2):
            read, finals = literal(layer, x[row], period)
            normed = read / torch.sqrt(read.square().mean(-1, keepdim=True) + layer.norm.eps) * layer.norm.gain
            joined = normed.transpose(0, 1).flatten(1)
            same(y[row], (joined * F.silu(x[row] @ layer.gate.weight.T)) @ layer.out.weight.T, 1e-9)
            same(state.memory.dual["w1"][row], finals["memory"], 1e-9)
            same(state.projections.dual["w1"][row], torch.cat([finals[n] for n in ("k", "v", "η", "α")], 1), 1e-9)


def test_eq_88_without_rates_and_forgetting_is_a_static_network():
    """NL eq. 88 with η = 0 and α = 1 leaves every memory at its meta-learnt start."""
    layer = SelfModifying(DIM, HEADS, 4, ranges=SelfRange(lr=0.0, retain=1e3)).double()
    with torch.no_grad():
        _, state = layer(torch.randn(2, LENGTH, DIM, dtype=torch.float64))
    for group, initial in ((state.memory, layer.initial), (state.projections, layer.initial_projections)):
        same(group.dual["w1"], initial.detach().expand(2, -1, -1, -1), 0.0)


def test_eq_90_the_targets_pass_outer_gradients():
    """NL eq. 88: v̂ stands still in the inner gradient, and still the outer one flows through it to M_v and to the memory."""
    layer = SelfModifying(DIM, HEADS, 2).double()
    x = torch.randn(1, 3, DIM, dtype=torch.float64)
    y, _ = layer(x)
    grads = torch.autograd.grad((y * torch.randn_like(y)).sum(), (layer.initial, layer.initial_projections))
    assert all(bool((grad != 0).any(-1).all()) for grad in (grads[0], grads[1]))
