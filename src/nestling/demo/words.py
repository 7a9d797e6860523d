"""Results in sentences. Each is computed: another outcome gives another sentence."""

from __future__ import annotations

from nestling.demo.results import Difference, Kept, Results, Sessions, Stream


def findings(results: Results) -> list[str]:
    """What came out, one finding a sentence or two."""
    return [
        memory(results.stream),
        *along(results.stream),
        baseline(results),
        sessions(results.sessions),
        *(retention(kept, results.stream.part) for kept in results.kept),
    ]


def memory(stream: Stream) -> str:
    """Whether writing helps.

    It "helps" or "hurts" when the difference is more than two standard errors from zero, over the windows of the stream.
    """
    saved = stream.memory
    match saved.sure, saved.mean > 0:
        case True, True:
            verdict = f"writing helps, by {_part(saved.mean, stream.off.bits_per_byte)}"
        case True, False:
            verdict = f"writing hurts, by {_part(-saved.mean, stream.off.bits_per_byte)}"
        case _:
            verdict = "writing makes no difference that this stream can show"
    return (
        f"Reading {stream.part} once, the model spends {_bits(stream.on.bits_per_byte)} with its memory on and "
        f"{stream.off.bits_per_byte:.3f} with it off: {verdict} "
        f"({_spread(saved, 'on − off')})."
    )


def along(stream: Stream) -> list[str]:
    """How the difference changes along the stream; nothing where there is none to speak of."""
    saved = stream.memory
    if not saved.sure:
        return []
    gain = "gain" if saved.mean > 0 else "loss"
    first, last = (each if saved.mean > 0 else -each for each in (saved.first, saved.last))
    change = (
        "grows" if last - first > saved.error else "shrinks" if first - last > saved.error else "stays about the same"
    )
    return [
        f"The {gain} {change} along the stream: {first:+.3f} bits per byte in its first quarter, {last:+.3f} in its last."
    ]


def baseline(results: Results) -> str:
    """How the model with its memory on compares with the transformer."""
    stream, saved = results.stream, results.stream.against_baseline
    if not saved.sure:
        verdict = "no clear difference"
    else:
        order = ("fewer", saved.mean) if saved.mean > 0 else ("more", -saved.mean)
        verdict = f"{results.memory.recipe} needs {_part(order[1], stream.baseline.bits_per_byte)} {order[0]} bits"
    return (
        f"The transformer of equal size, trained on the same tokens, spends {_bits(stream.baseline.bits_per_byte)} on the "
        f"same stream: {verdict} ({_spread(saved, f'{results.memory.recipe} − transformer')})."
    )


def sessions(found: Sessions) -> str:
    """Whether sessions are exact."""
    if found.exact:
        return (
            f"A session that was saved after {found.position:,} tokens and loaded again went on exactly: over the next "
            f"{found.tokens:,} tokens the largest difference is 0. So did a session whose fork read something else."
        )
    return (
        f"Sessions are NOT exact: over {found.tokens:,} tokens the largest difference is {found.reload_difference:.3g} after "
        f"loading and {found.fork_difference:.3g} beside a fork (whose own predictions moved by {found.child_difference:.3g})."
    )


def retention(kept: Kept, part: str) -> str:
    """What the stream did to what the model knew before."""
    change = kept.after - kept.fresh
    if not kept.sure:
        verdict = "no clear change"
    else:
        verdict = f"{_part(abs(change), kept.fresh)} {'more: it forgot a little' if change > 0 else 'fewer: it forgot nothing'}"
        if change > 0.1 * kept.fresh:
            verdict = f"{_part(change, kept.fresh)} more: it forgot"
    return (
        f"After {part}, {kept.kind} cost {_bits(kept.after)}, from a fresh state {kept.fresh:.3f}: {verdict} "
        f"(difference {change:+.3f} ± {kept.error:.3f})."
    )


def caveat(results: Results) -> str:
    """What the figures do not say."""
    plan = results.plan
    return (
        f"Both models are tiny ({results.memory.parameters:,} and {results.baseline.parameters:,} parameters), were trained for "
        f"{results.memory.tokens:,} tokens with one seed ({results.seed}), in rows of {plan['length']} tokens that begin with a "
        "fresh memory. ± is one standard error over the windows of one stream or over documents; other seeds may scatter "
        "more. Nothing here says how larger models behave."
    )


def _bits(value: float) -> str:
    return f"{value:.3f} bits per byte"


def _part(difference: float, whole: float) -> str:
    return f"{100 * difference / whole:.1f} %"


def _spread(saved: Difference, pair: str) -> str:
    return f"{pair}: {-saved.mean:+.3f} ± {saved.error:.3f}"
