"""What a page can tell beside its own run: the project's other results, the price list, what the stages took."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sparsekd.evaluation.offers import PriceList
from sparsekd.report.summary import Perplexity, Summary

_SAME = 0.01
"""Largest relative difference of two perplexities of one model on the same text on two machines."""


class Context(BaseModel):
    """All of it may be absent: it adds to a page and is no part of what the stages vouch for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: dict[str, Summary] = {}
    """Results that the project knows, by name, this one not among them."""
    prices: PriceList | None = None
    seconds: dict[str, float | None] = {}
    """Wall time by stage, in the order of the graph; None where DVC had the output already."""
    commit: str | None = None
    """What git had checked out."""
    edited: bool = False
    """Whether files that git knows were edited since."""

    @classmethod
    def read(cls, path: Path) -> Context:
        """What `path` holds; an empty context where it is absent or of another version of sparsekd."""
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValidationError):
            return cls()


def comparable(one: Summary, other: Summary) -> bool:
    """Whether both measured the same dense model on the same test text, so that their KL and losses compare."""
    ours, theirs = one.variants.dense, other.variants.dense
    return (
        ours.parameters == theirs.parameters
        and ours.perplexity.keys() == theirs.perplexity.keys()
        and all(_same(ours.perplexity[name], theirs.perplexity[name]) for name in ours.perplexity)
    )


def _same(one: Perplexity, other: Perplexity) -> bool:
    counts = (one.tokens, one.documents) == (other.tokens, other.documents)
    return counts and abs(one.value - other.value) <= _SAME * min(one.value, other.value)


def same_model(one: Summary, other: Summary) -> bool:
    """Whether both report on equal weights, as far as their figures tell: the same model measured twice."""
    ours, theirs = one.variants.distilled, other.variants.distilled
    return (ours.parameters, ours.perplexity, ours.agreement) == (
        theirs.parameters,
        theirs.perplexity,
        theirs.agreement,
    )


def groups(summaries: Mapping[str, Summary]) -> list[dict[str, Summary]]:
    """The summaries in groups of comparable ones, each in the order given, the group of the first one first."""
    found: list[dict[str, Summary]] = []
    for name, summary in summaries.items():
        home = next((group for group in found if comparable(next(iter(group.values())), summary)), None)
        if home is None:
            found.append({name: summary})
        else:
            home[name] = summary
    return found
