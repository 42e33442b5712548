"""lm-eval's HFLM that computes the context of a row once for all of its choices.

Stock HFLM runs each (context, continuation) pair through the whole model and its LM head. Here the continuations of
one context follow it in one sequence, each with the positions it would have had and a mask that hides the others, and
the LM head sees only the positions that are scored. Log-likelihoods are those of stock HFLM up to rounding
(tests/integration/test_lm_eval.py). On the four default tasks that is 75,000 tokens instead of 186,000, and less than
half the time of stock: 131 against 286 CPU-seconds with SmolLM2-135M in bfloat16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsekd.evaluation.perplexity import BLOCK, CHUNK
from sparsekd.families import family_of
from sparsekd.models import LMHead, lm_head
from sparsekd.progress import Progress, silent

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""What lm-eval asks for: the texts (its cache key), the context's tokens, the continuation's tokens."""


_MASK_ENTRIES = 2**25  # of a batch's attention mask: 8 sequences of 2,048 tokens, 64 MiB in bfloat16


class Group(NamedTuple):
    """Requests that have one context: their places in the list, and their continuations."""

    context: tuple[int, ...]
    places: list[int]
    continuations: list[list[int]]

    @property
    def length(self) -> int:
        """Tokens of the packed sequence; the last token of a continuation is never an input."""
        return len(self.context) + sum(len(tokens) - 1 for tokens in self.continuations)


class SharedContextLM(HFLM):
    """HFLM with the same answers for log-likelihood requests, computed with shared contexts."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        progress: Progress = silent,
    ) -> None:
        super().__init__(model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
        self._progress = progress

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As stock, without its progress bar."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Σ log q(continuation | context) in nats, and whether greedy decoding would give the continuation."""
        answers: dict[int, tuple[float, bool]] = {}
        groups, long = self._groups(requests)
        batches = []
        while groups:
            size = max(1, min(self.batch_size, _MASK_ENTRIES // groups[0].length ** 2))
            batches.append(groups[:size])
            groups = groups[size:]
        for batch, scores in zip(batches, self._score_all(batches), strict=True):
            places = [place for group in batch for place in group.places]
            answers.update(zip(places, scores, strict=True))
            self._progress(len(answers), len(requests), "requests")
        if long:  # stock truncates them from the left, each on its own
            stock = super()._loglikelihood_tokens([requests[place] for place in long], disable_tqdm, override_bs)
            answers.update(zip(long, stock, strict=True))
            self._progress(len(answers), len(requests), "requests")
        return [answers[place] for place in range(len(requests))]

    def _groups(self, requests: Sequence[Request]) -> tuple[list[Group], list[int]]:
        """Requests by context, longest first; and the places of those too long for an untruncated, unwindowed pass.

        Where layers carry a state along the sequence, no mask hides one continuation from the next: all go to stock.
        """
        if family_of(self.model.config.to_dict()).recurrent:
            return [], list(range(len(requests)))
        window = getattr(self.config, "sliding_window", None)
        limit = min(self.max_length, window) if window else self.max_length
        places: dict[tuple[int, ...], list[int]] = defaultdict(list)
        long = []
        for place, (_, context, continuation) in enumerate(requests):
            if len(context) + len(continuation) - 1 > limit:
                long.append(place)
            else:
                places[tuple(context)].append(place)
        groups = [Group(context, mine, [requests[place][2] for place in mine]) for context, mine in places.items()]
        return sorted(groups, key=lambda group: (-group.length, group.context)), long

    def _score_all(self, batches: Sequence[Sequence[Group]]) -> Iterator[list[tuple[float, bool]]]:
        """The answers of each batch. On a CPU two are computed at a time: rows are too short to keep all cores busy."""
        threads = torch.get_num_threads()
        if self.device.type != "cpu" or threads == 1:
            yield from map(self._score, batches)
            return
        try:
            with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=((threads + 1) // 2,)) as pool:
                yield from pool.map(self._score, batches)
        finally:
            torch.set_num_threads(threads)  # in part one setting for all threads

    @torch.inference_mode()
    def _score(self, batch: Sequence[Group]) -> list[tuple[float, bool]]:
        packed = pack_groups(batch, self.model.dtype)
        output = self.model.base_model(
            input_ids=packed.input_ids.to(self.device),
            position_ids=packed.positions.to(self.device),
            attention_mask=packed.mask.to(self.device),
            use_cache=False,
        )
        rows, columns = packed.source.to(self.device)
        hidden = output.last_hidden_state[rows, columns]
        log_probs, greedy = score_continuations(hidden, lm_head(self.model), packed.targets.to(self.device))
        lengths = [len(tokens) for group in batch for tokens in group.continuations]
        parts = zip(torch.split(log_probs.cpu(), lengths), torch.split(greedy.cpu(), lengths), strict=True)
        return [(float(log_prob.sum()), bool(hits.all())) for log_prob, hits in parts]


class PackedGroups(NamedTuple):
    """Contexts with all of their continuations, right-padded; `source` is (row, column) of the state of each target."""

    input_ids: Int[Tensor, "rows length"]
    positions: Int[Tensor, "rows length"]
    mask: Float[Tensor, "rows 1 length length"]
    source: Int[Tensor, "2 targets"]
    targets: Int[Tensor, " targets"]


def pack_groups(groups: Sequence[Group], dtype: torch.dtype) -> PackedGroups:
    """One sequence a group. The mask is added to attention scores: 0 where a token may look, else the lowest number."""
    length = max(group.length for group in groups)
    input_ids = torch.zeros(len(groups), length, dtype=torch.int64)
    positions = torch.zeros(len(groups), length, dtype=torch.int64)
    allowed = torch.ones(length, length, dtype=torch.bool).tril().repeat(len(groups), 1, 1)
    source: list[tuple[int, int]] = []
    targets: list[int] = []
    for row, group in enumerate(groups):
        context = len(group.context)
        input_ids[row, :context] = torch.tensor(group.context)
        positions[row, :context] = torch.arange(context)
        start = context
        for tokens in group.continuations:
            end = start + len(tokens) - 1
            input_ids[row, start:end] = torch.tensor(tokens[:-1], dtype=torch.int64)
            positions[row, start:end] = torch.arange(context, context + end - start)
            allowed[row, start:end, context:start] = False  # not the continuations before it
            source += [(row, context - 1), *((row, column) for column in range(start, end))]
            targets += tokens
            start = end
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
    return PackedGroups(input_ids, positions, mask[:, None], torch.tensor(source).T, torch.tensor(targets))


def score_continuations(
    hidden: Float[Tensor, "targets hidden"], head: LMHead, targets: Int[Tensor, " targets"]
) -> tuple[Float[Tensor, " targets"], Bool[Tensor, " targets"]]:
    """log q of each target, float32, and whether it has the largest logit; chunk by chunk."""
    log_probs, greedy = [], []
    for chunk, wanted in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True):
        logits = head.logits(chunk)
        size = BLOCK if logits.device.type == "cpu" else CHUNK
        for block, tokens in zip(torch.split(logits, size), torch.split(wanted, size), strict=True):
            scores = block.float()
            log_probs.append(scores.gather(1, tokens[:, None])[:, 0] - scores.logsumexp(-1))
            greedy.append(scores.argmax(-1) == tokens)
    return torch.cat(log_probs), torch.cat(greedy)
