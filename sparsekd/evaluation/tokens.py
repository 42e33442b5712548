"""How a model's test tokens spread: confidence against being right, and divergence from the dense model."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from sparsekd.evaluation.perplexity import TokenScores

CONFIDENCE_BINS = 10
KL_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Nats a token, where the bins of the divergence begin; the last one has no end."""
_DIGITS = 6


class Reliability(BaseModel):
    """Tokens by the probability of the model's first choice, in bins of equal width.

    `confidence` is the mean of that probability in a bin, `accuracy` how often the choice was the text's next token; 0
    in an empty bin. `error` is the expected calibration error (Guo et al. 2017): the mean of |accuracy − confidence|
    over all tokens.
    """

    model_config = ConfigDict(frozen=True)

    tokens: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    error: float


class Divergence(BaseModel):
    """Tokens, and the nats that they add up to, by KL(dense ‖ model), in bins that begin at KL_EDGES."""

    model_config = ConfigDict(frozen=True)

    tokens: tuple[int, ...]
    nats: tuple[float, ...]


def reliability(scores: TokenScores) -> Reliability:
    """Bin the tokens by confidence; a confidence of 1 belongs to the last bin."""
    index = (scores.confidence * CONFIDENCE_BINS).long().clamp(0, CONFIDENCE_BINS - 1)
    count = torch.bincount(index, minlength=CONFIDENCE_BINS)
    confidence, accuracy = (_sums(x, index, CONFIDENCE_BINS) / count.clamp_min(1) for x in scores[3:])
    error = float((count * (accuracy - confidence).abs()).sum() / count.sum())
    return Reliability(
        tokens=tuple(count.tolist()),
        confidence=_rounded(confidence),
        accuracy=_rounded(accuracy),
        error=round(error, _DIGITS),
    )


def divergence(scores: TokenScores) -> Divergence:
    """Bin the tokens by KL; one that rounding made negative belongs to the first bin."""
    index = (torch.bucketize(scores.kl, torch.tensor(KL_EDGES, dtype=torch.float64), right=True) - 1).clamp_min(0)
    count = torch.bincount(index, minlength=len(KL_EDGES))
    return Divergence(tokens=tuple(count.tolist()), nats=_rounded(_sums(scores.kl, index, len(KL_EDGES))))


def _sums(values: Float[Tensor, " tokens"], index: Tensor, bins: int) -> Float[Tensor, " bins"]:
    return torch.zeros(bins, dtype=torch.float64).index_add(0, index, values)


def _rounded(values: Float[Tensor, " bins"]) -> tuple[float, ...]:
    return tuple(round(value, _DIGITS) for value in values.tolist())
