"""A GGUF file as a model of lm-eval: log-likelihoods from llama.cpp, each context read once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from transformers import PreTrainedTokenizerBase

from sparsekd.export.llama_cpp import LlamaCpp
from sparsekd.progress import Progress, silent


class LlamaLM(TemplateLM):
    """Takes the arguments of SharedContextLM, with a runtime in the place of the network. Log-likelihoods only."""

    def __init__(
        self, runtime: LlamaCpp, tokenizer: PreTrainedTokenizerBase, batch_size: int, progress: Progress = silent
    ) -> None:
        super().__init__()
        self._runtime, self.tokenizer = runtime, tokenizer

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        return list(self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"])

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        """Σ log q(continuation | context) in nats, and whether greedy decoding would give the continuation."""
        places: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, (_, context, _) in enumerate(requests):
            places[tuple(context)].append(place)
        answers: dict[int, tuple[float, bool]] = {}
        for read, mine in places.items():
            context = list(read)
            self._runtime.reset()
            last = self._runtime.read(context)
            for place in mine:
                self._runtime.keep(len(context))
                answers[place] = self._score(last, requests[place][2])
        return [answers[place] for place in range(len(requests))]

    def _score(self, last: torch.Tensor, continuation: list[int]) -> tuple[float, bool]:
        rows = [last]
        if len(continuation) > 1:
            rows.append(self._runtime.read(continuation[:-1], every=True))
        logits, targets = torch.cat(rows), torch.tensor(continuation)
        log_probs = logits.log_softmax(-1).gather(1, targets[:, None])
        return float(log_probs.sum()), bool((logits.argmax(-1) == targets).all())

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError
