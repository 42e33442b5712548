"""Text that the dense model writes itself, for calibration: what the student is to match, where that model itself goes.

The idea for one-shot quantisation and pruning is that of Williams et al., arXiv 2410.17170; docs/method.md says what it
adds here.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsekd.calibration.packing import NOT_SCORED, Packed
from sparsekd.calibration.sampling_batches import sampling_batches
from sparsekd.decoding import decode, drawn, reserved_cache
from sparsekd.errors import ConfigError
from sparsekd.models import attention_widths
from sparsekd.progress import Progress, silent

_TURN = "{content}"


@torch.inference_mode()
def self_generated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    seed: int,
    progress: Progress = silent,
) -> Packed:
    """`count` sequences of `length` tokens, each a document, sampled from `model` at temperature 1.

    Each begins as the model's texts do (`opening`), which is not scored; what follows is the model's, past any end of
    a turn or a text. Raises ConfigError where the beginning leaves no room.
    """
    start = opening(tokenizer)
    if len(start) >= length:
        raise ConfigError(
            f"calibrate.sequence_length is {length}; the beginning of this model's chat template takes {len(start)} "
            "tokens, and the text that it writes itself starts there. Raise it, or set calibrate.self_generated to 0."
        )
    choose = drawn(torch.Generator(model.device).manual_seed(seed))
    batches: list[Tensor] = []
    token_bytes = 2 * attention_widths(model.config.get_text_config())[1] * model.dtype.itemsize
    for rows in sampling_batches(count, length, token_bytes):
        ids = torch.tensor([start] * rows, device=model.device)
        written = [ids]
        cache = reserved_cache(model.config, length)
        for tokens in decode(model, ids, None, length - len(start), choose, cache):
            written.append(tokens[:, None])
            done = sum(map(len, batches)) * length + rows * (len(start) + len(written) - 1)
            progress(done, count * length, "tokens")
        batches.append(torch.cat(written, 1).cpu())
    input_ids = torch.cat(batches)
    document = torch.arange(count)[:, None].repeat(1, length)
    document[:, : len(start)] = NOT_SCORED
    return Packed(input_ids, document)


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What comes before a user's first words in the chat template; without one, what texts begin with.

    Raises ConfigError for a tokenizer that has neither.
    """
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": _TURN}]
        text = cast(str, tokenizer.apply_chat_template(turn, tokenize=False)).split(_TURN)[0]
        if ids := cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"]):
            return ids
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):  # the end of one text begins the next
        if isinstance(token, int):
            return [token]
    raise ConfigError(
        "The model's tokenizer has neither a chat template nor a token that begins or ends a text, so the model cannot "
        "write text by itself. Set calibrate.self_generated to 0."
    )
