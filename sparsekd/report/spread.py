"""How test tokens spread, as evaluate wrote it: confidence, divergence, and the worst passages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict

from sparsekd.report import formatting as f
from sparsekd.report.statistics import Floats

KL_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Nats a token, where evaluate's bins of the divergence begin."""
_LEVELS = (0.1, 0.3, 1.0, 3.0)
"""Nats a token, from which a token of a passage is coloured stronger."""
_CLEAR_SHARE = 0.0005


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ReliabilityFile(_Read):
    tokens: list[int]
    confidence: list[float]
    accuracy: list[float]
    error: float


class DivergenceFile(_Read):
    tokens: list[int]
    nats: list[float]


class TokenFile(_Read):
    """A token of a passage; both models' likeliest next tokens with their probabilities."""

    text: str
    kl: float | None
    dense: list[tuple[str, float]]
    model: list[tuple[str, float]]

    @property
    def level(self) -> int:
        """0 for no divergence worth a colour, up to 4."""
        return sum((self.kl or 0.0) >= level for level in _LEVELS)

    @property
    def told(self) -> str:
        """All that is known of it, in words."""
        if self.kl is None:
            return f"{visible(self.text)}: not scored"
        return (
            f"{visible(self.text)}: KL {self.kl:.2f} nats. Dense expected {_choices(self.dense)}. "
            f"This model expected {_choices(self.model)}."
        )


class PassageFile(_Read):
    corpus: str
    kl: float
    before: str
    tokens: list[TokenFile]


class Tokens(_Read):
    """tokens.json of one variant."""

    reliability: dict[str, ReliabilityFile] = {}
    divergence: dict[str, DivergenceFile] = {}
    passages: list[PassageFile] = []


@dataclass(frozen=True)
class Reliability:
    """Tokens of all corpora by confidence, without the empty bins; `error` is the expected calibration error."""

    tokens: Floats
    confidence: Floats
    accuracy: Floats
    error: float


def pooled(corpora: Mapping[str, ReliabilityFile]) -> Reliability | None:
    """The corpora's bins added up, each token counting the same; None without tokens."""
    if not corpora:
        return None
    tokens = np.array([found.tokens for found in corpora.values()], dtype=np.float64)
    confidence = np.array([found.confidence for found in corpora.values()])
    accuracy = np.array([found.accuracy for found in corpora.values()])
    count = tokens.sum(0)
    full = count > 0
    if not full.any():
        return None
    means = [(tokens * values).sum(0)[full] / count[full] for values in (confidence, accuracy)]
    error = float((count[full] * np.abs(means[1] - means[0])).sum() / count.sum())
    return Reliability(count[full], means[0], means[1], error)


def divergence_rows(corpora: Mapping[str, DivergenceFile]) -> list[tuple[str, str, str]]:
    """By size of the divergence: its bin, the share of tokens, and the share of all divergence that they make up."""
    if not corpora:
        return []
    tokens = np.sum([found.tokens for found in corpora.values()], axis=0)
    nats = np.sum([found.nats for found in corpora.values()], axis=0)
    if not tokens.sum() or nats.sum() <= 0:
        return []
    names = [f"{low:g} to {high:g}" for low, high in pairwise(KL_EDGES)]
    names.append(f"{KL_EDGES[-1]:g} and more")
    return [
        (name, _share(count / tokens.sum()), _share(sum_ / nats.sum()))
        for name, count, sum_ in zip(names, tokens, nats, strict=True)
    ]


def visible(text: str) -> str:
    """A token with its ends and line breaks to be seen."""
    return (
        "\N{LEFT DOUBLE QUOTATION MARK}" + text.replace("\n", "\N{RETURN SYMBOL}") + "\N{RIGHT DOUBLE QUOTATION MARK}"
    )


def _choices(choices: list[tuple[str, float]]) -> str:
    return f.listing([f"{visible(text)} {100 * share:.0f} %" for text, share in choices])


def _share(share: float) -> str:
    return f.percent(share) if share >= _CLEAR_SHARE or share == 0 else "under 0.1 %"
