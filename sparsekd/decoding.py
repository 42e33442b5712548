"""Decoding with a key-value cache: one loop for chat, answers, `generate`, the speed benchmark and sampled text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from sparsekd.progress import Progress, silent

Choose = Callable[[Float[Tensor, "batch vocab"]], Int[Tensor, " batch"]]
"""The next token of every row, from its logits."""

_AT_ONCE = 64  # prompts decoded together: they are short, and a step reads all weights whatever their number


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt as the model expects it: through its chat template, or as it stands when it has none."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        return cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])
    return cast(list[int], tokenizer(prompt)["input_ids"])


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer: what generation_config.json says, and the tokenizer's own end of text."""
    stop = model.generation_config.eos_token_id if model.generation_config else None
    found = set(stop) if isinstance(stop, (list, tuple)) else {stop}
    return frozenset(token for token in found | {tokenizer.eos_token_id} if isinstance(token, int))


@torch.inference_mode()
def greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: Collection[int] = (),
    progress: Progress = silent,
) -> list[list[int]]:
    """The most probable continuation of each prompt, token by token, up to and including its first stop token.

    Prompts are decoded together, those of similar length in one batch, padded on the left.
    """
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    answers: dict[int, list[int]] = {}
    for start in range(0, len(order), _AT_ONCE):
        places = order[start : start + _AT_ONCE]
        answers.update(
            zip(places, _answers([prompts[place] for place in places], model, max_new_tokens, stop), strict=True)
        )
        progress(len(answers), len(prompts), "answers")
    return [answers[place] for place in range(len(prompts))]


def _answers(
    prompts: Sequence[Sequence[int]], model: PreTrainedModel, max_new_tokens: int, stop: Collection[int]
) -> list[list[int]]:
    length = max(map(len, prompts))
    ids = torch.zeros(len(prompts), length, dtype=torch.int64)
    mask = torch.zeros(len(prompts), length + max_new_tokens, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    answers: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for tokens in decode(model, ids.to(model.device), mask.to(model.device), max_new_tokens):
        for row, token in enumerate(tokens.tolist()):
            if row in running:
                answers[row].append(token)
                if token in stop:
                    running.discard(row)
        if not running:
            break
    return answers


def most_probable(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
    """Greedy decoding's choice."""
    return logits.argmax(-1)


def drawn(generator: torch.Generator) -> Choose:
    """A choice at random from the model's own distribution: temperature 1, nothing cut off."""

    def choose(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
        # one number a row, through the distribution function: torch.multinomial draws one for every token
        below = logits.float().softmax(-1).cumsum(-1, dtype=torch.float64)
        uniform = torch.rand(len(below), 1, dtype=torch.float64, device=below.device, generator=generator)
        return torch.searchsorted(below, uniform * below[:, -1:], right=True)[:, 0].clamp(max=below.shape[1] - 1)

    return choose


class _Reserved(DynamicLayer):
    """Keys and values of one layer, written where room was made for `length` tokens: nothing is copied to grow."""

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._length = length

    def update(
        self,
        key_states: Float[Tensor, "batch heads new width"],
        value_states: Float[Tensor, "batch heads new width"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "batch heads all width"], Float[Tensor, "batch heads all width"]]:
        new, start = (key_states, value_states), self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = [part.new_empty(*part.shape[:2], self._length, part.shape[3]) for part in new]
        end = start + key_states.shape[2]
        for room, part in zip(self._room, new, strict=True):
            room[:, :, start:end] = part
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values


def reserved_cache(config: PreTrainedConfig, length: int) -> Cache:
    """Transformers' cache of a model with this config, its layers of full attention with room for `length` tokens.

    Its own grows by concatenation, which copies all keys and values at every token: with many long sequences at once
    that takes longer than the model.
    """
    cache = DynamicCache(config=config)
    cache.layers = [_Reserved(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def decode(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch length"],
    mask: Int[Tensor, "batch longest"] | None,
    max_new_tokens: int,
    choose: Choose = most_probable,
    cache: Cache | None = None,
) -> Iterator[Int[Tensor, " batch"]]:
    """The next token of every row, step by step, with a key-value cache. The first step reads the whole prompt.

    `mask` is 0 at left padding and 1 elsewhere, for all tokens to come too; None where nothing is padded. `cache` is
    an empty one, by default Transformers' own. Call in inference mode.
    """
    cache = DynamicCache(config=model.config) if cache is None else cache
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    done, inputs = 0, ids
    for _ in range(max_new_tokens):
        end = done + inputs.shape[1]
        output = model(
            input_ids=inputs,
            attention_mask=None if mask is None else mask[:, :end],
            position_ids=None if positions is None else positions[:, done:end],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = choose(output.logits[:, -1])
        yield tokens
        done, inputs = end, tokens[:, None]
