"""The `chat` corpus: committed prompts that the dense model answers greedily. Only ever held out."""

from __future__ import annotations

import json
from importlib.resources import files

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsekd.calibration.packing import Packed, pad
from sparsekd.decoding import greedy, prompt_ids, stop_tokens
from sparsekd.progress import Progress, silent


def chat_prompts(count: int) -> list[str]:
    """The first `count` of the committed prompts (64 in all)."""
    lines = files("sparsekd.calibration").joinpath("chat_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines[:count]]


def chat_corpus(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    new_tokens: int,
    progress: Progress = silent,
) -> Packed:
    """`count` prompts with the dense model's greedy answers; only the answers are scored."""
    prompts = [prompt_ids(tokenizer, prompt) for prompt in chat_prompts(count)]
    stop = stop_tokens(model, tokenizer)
    answers = greedy(model, prompts, new_tokens, stop, progress)
    pairs = [(prompt + reply, len(prompt)) for prompt, reply in zip(prompts, answers, strict=True)]
    return pad(pairs, min(stop, default=0))
