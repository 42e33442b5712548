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


def excess(line: dict[str, Any], against: dict[str, Any]) -> dict[str, float]:
    """Loss on each corpus of the test part above another model's, nats a token."""
    ours, theirs = line["scores"]["test"], against["scores"]["test"]
    return {
        corpus: math.log(ours[corpus]["perplexity"]["value"] / theirs[corpus]["perplexity"]["value"]) for corpus in ours
    }


def _cells(line: dict[str, Any], results: Results) -> str:
    """Mean excess loss in and out of domain, mean KL, mean task score."""
    over = excess(line, results[Job("dense", "none", 1536)])
    inside = mean(value for corpus, value in over.items() if corpus in IN_DOMAIN)
    outside = mean(value for corpus, value in over.items() if corpus not in IN_DOMAIN)
    kl = mean(score["kl"]["value"] for score in line["scores"]["test"].values())
    tasks = f"{100 * mean(task['value'] for task in line['tasks'].values()):.1f}" if line["tasks"] else ""
    seconds = sum(line["cpu_seconds"].values())
    return f"{inside:.3f} | {outside:.3f} | {kl:.3f} | {tasks} | {seconds:.0f} | {line['peak_gib']:.1f}"


_HEAD = (
    "| selection | compensation | excess, wiki and c4 | excess, others | KL | tasks, % | CPU-seconds | GiB |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|"
)


def tables(results: Results) -> str:
    """One table for each width before distillation and after it, and the paired seeds."""
    parts = []
    for tokens, title in ((0, "before distillation"), (DISTILL_TOKENS, f"after {DISTILL_TOKENS:,} tokens")):
        for width in WIDTHS:
            chosen = [job for job in results if (job.width, job.tokens, job.seed) == (width, tokens, 0)]
            if chosen:
                ranked = sorted(_best_rates(chosen, results), key=lambda job: _mean_kl(results[job]))
                rows = [f"| {job.selection} | {_how(job)} | {_cells(results[job], results)} |" for job in ranked]
                parts.append("\n".join([f"Width {width}, {title}:\n", _HEAD, *rows]))
    paired = _seeds(results)
    return "\n\n".join([*parts, *([paired] if paired else [])])


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
    title = f"Paired seeds, width {MIDDLE}, after {DISTILL_TOKENS:,} tokens (95 % intervals):\n"
    return "\n".join([title, "| difference | seeds | KL | loss |", "|---|---:|---:|---:|", *rows])


def _interval(values: list[float]) -> str:
    half = _T_95[len(values)] * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):+.4f} ({mean(values) - half:+.4f} to {mean(values) + half:+.4f})"
