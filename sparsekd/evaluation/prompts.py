"""Greedy answers: to the report's fixed prompts, and to the chat prompts, where the share of loops is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsekd.calibration.packing import NOT_SCORED, Packed
from sparsekd.decoding import greedy, prompt_ids, stop_tokens
from sparsekd.progress import Progress, silent

REPEATED_NGRAM = 4
REPEATED_TIMES = 4


def is_degenerate(answer: Sequence[int]) -> bool:
    """Whether some 4-gram of the answer's tokens occurs at least 4 times: the model runs in a loop.

    Ordinary prose of this length does not do that; a list whose items begin alike has to do so with four tokens.
    """
    ngrams = zip(*(answer[start:] for start in range(REPEATED_NGRAM)), strict=False)
    return max(Counter(ngrams).values(), default=0) >= REPEATED_TIMES


def chat_prompts(chat: Packed) -> tuple[list[list[int]], int]:
    """The prompts in the packed corpus `chat`, and the most tokens that the dense model answered one of them with.

    A sequence begins with its prompt, which is not scored; the answer follows, then padding. Those without an answer
    are left out.
    """
    answered = chat.document != NOT_SCORED
    prompts = []
    for ids, scored in zip(chat.input_ids, answered, strict=True):
        first = int(scored.int().argmax())
        if bool(scored.any()) and first > 0:
            prompts.append(ids[:first].tolist())
    return prompts, int(answered.sum(1).max()) if len(answered) else 0


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    progress: Progress = silent,
) -> list[dict[str, str]]:
    """Answer each prompt greedily: [{"prompt": …, "answer": …}]."""
    encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    answers = greedy(model, encoded, max_new_tokens, stop_tokens(model, tokenizer), progress)
    texts = (str(tokenizer.decode(answer, skip_special_tokens=True)).strip() for answer in answers)
    return [{"prompt": prompt, "answer": text} for prompt, text in zip(prompts, texts, strict=True)]
