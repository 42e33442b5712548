"""What a made-up run is written with: sizes of SmolLM2-135M, and each artifact's pieces in the format of its stage."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

VARIANTS = ("dense", "pruned", "distilled")
LAYERS, HIDDEN, WIDTH, KEPT, VOCABULARY = 30, 576, 1536, 1152, 49152
FFN = {"dense": 3 * LAYERS * HIDDEN * WIDTH, "pruned": 3 * LAYERS * HIDDEN * KEPT}
FFN["distilled"] = FFN["pruned"]
TOTAL_DENSE = 134_515_008


def passage(corpus: str) -> dict[str, Any]:
    """A few words with every strength of divergence, markup, line breaks, and one that is not scored."""
    words = [
        "The",
        " king",
        " of",
        " <b>Norway",
        "</b>",
        "\n\n",
        " sailed",
        " to",
        " the",
        " island",
        " in",
        " spring",
        ".",
    ]
    words *= 4
    kls = [None, 0.02, 0.15, 4.2, 0.5, 0.04, 1.4, 0.3]
    tokens = [
        {
            "text": word,
            "kl": kls[place % len(kls)],
            "dense": [[word, 0.61], [" a", 0.2], ["\n", 0.04]],
            "model": [[" the", 0.4], [word, 0.22], [' "', 0.1]],
        }
        for place, word in enumerate(words)
    ]
    scored = [token["kl"] for token in tokens if token["kl"] is not None]
    return {"corpus": corpus, "kl": sum(scored) / len(scored), "before": "Long ago,\n", "tokens": tokens}


def with_shares(times: dict[str, float]) -> dict[str, dict[str, float]]:
    """Milliseconds by operator class, each with its share of the sum."""
    return {kind: {"milliseconds": ms, "share": ms / sum(times.values())} for kind, ms in times.items()}


def parameters(variant: str) -> dict[str, int]:
    """Numbers of parameters of SmolLM2-135M, whole or at width 1152."""
    total = TOTAL_DENSE - FFN["dense"] + FFN[variant]
    return {"total": total, "non_embedding": total - VOCABULARY * HIDDEN, "ffn": FFN[variant]}


def perplexity(sums: dict[str, list[float]]) -> dict[str, Any]:
    """As evaluate reports it, with an interval of the unpaired kind."""
    loss = sum(sums["nll"]) / sum(sums["tokens"])
    each = np.array(sums["nll"]) / np.array(sums["tokens"])
    error = 1.96 * float(each.std()) / math.sqrt(len(each))
    ends = {"value": math.exp(loss), "low": math.exp(loss - error), "high": math.exp(loss + error)}
    return ends | {"tokens": int(sum(sums["tokens"])), "documents": len(each)}


def agreement(sums: dict[str, list[float]]) -> dict[str, Any]:
    """As evaluate reports it."""
    tokens = sum(sums["tokens"])
    kl, top1 = sum(sums["kl"]) / tokens, sum(sums["top1"]) / tokens
    return {
        "kl": {"value": kl, "low": kl * 0.94, "high": kl * 1.06},
        "top1": {"value": top1, "low": top1 - 0.012, "high": min(1.0, top1 + 0.012)},
    }


def write_samples(path: Path, metric: str, scores: dict[int, float]) -> None:
    """In lm-eval's layout, a line a row."""
    lines = []
    for key, score in scores.items():
        row = {"doc_id": key, "doc": {"question": f"question {key}"}, "target": "0", "arguments": {}, "filter": "none"}
        row |= {"metrics": [metric], "doc_hash": f"{key:064x}", "prompt_hash": "0" * 64, metric: score}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, names: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([names, *rows])
