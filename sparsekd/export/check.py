"""A GGUF file against the checkpoint it was made of: the same tokens, log-probabilities and greedy text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsekd.decoding import greedy, prompt_ids, stop_tokens
from sparsekd.distillation.losses import kl_divergence
from sparsekd.errors import ExportError
from sparsekd.export.formats import Bounds
from sparsekd.export.llama_cpp import LlamaCpp
from sparsekd.export.passages import PASSAGES
from sparsekd.models import load_model, load_tokenizer

LIKELIEST, LONGEST, GREEDY_TOKENS = 10, 512, 24
QUESTION = "What is the capital of France, and what is it known for?"


@dataclass(frozen=True)
class Comparison:
    """What llama.cpp makes of a file, against Transformers with the checkpoint in float32. Natural logarithms."""

    difference: float
    """Largest difference of log-probabilities of the checkpoint's ten likeliest next tokens, at any position."""
    kl: float
    """Mean KL(checkpoint || file), nats a token."""
    perplexity: float
    checkpoint_perplexity: float
    tokens: int
    """Positions that these are of."""
    text: str
    """The greedy answer of the file to QUESTION."""
    same_tokens: int
    """How many of its GREEDY_TOKENS are those of the checkpoint, before the first that is not."""
    tie: float
    """By how much the checkpoint prefers its own token where they part, nats; 0 where they do not."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Reference:
    """What the checkpoint itself says: computed once for all files."""

    tokens: list[list[int]]
    logits: list[Float[Tensor, "tokens vocab"]]
    question: list[int]
    answer: list[int]
    margins: Float[Tensor, " answer"]
    """How much likelier each token of the answer is than the second likeliest, nats."""


@torch.inference_mode()
def reference(checkpoint: Path) -> Reference:
    """Logits of the checkpoint in float32 on PASSAGES, and its greedy answer."""
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    longest = min(LONGEST, int(getattr(model.config, "max_position_embeddings", LONGEST)))
    tokens = [list(tokenizer(text)["input_ids"])[:longest] for text in PASSAGES]
    logits = [_logits(model, ids) for ids in tokens]
    question, answer = _answer(model, tokenizer, longest)
    after = _logits(model, question + answer)[len(question) - 1 : -1].log_softmax(-1).topk(2).values
    return Reference(tokens, logits, question, answer, after[:, 0] - after[:, 1])


def _logits(model: PreTrainedModel, ids: Sequence[int]) -> Float[Tensor, "tokens vocab"]:
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()  # type: ignore[no-any-return]


def _answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> tuple[list[int], list[int]]:
    question = prompt_ids(tokenizer, QUESTION)[: longest - GREEDY_TOKENS]
    return question, greedy(model, [question], GREEDY_TOKENS, stop_tokens(model, tokenizer))[0]


def compare(file: Path, checkpoint: Path, expected: Reference) -> Comparison:
    """Load `file` in llama.cpp and compare.

    Raises ExportError where llama.cpp does not load it, or splits text into other tokens than the tokenizer.
    """
    tokenizer = load_tokenizer(checkpoint)
    longest = max(len(ids) for ids in [*expected.tokens, expected.question + expected.answer])
    with LlamaCpp(file, context=longest + 1, threads=torch.get_num_threads()) as runtime:
        _check_tokens(file, runtime, expected)
        found = []
        for ids in expected.tokens:
            runtime.reset()
            found.append(runtime.read(ids, every=True))
        answer = runtime.greedy(expected.question, len(expected.answer))
    return comparison(found, answer, tokenizer, expected)


def comparison(
    found: Sequence[Float[Tensor, "tokens vocab"]],
    answer: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    expected: Reference,
) -> Comparison:
    """Of a runtime's logits on PASSAGES and its greedy answer to QUESTION."""
    scores = [_scores(*pair) for pair in zip(expected.logits, found, expected.tokens, strict=True)]
    difference, kl, nll, own = (torch.cat(column) for column in zip(*scores, strict=True))
    same = _shared(answer, expected.answer)
    return Comparison(
        difference=float(difference.max()),
        kl=float(kl.mean()),
        perplexity=math.exp(float(nll.mean())),
        checkpoint_perplexity=math.exp(float(own.mean())),
        tokens=len(kl),
        text=str(tokenizer.decode(list(answer), skip_special_tokens=True)).strip(),
        same_tokens=same,
        tie=float(expected.margins[same]) if same < len(answer) else 0.0,
    )


def _check_tokens(file: Path, runtime: LlamaCpp, expected: Reference) -> None:
    for text, ids in zip(PASSAGES, expected.tokens, strict=True):
        own = runtime.tokenize(text)[: len(ids)]
        if own != ids:
            place = _shared(own, ids)
            raise ExportError(
                f"llama.cpp splits text into other tokens than the checkpoint's tokenizer, from token {place} of "
                f"{text[:40]!r} on; {file.name} would answer differently. Its converter does not know this tokenizer."
            )


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _scores(
    expected: Float[Tensor, "tokens vocab"], found: Float[Tensor, "tokens vocab"], ids: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At every position: the largest difference among the likeliest, KL, and both negative log-likelihoods."""
    found = found[:, : expected.shape[1]]  # files may pad the vocabulary
    dense, other = expected.log_softmax(-1), found.log_softmax(-1)
    likeliest = dense.topk(min(LIKELIEST, dense.shape[1])).indices
    difference = (dense.gather(1, likeliest) - other.gather(1, likeliest)).abs().amax(1)
    targets: Int[Tensor, " tokens"] = torch.tensor(ids[1:])[:, None]
    nll, own = (-rows[:-1].gather(1, targets)[:, 0] for rows in (other, dense))
    return difference[:-1], kl_divergence(found[:-1], expected[:-1]), nll, own


def verdict(found: Comparison, bounds: Bounds) -> str | None:
    """What is wrong with a file that compares so, with the bound it exceeds; None if nothing is."""
    growth = found.perplexity / found.checkpoint_perplexity - 1
    if bounds.difference is not None and not found.difference <= bounds.difference:
        return f"a log-probability differs by {found.difference:.3g} nats, and {bounds.difference:g} is allowed"
    if not found.kl <= bounds.kl:
        return f"the KL to the checkpoint is {found.kl:.3g} nats a token, and {bounds.kl:g} is allowed"
    if not abs(growth) <= bounds.perplexity:
        return f"perplexity differs by {growth:+.1%}, and {bounds.perplexity:.1%} is allowed"
    if bounds.difference is not None and found.tie > 2 * bounds.difference:
        return f"greedy text parts from the checkpoint's where that is {found.tie:.3g} nats surer of its own token"
    return None
