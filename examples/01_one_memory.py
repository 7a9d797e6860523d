"""One memory: what is written under a key is read back; what is read can be wrong, and a write mends it.

A memory is a value made of four choices. Its state goes in and comes out: nothing is changed in place.
"""

from __future__ import annotations

import torch

import nestling as nl


def main() -> None:
    # W ← W − lr · ∇½‖W k − v‖²: linear regression, one example at a time (the delta rule).
    memory = nl.Memory(nl.Matrix(), nl.L2(), nl.Decay(), nl.Descend())
    state = memory.init({"w1": torch.zeros(2, 3)})
    paris, oslo = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])

    state = memory.write(state, key=paris, value=torch.tensor([3.0, 4.0]), gates=nl.Gates(lr=1.0))
    state = memory.write(state, key=oslo, value=torch.tensor([5.0, 6.0]), gates=nl.Gates(lr=1.0))
    print("read:", memory.read(state, paris).tolist(), memory.read(state, oslo).tolist())

    # The same two functions are Titans' long-term memory: a deep architecture, momentum, forgetting.
    deep = nl.Memory(nl.MLP(expand=2, depth=2), nl.L2(), nl.Decay(), nl.Chain((nl.Descend(), nl.Momentum())))
    generator = torch.Generator().manual_seed(0)
    weights = deep.architecture.init(3, 2, generator=generator)
    state = deep.init(weights)
    value = torch.tensor([1.0, -1.0])
    for number in range(31):
        error = float((deep.read(state, paris) - value).square().sum())
        if number % 10 == 0:
            print(f"after {number:>2} writes: squared error {error:.4f}")
        state = deep.write(state, paris, value, nl.Gates(lr=0.05, retain=0.999, momentum=0.6))

    # Along a sequence, for a batch and several heads: write token t, then read it, for every t.
    q, k, v = (torch.randn(1, 4, 64, 8, generator=generator) for _ in range(3))
    start = {"w1": torch.zeros(4, 8, 8)}
    gates = nl.Gates(lr=0.5, retain=0.99)
    unit = torch.nn.functional.normalize
    y, after = nl.scan(memory, start, unit(q, dim=-1), unit(k, dim=-1), v, gates)
    print("scan:", tuple(y.shape), "state:", tuple(after.dual["w1"].shape))


if __name__ == "__main__":
    main()
