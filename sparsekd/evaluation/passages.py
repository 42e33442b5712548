"""The passages of test text where a model is farthest from the dense one, token by token, with what both expected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsekd.calibration.packing import Packed
from sparsekd.distillation.teacher import TeacherCache
from sparsekd.evaluation.perplexity import TokenScores
from sparsekd.models import final_hidden, lm_head

COUNT = 10
LENGTH = 48  # tokens of a passage: a few lines
_CONTEXT = 24  # tokens shown before it
_CHOICES = 3
_NOTHING = 0.01  # nats: bfloat16 alone makes 0.002 between a model and itself

Choices = tuple[tuple[str, float], ...]


class Token(BaseModel):
    """A token, KL(dense ‖ model) in nats where it was to be foretold, and both models' likeliest words for it."""

    model_config = ConfigDict(frozen=True)

    text: str
    kl: float | None
    dense: Choices
    model: Choices


class Passage(BaseModel):
    """So many tokens in a row; `kl` is their mean over the scored ones, `before` the text that precedes them."""

    model_config = ConfigDict(frozen=True)

    corpus: str
    kl: float
    before: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Place:
    """Tokens first … first + LENGTH − 1 of a sequence of `corpus`, or up to the sequence's end."""

    corpus: str
    row: int
    first: int
    kl: float


def worst_places(corpus: str, packed: Packed, kl: Float[Tensor, " tokens"]) -> list[Place]:
    """Passages of a corpus that do not overlap, the largest mean KL first; at least half of each is scored.

    `kl` is that of the scored tokens, in the order of `packed.scored`. A passage of no divergence is no place.
    """
    grid = _grid(packed, kl)
    grid = torch.nn.functional.pad(grid, (0, -grid.shape[1] % LENGTH), value=torch.nan)
    windows = grid.view(len(grid), -1, LENGTH)
    mean = windows.nanmean(-1)
    mean[(~windows.isnan()).sum(-1) * 2 < LENGTH] = 0.0
    order = mean.flatten().argsort(descending=True, stable=True)[:COUNT].tolist()
    found = [(divmod(place, mean.shape[1]), float(mean.flatten()[place])) for place in order]
    # column 0 of the grid is token 1 of a sequence: nothing foretells the first
    return [Place(corpus, row, 1 + block * LENGTH, value) for (row, block), value in found if value > _NOTHING]


def choose_places(places: Mapping[str, list[Place]]) -> list[Place]:
    """COUNT places: the worst of each corpus, then the second worst of each, …; the largest KL first."""
    ranked = [(rank, -place.kl, place) for found in places.values() for rank, place in enumerate(found)]
    chosen = [place for _, _, place in sorted(ranked, key=lambda entry: entry[:2])[:COUNT]]
    return sorted(chosen, key=lambda place: -place.kl)


@torch.inference_mode()
def worst_passages(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test: Mapping[str, Packed],
    scores: Mapping[str, TokenScores],
    teacher: TeacherCache,
) -> list[Passage]:
    """The worst passages of `test` by the `scores` of its tokens; only their sequences are run through the model again.

    Raises ArtifactError when the cache lacks a corpus' part.
    """
    places = choose_places({corpus: worst_places(corpus, test[corpus], scores[corpus].kl) for corpus in scores})
    found = []
    for place in places:
        packed = test[place.corpus]
        ids = packed.input_ids[place.row, : place.first + LENGTH]
        foretold = slice(place.first - 1, len(ids) - 1)
        hidden = final_hidden(model, ids[None].to(model.device))[0, foretold]
        dense = teacher.hidden(f"test-{place.corpus}", range(place.row, place.row + 1))[0, foretold].to(model.device)
        kl = _grid(packed, scores[place.corpus].kl)[place.row, foretold].tolist()
        expected = _choices(teacher.logits(dense), tokenizer), _choices(lm_head(model).logits(hidden), tokenizer)
        words = _words(ids[place.first :, None], tokenizer)
        tokens = [
            Token(text=word, kl=None if math.isnan(value) else round(value, 4), dense=theirs, model=ours)
            for (word,), value, theirs, ours in zip(words, kl, *expected, strict=True)
        ]
        before = str(tokenizer.decode(ids[max(0, place.first - _CONTEXT) : place.first]))
        found.append(Passage(corpus=place.corpus, kl=round(place.kl, 4), before=before, tokens=tuple(tokens)))
    return found


def _grid(packed: Packed, kl: Float[Tensor, " tokens"]) -> Float[Tensor, "sequences foretold"]:
    """KL by sequence and token, from token 1 on; NaN where a token is not scored."""
    grid = torch.full(packed.scored.shape, torch.nan, dtype=torch.float64)
    grid[packed.scored] = kl
    return grid


def _choices(logits: Float[Tensor, "tokens vocab"], tokenizer: PreTrainedTokenizerBase) -> list[Choices]:
    """The likeliest next tokens with their probabilities."""
    best, ids = logits.float().softmax(-1).topk(_CHOICES)
    return [
        tuple((word, round(value, 3)) for word, value in zip(words, values, strict=True))
        for words, values in zip(_words(ids.cpu(), tokenizer), best.tolist(), strict=True)
    ]


def _words(ids: Int[Tensor, "tokens choices"], tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    return [[str(tokenizer.decode([token])) for token in row] for row in ids.tolist()]
