"""Self-modifying Titans (NL §8): a layer against its equations, token by token."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestling.core import (
    L2,
    MLP,
    Chain,
    Decay,
    Delta,
    Descend,
    DotProduct,
    Gates,
    InputDelta,
    Matrix,
    Memory,
    Momentum,
    Residual,
    Returning,
    UnitDelta,
)
from nestling.nn import SelfForm, SelfModifying, SelfRange, UpTo, Within
from nestling.ops import Chunk, scan
from tests.papers.setting import same

DIM, HEADS, LENGTH = 8, 2, 27
WIDTH = DIM // HEADS
Weights = dict[str, Tensor]


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum() + 1e-12)


def answer(architecture, m: Weights, x: Tensor) -> Tensor:
    """M(x): W₁x, or W₂GELU(W₁x), and x besides where there is a residual (NL eq. 89)."""
    match architecture:
        case Residual(inner):
            return x + answer(inner, m, x)
        case MLP():
            z = m["w1"] @ x
            return m["w2"] @ (z * 0.5 * (1 + torch.erf(z / 2**0.5)))
        case _:
            return m["w1"] @ x


def hidden(m: Weights, x: Tensor) -> Weights:
    """What each weight is applied to."""
    z = m["w1"] @ x
    return {"w1": x, "w2": z * 0.5 * (1 + torch.erf(z / 2**0.5))}


def slope(architecture, objective, m: Weights, k: Tensor, target: Tensor) -> Weights:
    """∇ℓ(M(k), v̂) by every weight, as torch.autograd finds it; v̂ stands still."""
    given = {name: weight.detach().requires_grad_() for name, weight in m.items()}
    with torch.enable_grad():
        said = answer(architecture, given, k.detach())
        match objective:
            case DotProduct():
                loss = -(said * target.detach()).sum()
            case _:
                loss = 0.5 * (said - target.detach()).square().sum()
    return dict(zip(given, torch.autograd.grad(loss, list(given.values())), strict=True))


def kept(retention, name: str, a: Tensor, alpha: Tensor, eta: Tensor, x: Tensor) -> Tensor:
    """A(αI - ηxxᵀ) in the reading that the retention is; A is M, or M - M₀ where it returns there."""
    eye = torch.eye(len(x), dtype=x.dtype)
    match retention:
        case Returning(inner):
            return kept(inner, name, a, alpha, eta, x)
        case Delta():
            return a @ (alpha * eye - eta * torch.outer(x, x))
        case UnitDelta():
            return a @ (alpha * eye - eta * torch.outer(unit(x), unit(x)))
        case InputDelta() if name == "w1":
            return a @ (alpha * eye - eta * torch.outer(x, x))
        case _:
            return alpha * a


def literal(layer: SelfModifying, x: Tensor) -> tuple[Tensor, dict[str, list[Weights]]]:
    """NL eqs 83-88 in the chunks of eq. 90, for one sequence (T, dim): what the heads read, and the memories at the end.

    □ ∈ {memory, k, v, q, η, α, β}, each a memory of its own. c(t) is the end of the chunk before token t, on each clock.
    """
    form, ranges = layer.form, layer.ranges
    clocks = {"memory": layer.memory.period}
    forms = {"memory": form.memory}
    for name in form.adaptive:
        clocks[name] = layer.projections.period
        forms[name] = form.gates if name in ("η", "α", "β") else form.projections
    momentum = isinstance(form.rule, Chain)
    taps = layer.conv.weight
    seen = torch.stack([sum(taps[j] * x[t - j] for j in range(len(taps)) if t >= j) for t in range(len(x))])
    outputs, finals = [], {name: [] for name in forms}
    for head in range(HEADS):
        part = slice(head * WIDTH, (head + 1) * WIDTH)
        start = {
            name: {
                n: w[head] for n, w in (layer.initial if name == "memory" else layer.initial_projections[name]).items()
            }
            for name in forms
        }
        m, read = start, []
        s = {name: {n: torch.zeros_like(w) for n, w in each.items()} for name, each in start.items()}
        for t in range(len(x)):
            if t == 0:
                c = dict(m)
            for name in forms:
                if t % clocks[name] == 0:
                    c[name] = m[name]
            now = seen[t, part]

            def made(name: str, head: int = head, part: slice = part, t: int = t, now: Tensor = now, c=c) -> Tensor:
                if name in form.adaptive:
                    return answer(forms[name], c[name], now)  # □_t = M_□,c(t)(x_t)               eqs 86, 90
                rows = part if name in ("q", "k", "v") else slice(head, head + 1)
                return (layer.static[name] @ seen[t])[rows]

            k, q = unit(made("k")), unit(made("q"))
            eta = ranges.lr * torch.sigmoid(made("η")[0] + layer.bias["η"][head])
            v = form.value(made("v"), k, eta)
            alpha, beta = torch.ones_like(eta), torch.zeros_like(eta)
            if "α" in (*form.adaptive, *form.static):
                alpha = torch.sigmoid(made("α")[0] + layer.bias["α"][head])
            if momentum:
                held = form.rule.rules[1].decay
                beta = torch.sigmoid(made("β")[0] + layer.bias["β"][head]) if held is None else held
            after: dict[str, Weights] = {}
            for name, before in m.items():
                soft = 1.0 if name == "memory" else ranges.projections
                rate, keep = soft * eta, 1 - soft * (1 - alpha)
                target = answer(forms[name], c[name], v)  # v̂_□ = M_□,c(t)(v)                         eq. 87
                slopes = slope(forms[name], form.objective, c[name], k, target)
                inputs = hidden(c[name], k)
                after[name] = {}
                for n, weight in before.items():
                    s[name] = {**s[name], n: beta * s[name][n] - rate * slopes[n]}
                    home = start[name][n] if isinstance(form.retention, Returning) else torch.zeros_like(weight)
                    left = kept(form.retention, n, weight - home, keep, rate, inputs[n])
                    after[name][n] = home + left + s[name][n]  # eqs 88 and 90, S = -η∇ℓ without momentum
            m = after
            read.append(answer(forms["memory"], c["memory"] if form.read_at == "commit" else m["memory"], q))
        outputs.append(torch.stack(read))
        for name, memory in m.items():
            finals[name].append(memory)
    return torch.stack(outputs), finals


def assert_literal(layer: SelfModifying) -> None:
    layer = layer.double()
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    with torch.no_grad():
        for parameter in (*layer.bias.values(), *layer.initial.parameters(), *layer.initial_projections.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
        y, state = layer(x)
        for row in range(len(x)):
            read, finals = literal(layer, x[row])
            normed = read / torch.sqrt(read.square().mean(-1, keepdim=True) + layer.norm.eps) * layer.norm.gain
            joined = normed.transpose(0, 1).flatten(1)
            same(y[row], (joined * F.silu(x[row] @ layer.gate.weight.T)) @ layer.out.weight.T, 1e-9)
            for head in range(HEADS):
                ends = {name: each[head] for name, each in finals.items()}
                held = layer.memory.primal(state.memory.dual, state.memory.origin)
                for name, weight in ends.pop("memory").items():
                    same(held[name][row, head], weight, 1e-9)
                held = layer.projections.primal(state.projections.dual, state.projections.origin)
                for name, weight in layer.projections.architecture.joined(ends).items():
                    same(held[name][row, head], weight, 1e-9)


PRINTED = SelfForm(memory=Matrix(), projections=Matrix(), retention=Delta())
DEEP = SelfForm(memory=Residual(MLP(1.5)), projections=Residual(MLP(1)), gates=MLP(1), retention=UnitDelta())
MOMENTUM = Chain((Descend(), Momentum()))
FAST = SelfRange(slow=-3.0, fast=-1.0, retain=2.0, projections=1.0)


def changed(form: SelfForm, **fields) -> SelfForm:
    return SelfForm(**{**vars(form), **fields})


@pytest.mark.equation("Nested Learning", 83, 84, 85, 86, 87, 88, 89, 90)
@pytest.mark.parametrize(
    "form",
    [PRINTED, DEEP, SelfForm(), SelfForm(**{**vars(PRINTED), "value": Within()})],
    ids=["printed", "deep", "default", "bounded"],
)
@pytest.mark.parametrize("period", [1, 4, 16])
def test_eqs_83_to_90_memories_that_make_their_own_keys_values_rates_and_targets(period, form):
    """NL eqs 83-88 token by token (period 1), and in the chunks of eq. 90, for matrices and for deep memories (eq. 89)."""
    assert_literal(SelfModifying(DIM, HEADS, period, form=form, ranges=FAST, path=Chunk(block=8)))


SWITCHES = {
    "dot product": changed(PRINTED, objective=DotProduct()),
    "read at the last commit": changed(DEEP, read_at="commit"),
    "two clocks, main slower": changed(DEEP, period=4),
    "two clocks, main faster": changed(PRINTED, period=24),
    "clocks without a common divisor": changed(PRINTED, period=3),
    "erase at the input": changed(DEEP, retention=InputDelta()),
    "erase along raw inputs": changed(DEEP, retention=Delta()),
    "return to the start": changed(DEEP, retention=Returning(InputDelta())),
    "momentum from the token": changed(DEEP, rule=MOMENTUM, static=("q", "β")),
    "momentum from a memory": changed(PRINTED, rule=MOMENTUM, adaptive=("k", "v", "η", "α", "β")),
    "constant momentum": changed(SelfForm(), rule=Chain((Descend(), Momentum(0.7)))),
    "adaptive queries": changed(DEEP, adaptive=("k", "q", "v", "η", "α"), static=()),
    "static gates": changed(PRINTED, adaptive=("k", "v"), static=("q", "η", "α")),
    "long values": changed(PRINTED, value=UpTo(2.0)),
    "bounded values": changed(PRINTED, value=Within()),
}
ABLATED = changed(DEEP, rule=MOMENTUM, static=("β",), adaptive=("q", "k", "v", "η", "α"))
SWITCHES |= {f"without {what}": ABLATED.without(what) for what in ("DGD", "momentum", "weight decay", "k", "v", "q")}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_is_an_equation(name):
    """NL eqs 87-93 and §3.1, 3.4, 3.5, 3.7, 3.8 and 3.10 of its open questions, and the rows of table 6."""
    assert_literal(SelfModifying(DIM, HEADS, 8, form=SWITCHES[name], ranges=FAST))


def test_table_6_takes_away_one_idea_at_a_time():
    """NL table 6: each row differs from the whole in the fields that the idea is, and in no other."""

    def differs(what) -> set[str]:
        other = vars(ABLATED.without(what))
        return {field for field, value in vars(ABLATED).items() if other[field] != value}

    assert differs("DGD") == {"retention"} and ABLATED.without("DGD").retention == Decay()
    assert SelfForm().without("DGD").retention == Returning(Decay())
    assert differs("momentum") == {"rule", "static"} and ABLATED.without("momentum").rule == Descend()
    assert differs("weight decay") == {"adaptive"}
    for name in ("k", "v", "q"):
        assert differs(name) == {"adaptive", "static"} and name in ABLATED.without(name).static


@pytest.mark.equation("Nested Learning", 93)
def test_eq_93_is_a_gated_delta_rule():
    """NL eq. 93 with erase η/α and value α(v̂ - M_c k): S_t = α S_{t-1}(I - b k kᵀ) + b v' kᵀ, to 1e-12 (§1.15)."""
    period, width, length = 8, 5, 40
    k = torch.nn.functional.normalize(torch.randn(1, 1, length, width, dtype=torch.float64), dim=-1)
    v = torch.randn(1, 1, length, width, dtype=torch.float64)
    eta, alpha = (torch.rand(1, 1, length, dtype=torch.float64) * 0.2 + low for low in (0.0, 0.8))
    memory = Memory(Matrix(), L2(), Delta(), Descend(), period)
    y, state = scan(memory, {"w1": torch.randn(1, width, width, dtype=torch.float64)}, k, k, v, Gates(eta, alpha))
    torch.manual_seed(0)
    start = torch.randn(1, width, width, dtype=torch.float64)
    y, state = scan(memory, {"w1": start}, k, k, v, Gates(eta, alpha))
    s = start[0]
    for t in range(length):
        if t % period == 0:
            commit = s
        key, b = k[0, 0, t], eta[0, 0, t] / alpha[0, 0, t]
        value = alpha[0, 0, t] * (v[0, 0, t] - commit @ key)
        s = alpha[0, 0, t] * s @ (torch.eye(width, dtype=s.dtype) - b * torch.outer(key, key)) + b * torch.outer(
            value, key
        )
        same(y[0, 0, t], s @ key, 1e-12)
    same(state.dual["w1"][0, 0], s, 1e-12)


@pytest.mark.equation("Nested Learning", 88)
@pytest.mark.parametrize("form", [PRINTED, DEEP, SelfForm()], ids=["printed", "deep", "default"])
def test_eq_88_without_rates_and_forgetting_is_a_static_network(form):
    """NL eq. 88 with η = 0 and α = 1 leaves every memory at its meta-learnt start."""
    layer = SelfModifying(DIM, HEADS, 4, form=form, ranges=SelfRange(lr=0.0, retain=1e3)).double()
    with torch.no_grad():
        x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
        y, state = layer(x)
        groups = zip((layer.memory, layer.projections), (state.memory, state.projections), layer.weights(), strict=True)
        for memory, group, start in groups:
            for name, weight in memory.primal(group.dual, group.origin).items():
                same(weight, start[name].expand_as(weight), 0.0)
        layer.frozen()
        same(layer(x)[0], y, 1e-12)


@pytest.mark.parametrize("name", ["printed", "deep", "default", *SWITCHES])
def test_outer_gradients_reach_every_start_gate_and_projection_through_the_writes(name):
    """NL §8.1: all initial states are meta-learnt. One token after three commits of both clocks teaches every one of them."""
    form = {"printed": PRINTED, "deep": DEEP, "default": SelfForm(), **SWITCHES}[name]
    layer = SelfModifying(DIM, HEADS, 2, form=changed(form, period=2), ranges=FAST).double()
    x = torch.randn(1, 9, DIM, dtype=torch.float64)
    with torch.no_grad():
        layer.initial["w1"].add_(0.2 * torch.randn_like(layer.initial["w1"]))
    named = dict(layer.named_parameters())
    y, _ = layer(x)
    whole = torch.autograd.grad(y[0, -1] @ torch.randn(DIM, dtype=y.dtype), list(named.values()))
    for path, grad in zip(named, whole, strict=True):
        assert bool(torch.isfinite(grad).all()) and (grad != 0).double().mean() > 0.95, path
    # Without the way through the writes what only they use is left alone.
    twin = SelfModifying(DIM, HEADS, 2, form=changed(form, period=2), ranges=FAST).double()
    twin.frozen()
    y, _ = twin(x)
    shut = torch.autograd.grad(y[0, -1].sum(), list(twin.parameters()), allow_unused=True)
    dead = {path for path, grad in zip(named, shut, strict=True) if grad is None or not bool(grad.any())}
    assert {path for path in named if path.startswith(("initial_projections.", "bias."))} - dead <= {
        path for path in named if ".q." in path
    }
