"""The outcome in plain sentences. No word stronger than its interval: `faster` only where the range excludes 1."""

from __future__ import annotations

from typing import Literal

from sparsekd.report import formatting as f
from sparsekd.report.summary import Interval, Summary, Variant

ROUNDS_FOR_A_CLAIM = 5
"""Fewer rounds whose ratios all lie on one side of 1 happen too often by luck (4 of 4: one time in eight)."""

Pace = Literal["faster", "slower", "open", "unmeasured"]


def verdict(summary: Summary) -> list[str]:
    """A headline, then a sentence each on likeness, task scores, speed and quantisation, as far as measured."""
    model = summary.variants.distilled
    return [_headline(summary), *filter(None, [_likeness(summary), _tasks(model), _speed(model), _quantised(summary)])]


def pace(ratio: Interval | None, rounds: int) -> Pace:
    """What a speed ratio allows one to say."""
    if ratio is None:
        return "unmeasured"
    if rounds < ROUNDS_FOR_A_CLAIM or not ratio.excludes(1.0):
        return "open"
    return "faster" if ratio.value > 1 else "slower"


def _headline(summary: Summary) -> str:
    model = summary.variants.distilled
    total = summary.reduction.total
    size = f"{f.percent(total)} fewer parameters" if total > 0 else "No parameter removed"
    clauses = [size, _pace_clause(model), _task_clause(model) or _perplexity_clause(summary)]
    return f.sentence(", ".join(clause for clause in clauses if clause))


def _pace_clause(model: Variant) -> str:
    paces = paces_of(model)
    faster = [name for name, found in paces.items() if found == "faster"]
    slower = [name for name, found in paces.items() if found == "slower"]
    if faster and slower:
        return f"faster in {faster[0]} but slower in {slower[0]}"
    if faster or slower:
        return f"{'faster' if faster else 'slower'} in {f.listing(faster or slower)}"
    return "" if set(paces.values()) == {"unmeasured"} else "no speed gain shown"


def _task_clause(model: Variant) -> str:
    mean = model.task_mean
    if mean is None:
        return ""
    if mean.difference is None:
        return f"{f.percent(mean.recovery)} of the dense mean task score"
    if not mean.difference.excludes(0.0):
        return "mean task score within noise of the dense model"
    change = f"{abs(100 * mean.difference.value):.1f} points"
    return f"mean task score {change} {'below' if mean.difference.value < 0 else 'above'} the dense model"


def _perplexity_clause(summary: Summary) -> str:
    ratios = _shown_ratios(summary)
    name = next(iter(ratios), None)
    return f"test perplexity {f.ratio(ratios[name])} the dense model's on {name}" if name else ""


def paces_of(model: Variant) -> dict[str, Pace]:
    """What may be said of prefill and of decode."""
    ratio = model.speed.ratio
    return {
        "prefill": pace(ratio.prefill if ratio else None, model.speed.rounds),
        "decode": pace(ratio.decode if ratio else None, model.speed.rounds),
    }


def _likeness(summary: Summary) -> str:
    model, pruned = summary.variants.distilled, summary.variants.pruned
    ratios = _shown_ratios(summary)
    sentences = []
    if ratios:
        parts = [f"{f.ratio(ratio)} on {name}{_before(pruned, name)}" for name, ratio in ratios.items()]
        sentences.append(f"against the dense model, test perplexity is {f.listing(parts)}")
    top1 = [found.top1.value for found in model.agreement.values()]
    if top1:
        sentences.append(f"on {f.percent(sum(top1) / len(top1))} of test tokens both rank the same next token first")
    return f.sentence("; ".join(sentences)) if sentences else ""


def _shown_ratios(summary: Summary) -> dict[str, float]:
    """Perplexity against dense on what it was distilled on; on the first two corpora where none of those is tested."""
    model = summary.variants.distilled
    ratios = {name: found.ratio.value for name, found in model.perplexity.items() if found.ratio}
    trained = {name: ratio for name, ratio in ratios.items() if _trained(summary, name)}
    return trained or dict(list(ratios.items())[:2])


def _before(pruned: Variant, corpus: str) -> str:
    found = pruned.perplexity.get(corpus)
    return f" ({f.ratio(found.ratio.value)} before distillation)" if found and found.ratio else ""


def _trained(summary: Summary, corpus: str) -> bool:
    known = summary.corpora.get(corpus)
    return bool(known and known.role == "calibration")


def _tasks(model: Variant) -> str:
    mean = model.task_mean
    if mean is None:
        return "No task that dense is above chance on was scored." if model.tasks else "No tasks were scored."
    lead = f"On {f.number_of(len(mean.tasks), 'task')} it scores {f.percent(mean.value)} on average"
    if mean.difference is None:
        return f"{lead}, {f.percent(mean.recovery)} of dense; rows could not be paired, so no interval is known."
    interval = f.span(mean.difference, "points")
    between = f"{f.points(mean.difference.value)} points against the dense model (95 % interval {interval})"
    if mean.difference.excludes(0.0):
        return f"{lead}: {between}."
    return f"{lead}: {between}, within the noise of these rows."


def _speed(model: Variant) -> str:
    ratio, rounds = model.speed.ratio, model.speed.rounds
    if ratio is None:
        return "Speed was not measured." if model.speed.rounds == 0 else "Speed was not compared with dense."
    found = {name: measured for name, measured in (("prefill", ratio.prefill), ("decode", ratio.decode)) if measured}
    if not found:
        return "Speed was not compared with dense."
    if rounds < ROUNDS_FOR_A_CLAIM:
        ran = f.listing([f"{name} {f.ratio(measured.value)}" for name, measured in found.items()])
        return f"In {f.number_of(rounds, 'round')}, too few for a claim, speed against dense was {ran}."
    words = {"faster": "is faster", "slower": "is slower"}
    parts = [
        f"{name} {words.get(pace(measured, rounds), 'is not shown to be faster')} "
        f"({f.ratio(measured.value)}, range {f.span(measured, 'ratio')})"
        for name, measured in found.items()
    ]
    return f"On the benchmark's machine, over {rounds} rounds, {f.listing(parts)}."


def _quantised(summary: Summary) -> str:
    """Quantisation alone beside pruning, at the first type that both models were measured in."""
    files = {(found.model, found.type): found for found in summary.quantised}
    both = [kind for model, kind in files if model == "dense" and ("distilled", kind) in files]
    if not both:
        return ""
    dense, ours = files["dense", both[0]], files["distilled", both[0]]
    return (
        f"Quantised to {both[0].upper()} in llama.cpp, the dense model takes {f.size(dense.bytes)} at a KL of "
        f"{dense.mean_kl:.3f} nats a token, this one {f.size(ours.bytes)} at {ours.mean_kl:.3f}."
    )
