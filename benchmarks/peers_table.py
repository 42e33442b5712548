"""Markdown tables of what benchmarks.peers has measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

from benchmarks.peers import BEST, COMPENSATIONS, DISTILL_TOKENS, MIDDLE, SEEDS, USUAL, WIDTHS, Job

Results = Mapping[Job, dict[str, Any]]
_T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t at 97.5 % by number of pairs
IN_DOMAIN = ("wiki", "c4")
DENSE, TUNED = Job("dense", "none", 1536), Job("dense", "none", 1536, DISTILL_TOKENS)


def excess(line: dict[str, Any], against: dict[str, Any]) -> dict[str, float]:
    """Loss on each corpus of the test part above another model's, nats a token."""
    ours, theirs = line["scores"]["test"], against["scores"]["test"]
    return {
        corpus: math.log(ours[corpus]["perplexity"]["value"] / theirs[corpus]["perplexity"]["value"]) for corpus in ours
    }


def tables(results: Results) -> str:
    """The goals, what each part adds, tables of each width before distillation and after it, and the paired seeds."""
    parts = [_goals(results), _ladder(results)]
    for tokens in (0, DISTILL_TOKENS):
        for width in (DENSE.width, *WIDTHS) if tokens else WIDTHS:
            if chosen := _at(width, tokens, results):
                parts.append(_table(width, tokens, chosen, results))
    return "\n\n".join(filter(None, [*parts, _seeds(results)]))


def _at(width: int, tokens: int, results: Results) -> list[Job]:
    """The first seed's jobs, nearest to dense first; of optipfair distilled the best rate."""
    chosen = [job for job in results if (job.width, job.tokens, job.seed) == (width, tokens, 0)]
    return sorted(_best_rates(chosen, results), key=lambda job: _mean_kl(results[job]))


def _when(tokens: int) -> str:
    return f"after {tokens:,} tokens" if tokens else "before distillation"


def _table(width: int, tokens: int, chosen: list[Job], results: Results) -> str:
    """Excess loss in and out of domain and KL; after distillation also excess over dense trained alike, and tasks."""
    columns = ["excess, wiki and c4", "excess, others", "KL"]
    columns += ["excess over dense trained alike", "tasks, %"] if tokens else []
    columns += ["CPU-seconds", "GiB"]
    lines = [f"### Width {width} of {DENSE.width}, {_when(tokens)}", "", _row(["selection", "compensation", *columns])]
    lines.append("|---|---|" + "---:|" * len(columns))
    for job in chosen:
        line = results[job]
        cells = [f"{value:.3f}" for value in (*_by_domain(excess(line, results[DENSE])), _mean_kl(line))]
        if tokens:
            cells.append(f"{mean(excess(line, results[TUNED]).values()):.3f}")
            cells.append(_tasks(line))
        cells += [f"{sum(line['cpu_seconds'].values()):.0f}", f"{line['peak_gib']:.1f}"]
        lines.append(_row([job.selection, _how(job), *cells]))
    return "\n".join(lines)


def _tasks(line: dict[str, Any]) -> str:
    """Mean score of the tasks in per cent, and its standard error, as of tasks that are independent of each other."""
    scores = list(line["tasks"].values())
    error = math.sqrt(sum(score["stderr"] ** 2 for score in scores)) / len(scores)
    return f"{100 * mean(score['value'] for score in scores):.1f} ± {100 * error:.1f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _goals(results: Results) -> str:
    """Our mean excess loss as a share of the best peer's as it usually comes and of optipfair's; out of domain too."""
    rows = []
    for tokens in (0, DISTILL_TOKENS):
        for width in WIDTHS:
            over = {job: excess(results[job], results[DENSE]) for job in _at(width, tokens, results)}
            ours = over.get(Job(BEST[0], COMPENSATIONS[2], width, tokens))
            usual = [job for job in over if USUAL.get(job.selection) == job.compensation]
            best = min(usual, key=lambda job: mean(over[job].values()), default=None)
            fair = next((job for job in over if (job.selection, job.compensation) == ("optipfair", "data")), None)
            if ours and (best or fair):
                cells = [f"{width}, {_when(tokens)}", f"{mean(ours.values()):.3f}"]
                cells += [best.selection, *_share(ours, over[best])] if best else ["–"] * 4
                cells += _share(ours, over[fair]) if fair else ["–"] * 3
                rows.append(_row(cells))
    shares = ["share", "others alone"]
    head = ["width", "ours", "best peer as usual", "excess", *shares, "optipfair", *shares]
    return "\n".join(["### Goals", "", _row(head), "|---|---:|---|" + "---:|" * 6, *rows]) if rows else ""


def _ladder(results: Results) -> str:
    """KL to dense at each width, before and after distillation, as our parts join the commonest peer's one by one."""
    steps = {
        f"{BEST[1]} alone": (BEST[1], "none"),
        f"selection by {BEST[0]}": (BEST[0], "none"),
        "one-shot compensation": (BEST[0], "one_shot"),
        "sequential compensation": (BEST[0], "sequential"),
    }
    columns = [(width, tokens) for tokens in (0, DISTILL_TOKENS) for width in WIDTHS]
    rows = []
    for name, step in steps.items():
        lines = [results.get(Job(*step, *column)) for column in columns]
        if any(lines):
            rows.append(_row([name, *(f"{_mean_kl(line):.3f}" if line else "–" for line in lines)]))
    head = _row(["KL to dense with", *(f"{width}{', distilled' * bool(tokens)}" for width, tokens in columns)])
    return "\n".join(["### What each part adds", "", head, "|---|" + "---:|" * len(columns), *rows]) if rows else ""


def _share(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[str, str, str]:
    """Another's mean excess loss; ours as a share of it, on all corpora and on those out of domain."""
    loss = mean(theirs.values())
    outside = _by_domain(ours)[1] / _by_domain(theirs)[1]
    return f"{loss:.3f}", f"{mean(ours.values()) / loss:.2f}", f"{outside:.2f}"


def _by_domain(over: Mapping[str, float]) -> tuple[float, float]:
    """The mean over the corpora that are like the calibration text, and over the others."""
    inside = [value for corpus, value in over.items() if corpus in IN_DOMAIN]
    outside = [value for corpus, value in over.items() if corpus not in IN_DOMAIN]
    return mean(inside), mean(outside)


def _how(job: Job) -> str:
    usual = USUAL.get(job.selection) == job.compensation
    return job.compensation.replace("_", "-") + (f", rate {job.rate:g}" if job.rate else "") + (" (usual)" * usual)


def _mean_kl(line: dict[str, Any], part: str = "test") -> float:
    return mean(score["kl"]["value"] for score in line["scores"][part].values())


def _best_rates(chosen: list[Job], results: Results) -> list[Job]:
    """Of optipfair's learning rates the one with the lowest loss on validation text."""

    def loss(job: Job) -> float:
        return mean(math.log(score["perplexity"]["value"]) for score in results[job]["scores"]["validation"].values())

    rated = [job for job in chosen if job.rate]
    return [job for job in chosen if not job.rate] + ([min(rated, key=loss)] if rated else [])


def _seeds(results: Results) -> str:
    """Paired differences of KL and excess loss over seeds, ours less each peer's, with 95 % intervals."""
    rows = []
    for peer in BEST[1:]:
        pairs = [
            (results[mine], results[theirs])
            for seed in SEEDS
            if (mine := Job(BEST[0], COMPENSATIONS[2], MIDDLE, DISTILL_TOKENS, seed)) in results
            and (theirs := Job(peer, COMPENSATIONS[2], MIDDLE, DISTILL_TOKENS, seed)) in results
        ]
        if len(pairs) in _T_95:
            kl = [_mean_kl(mine) - _mean_kl(theirs) for mine, theirs in pairs]
            loss = [mean(excess(mine, theirs).values()) for mine, theirs in pairs]
            rows.append(f"| {BEST[0]} − {peer} | {len(pairs)} | {_interval(kl)} | {_interval(loss)} |")
    if not rows:
        return ""
    title = f"### Paired seeds, width {MIDDLE}, {_when(DISTILL_TOKENS)}, 95 % intervals"
    return "\n".join([title, "", "| difference | seeds | KL | loss |", "|---|---:|---:|---:|", *rows])


def _interval(values: list[float]) -> str:
    half = _T_95[len(values)] * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):+.4f} ({mean(values) - half:+.4f} to {mean(values) + half:+.4f})"
