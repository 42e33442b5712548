"""Plain greedy decoding with a key-value cache: one loop for chat, answers, `generate` and the speed benchmark."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from sparsekd.progress import Progress, silent

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
            zip(places, _decode([prompts[place] for place in places], model, max_new_tokens, stop), strict=True)
        )
        progress(len(answers), len(prompts), "answers")
    return [answers[place] for place in range(len(prompts))]


def _decode(
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
    for tokens in greedy_steps(model, ids.to(model.device), mask.to(model.device), max_new_tokens):
        for row, token in enumerate(tokens.tolist()):
            if row in running:
                answers[row].append(token)
                if token in stop:
                    running.discard(row)
        if not running:
            break
    return answers


def greedy_steps(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch length"],
    mask: Int[Tensor, "batch longest"] | None,
    max_new_tokens: int,
) -> Iterator[Int[Tensor, " batch"]]:
    """The next token of every row, step by step, with a key-value cache. The first step reads the whole prompt.

    `mask` is 0 at left padding and 1 elsewhere, for all tokens to come too; None where nothing is padded. Call in
    inference mode.
    """
    cache = DynamicCache(config=model.config)
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
        tokens = output.logits[:, -1].argmax(-1)
        yield tokens
        done, inputs = end, tokens[:, None]
