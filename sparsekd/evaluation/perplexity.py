"""Perplexity and agreement with the dense model, in one pass over the test sequences.

Agreement comes from the teacher cache: the dense model's logits are rebuilt from its final hidden states chunk by
chunk, so neither its body nor a (tokens × vocab) tensor of the whole set is ever in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from transformers import PreTrainedModel

from sparsekd.calibration.packing import NOT_SCORED, Packed
from sparsekd.distillation.losses import cross_entropy, kl_divergence
from sparsekd.distillation.teacher import TeacherCache
from sparsekd.errors import ArtifactError
from sparsekd.evaluation.intervals import Interval, ratio_interval
from sparsekd.models import LMHead, final_hidden, lm_head
from sparsekd.progress import Progress, silent

CHUNK = 512  # tokens whose logits stand at once; under 256 the LM head's matmul is slower
BLOCK = 64  # tokens of float32 softmax at once on the CPU: this still fits its cache, 512 take ten times as long


class TokenScores(NamedTuple):
    """Of each scored token: −log q(token), KL(dense ‖ model) in nats, and whether both rank the same token first.

    `kl` and `top1` are zeros where there is no teacher. `confidence` is the highest probability that the model gives to
    any token, and `right` is 1 where that is the text's.
    """

    nll: Float[Tensor, " tokens"]
    kl: Float[Tensor, " tokens"]
    top1: Float[Tensor, " tokens"]
    confidence: Float[Tensor, " tokens"]
    right: Float[Tensor, " tokens"]


@dataclass(frozen=True)
class DocumentSums:
    """Sums over the scored tokens of each document (or, where there is only one, of each sequence)."""

    tokens: Float[ndarray, " documents"]
    nll: Float[ndarray, " documents"]
    kl: Float[ndarray, " documents"] | None
    top1: Float[ndarray, " documents"] | None

    def perplexity(self, seed: int) -> Interval:
        """Token perplexity: exp of the mean −log q, with its interval over documents."""
        return ratio_interval(self.nll, self.tokens, seed, math.exp)

    def agreement(self, seed: int) -> dict[str, Interval] | None:
        """Mean KL(dense ‖ model) in nats a token and share of equal first ranks; None without a teacher."""
        if self.kl is None or self.top1 is None:
            return None
        return {"kl": ratio_interval(self.kl, self.tokens, seed), "top1": ratio_interval(self.top1, self.tokens, seed)}

    def to_json(self) -> dict[str, list[Any]]:
        """The sums as lists, for paired comparisons between models."""
        record: dict[str, list[Any]] = {"tokens": self.tokens.astype(int).tolist(), "nll": self.nll.tolist()}
        if self.kl is not None and self.top1 is not None:
            record |= {"kl": self.kl.tolist(), "top1": self.top1.astype(int).tolist()}
        return record


def document_sums(
    model: PreTrainedModel, packed: Packed, batch_size: int, teacher: TeacherCache | None = None, part: str = ""
) -> DocumentSums:
    """Sums over each document of what `token_scores` finds."""
    return by_document(token_scores(model, packed, batch_size, teacher, part), packed, teacher is not None)


@torch.inference_mode()
def token_scores(
    model: PreTrainedModel,
    packed: Packed,
    batch_size: int,
    teacher: TeacherCache | None = None,
    part: str = "",
    progress: Progress = silent,
    before: int = 0,
    total: int = 0,
) -> TokenScores:
    """Score every sequence of `packed` with `model`, and compare with the dense model when there is a teacher cache.

    Returns float64 on the CPU, in the order of `packed.scored`. `part` names the cache's part, such as "test-wiki".
    `before` and `total` place this in a longer progress, in tokens. Raises ArtifactError when the cache lacks the part
    or no token is scored.
    """
    if not bool(packed.scored.any()):
        raise ArtifactError(f"{part or 'The corpus'} has no token to score; run stage calibrate with longer texts.")
    head = lm_head(model)
    found = []
    for start in range(0, len(packed.input_ids), batch_size):
        rows = slice(start, min(start + batch_size, len(packed.input_ids)))
        ids, mask = packed.input_ids[rows].to(model.device), packed.scored[rows].to(model.device)
        hidden = final_hidden(model, ids)[:, :-1][mask]
        dense = None
        if teacher is not None:
            dense = teacher.hidden(part, range(rows.start, rows.stop)).to(model.device)[:, :-1][mask]
        found.append(score_tokens(hidden, head, ids[:, 1:][mask], dense, teacher))
        progress(before + rows.stop * ids.shape[1], total or packed.tokens, "tokens")
    return TokenScores(*(column.double().cpu() for column in joined(found)))


def score_tokens(
    hidden: Float[Tensor, "tokens hidden"],
    head: LMHead,
    targets: Int[Tensor, " tokens"],
    dense_hidden: Float[Tensor, "tokens hidden"] | None = None,
    teacher: TeacherCache | None = None,
) -> TokenScores:
    """Score targets from final hidden states; logits in the model's dtype, softmax in float32, chunk by chunk."""
    parts = [_no_scores(targets[:0])]
    for start in range(0, len(targets), CHUNK):
        rows = slice(start, start + CHUNK)
        logits = head.logits(hidden[rows])
        dense = None
        if dense_hidden is not None and teacher is not None:
            dense = teacher.logits(dense_hidden[rows])
        parts.append(score_logits(logits, targets[rows], dense))
    return joined(parts)


def score_logits(
    logits: Float[Tensor, "tokens vocab"],
    targets: Int[Tensor, " tokens"],
    dense: Float[Tensor, "tokens vocab"] | None = None,
) -> TokenScores:
    """Score targets from the logits of any runtime, and compare with those of the dense model where they are given."""
    block = BLOCK if logits.device.type == "cpu" else CHUNK
    parts = [_no_scores(targets[:0])]
    for first in range(0, len(logits), block):
        rows = slice(first, first + block)
        parts.append(_score(logits[rows].float(), targets[rows], None if dense is None else dense[rows]))
    return joined(parts)


def joined(parts: Sequence[TokenScores]) -> TokenScores:
    """The scores of all parts, one after the other."""
    return TokenScores(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _score(
    logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"], dense: Float[Tensor, "tokens vocab"] | None
) -> TokenScores:
    nll, (best, first) = cross_entropy(logits, targets), logits.max(-1)
    # −log q(token) is logsumexp − logit: the sum over the vocabulary need not be taken again
    confidence = (best - logits.gather(1, targets[:, None])[:, 0] - nll).exp()
    scores = _no_scores(targets)._replace(nll=nll, confidence=confidence, right=(first == targets).float())
    if dense is None:
        return scores
    return scores._replace(kl=kl_divergence(logits, dense), top1=(first == dense.argmax(-1)).float())


def _no_scores(targets: Int[Tensor, " tokens"]) -> TokenScores:
    zeros = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
    return TokenScores(zeros, zeros, zeros, zeros, zeros)


def scored_units(packed: Packed) -> Int[Tensor, " tokens"]:
    """The unit of resampling for each scored token: its document; its sequence where all belong to one document."""
    documents = packed.document[:, 1:]
    scored = documents[packed.scored]
    if len(scored) and bool((scored == scored[0]).all()):
        rows = torch.arange(len(documents))[:, None].expand_as(documents)
        return rows[documents != NOT_SCORED]
    return scored


def by_document(scores: TokenScores, packed: Packed, compared: bool) -> DocumentSums:
    """Sums over the units of `scored_units`; KL and first ranks only where the scores were `compared` with dense."""
    _, index = torch.unique(scored_units(packed), return_inverse=True)
    zeros = torch.zeros(int(index.max()) + 1, dtype=torch.float64)
    nll, kl, top1 = (zeros.index_add(0, index, s).numpy() for s in (scores.nll, scores.kl, scores.top1))
    tokens = torch.bincount(index).double()
    return DocumentSums(tokens.numpy(), nll, kl if compared else None, top1 if compared else None)
