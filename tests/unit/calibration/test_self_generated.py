"""What the dense model writes itself: from its own distribution, from its own beginning, whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sparsekd.calibration.packing import NOT_SCORED
from sparsekd.calibration.sampling_batches import sampling_batches
from sparsekd.calibration.self_generated import opening, self_generated
from sparsekd.decoding import decode, drawn, reserved_cache
from sparsekd.errors import ConfigError
from sparsekd.models import load_model
from tests.tiny_models import make_tokenizer


def test_sequences_begin_as_the_template_does_and_are_full(
    tokenizer: PreTrainedTokenizerFast, tiny_llama_dir: Path
) -> None:
    start = opening(tokenizer)
    turn = [{"role": "user", "content": "the river"}]
    whole = tokenizer.apply_chat_template(turn, tokenize=True, return_dict=False)
    assert start
    assert whole[: len(start)] == start
    seen: list[float] = []
    model = load_model(tiny_llama_dir)
    found = self_generated(model, tokenizer, 5, 32, 0, lambda done, total, unit: seen.append(done / total))
    assert found.input_ids.shape == (5, 32)
    assert found.input_ids[:, : len(start)].tolist() == [start] * 5
    assert (found.document[:, : len(start)] == NOT_SCORED).all()
    assert found.document[:, len(start) :].tolist() == [[row] * (32 - len(start)) for row in range(5)]
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert len({tuple(row) for row in found.input_ids.tolist()}) == 5
    assert torch.equal(self_generated(model, tokenizer, 5, 32, 0).input_ids, found.input_ids)
    assert not torch.equal(self_generated(model, tokenizer, 5, 32, 1).input_ids, found.input_ids)


def test_tokens_are_drawn_from_the_models_own_distribution(tiny_llama_dir: Path) -> None:
    model = load_model(tiny_llama_dir)
    rows = 4096
    ids = torch.tensor([[5, 9, 3]] * rows)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        expected = model(ids[:1]).logits[0, -1].softmax(-1)
        first = next(decode(model, ids, None, 1, drawn(generator)))
    observed = torch.bincount(first, minlength=len(expected)) / rows
    # E|observed - expected| of a multinomial is at most sqrt(p (1 - p) / rows) a token
    bound = (expected * (1 - expected) / rows).sqrt().sum()
    assert (observed - expected).abs().sum() < 1.2 * bound


def test_without_a_template_texts_begin_with_the_token_that_begins_or_ends_one() -> None:
    plain = make_tokenizer()
    plain.chat_template = None
    plain.bos_token = None
    assert opening(plain) == [plain.eos_token_id]
    plain.bos_token = "a"
    assert opening(plain) == [plain.bos_token_id] != [plain.eos_token_id]
    plain.bos_token = plain.eos_token = None
    with pytest.raises(ConfigError, match=r"neither a chat template nor a token .* calibrate\.self_generated to 0"):
        opening(plain)


def test_a_beginning_that_leaves_no_room_is_refused(tokenizer: PreTrainedTokenizerFast, tiny_llama_dir: Path) -> None:
    length = len(opening(tokenizer))
    with pytest.raises(
        ConfigError, match=rf"calibrate\.sequence_length is {length}; .* calibrate\.self_generated to 0"
    ):
        self_generated(load_model(tiny_llama_dir), tokenizer, 2, length, 0)


def test_batches_are_even_and_keep_to_their_memory() -> None:
    assert sampling_batches(0, 512, 23_040) == []
    assert sampling_batches(80, 512, 23_040) == [80]
    assert sampling_batches(200, 512, 23_040) == [67, 67, 66]
    assert sampling_batches(80, 512, 200_000) == [20, 20, 20, 20]
    assert sampling_batches(3, 4096, 10**7) == [1, 1, 1]


LAYERS = {"gemma3_text": "sliding_attention", "qwen3_5_text": "linear_attention", "llama": None}


@pytest.mark.parametrize("family", LAYERS)
def test_room_made_beforehand_changes_no_token(family: str, make_model: Callable[..., Path]) -> None:
    first = LAYERS[family]
    model = load_model(make_model(family, **({"layer_types": [first, "full_attention"]} if first else {})))
    ids = torch.tensor([[5, 9, 3], [7, 7, 1]])
    with torch.inference_mode():
        plain = torch.stack(list(decode(model, ids, None, 12)))
        reserved = torch.stack(list(decode(model, ids, None, 12, cache=reserved_cache(model.config, 15))))
    assert torch.equal(plain, reserved)
