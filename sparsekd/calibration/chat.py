"""The `chat` corpus: committed prompts that the dense model answers greedily. Only ever held out."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsekd.calibration.packing import Packed, pad
from sparsekd.progress import Progress, silent

_BATCH = 64


def chat_prompts(count: int) -> list[str]:
    """The first `count` of the committed prompts (64 in all)."""
    lines = files("sparsekd.calibration").joinpath("chat_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines[:count]]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt as the model expects it: through its chat template, or as it stands when it has none."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        return cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])
    return cast(list[int], tokenizer(prompt)["input_ids"])


@torch.inference_mode()
def answer(
    model: PreTrainedModel, prompts: list[list[int]], new_tokens: int, progress: Progress = silent
) -> list[list[int]]:
    """Greedy answers (token ids, without the prompt, up to and including the end token) to tokenised prompts."""
    answers: list[list[int]] = []
    end = _end_tokens(model)
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        longest = max(map(len, batch))
        padding = next(iter(end), 0)
        ids = torch.tensor([[padding] * (longest - len(p)) + p for p in batch], device=model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch], device=model.device)
        settings: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        # greedy, whatever the checkpoint's generation config recommends
        output = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, pad_token_id=padding, **settings
        )
        answers += [_until_end(row[longest:].tolist(), end) for row in output]
        progress(len(answers), len(prompts), "prompts")
    return answers


def chat_corpus(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    new_tokens: int,
    progress: Progress = silent,
) -> Packed:
    """`count` prompts with the dense model's greedy answers; only the answers are scored."""
    prompts = [prompt_ids(tokenizer, prompt) for prompt in chat_prompts(count)]
    answers = answer(model, prompts, new_tokens, progress)
    pairs = [(prompt + reply, len(prompt)) for prompt, reply in zip(prompts, answers, strict=True)]
    return pad(pairs, next(iter(_end_tokens(model)), 0))


def _end_tokens(model: PreTrainedModel) -> list[int]:
    end = model.generation_config.eos_token_id if model.generation_config else None
    end = model.config.eos_token_id if end is None else end
    return [] if end is None else [end] if isinstance(end, int) else list(end)


def _until_end(ids: list[int], end: list[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in end:
            return ids[: position + 1]
    return ids
