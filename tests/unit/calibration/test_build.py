"""Documents are split by their text, packed, and checked for overlap."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sparsekd.calibration.build import build_calibration
from sparsekd.calibration.chat import chat_prompts
from sparsekd.calibration.corpora import Corpus
from sparsekd.calibration.packing import NOT_SCORED, CalibrationSet, Packed, interleave, pack, pad
from sparsekd.calibration.split import refuse_overlap, split_documents
from sparsekd.config import Calibrate
from sparsekd.errors import SourceError
from sparsekd.models import load_model
from tests.tiny_models import make_documents

SMALL = Calibrate(
    tokens=1024, sequence_length=64, held_out_tokens=128, held_out_share=0.2, minimum_characters=10, chat_prompts=3,
    chat_tokens=5, self_generated=0.25,
)  # fmt: skip
CPU = torch.device("cpu")
TEXTS_ALONE = SMALL.model_copy(update={"chat_prompts": 0, "self_generated": 0.0})


def no_model(dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    raise AssertionError("the model has nothing to write, so it is not loaded")


def corpora() -> list[Corpus]:
    return [
        Corpus("wiki", "calibration", list(make_documents(60, seed=1))),
        Corpus("c4", "calibration", list(make_documents(60, seed=2))),
        Corpus("stories", "held_out", list(make_documents(20, seed=3))),
    ]


def test_a_calibration_set_holds_what_was_asked_for(
    tokenizer: PreTrainedTokenizerFast, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    built = build_calibration(corpora(), tokenizer, SMALL, partial(load_model, tiny_llama_dir), CPU)
    data = built.data
    assert data.calibration.input_ids.shape == (16, 64)
    assert {name: packed.tokens for name, packed in data.validation.items()} == dict.fromkeys(
        ("wiki", "c4", "stories"), 128
    )
    assert set(data.test) == {"wiki", "c4", "stories", "chat"}
    assert built.facts["trained_on"] == ["wiki", "c4"]
    assert built.facts["calibration_sequences"] == {"wiki": 6, "c4": 6, "self_generated": 4}
    data.save(tmp_path)
    again = CalibrationSet.load(tmp_path)
    assert {name: packed.tokens for name, packed in again.parts().items()} == built.facts["tokens"]
    assert torch.equal(again.test["chat"].document, data.test["chat"].document)


def test_no_document_is_in_two_parts_and_every_beginning_is_mixed(tokenizer: PreTrainedTokenizerFast) -> None:
    data = build_calibration(corpora(), tokenizer, TEXTS_ALONE, no_model, CPU).data
    text = tokenizer.decode(data.calibration.input_ids.flatten().tolist())
    for part in (data.validation, data.test):
        for packed in part.values():
            held_out = tokenizer.decode(packed.input_ids[0].tolist())
            assert held_out[:80] not in text
    first, second = data.calibration.document[0], data.calibration.document[1]
    assert int(first.max()) < int(second.min()), "sequences of two corpora alternate, with documents of their own"


def test_the_split_depends_on_the_text_alone() -> None:
    documents = make_documents(200, seed=4)
    one = split_documents(documents, "calibration", 0.1, seed=0)
    other = split_documents(list(reversed(documents)) + documents[:50], "calibration", 0.1, seed=0)
    assert one == other
    assert sorted(one.calibration + one.validation + one.test) == sorted(documents)
    assert 5 < len(one.test) < 40
    held_out = split_documents(documents, "held_out", 0.1, seed=0)
    assert not held_out.calibration


def test_a_document_in_two_parts_is_refused() -> None:
    documents = make_documents(40, seed=5)
    splits = {
        "mine": split_documents(documents, "calibration", 0.1, 0),
        "stories": split_documents([text.upper() for text in documents], "held_out", 0.1, 0),
    }
    with pytest.raises(SourceError, match=r"stands both in calibration \(mine\) and in (test|validation) \(stories\)"):
        refuse_overlap(splits)


def test_documents_that_were_left_out_are_counted_where_text_is_missing(tokenizer: PreTrainedTokenizerFast) -> None:
    settings = TEXTS_ALONE.model_copy(update={"minimum_characters": 10_000})
    with pytest.raises(SourceError, match=r"shorter than calibrate\.minimum_characters = 10000: 300"):
        build_calibration(
            [Corpus("wiki", "calibration", list(make_documents(300, 1)))], tokenizer, settings, no_model, CPU
        )


def test_a_corpus_that_is_too_short_says_how_much_is_missing(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(SourceError, match=r"Corpus wiki is too short: its calibration part fills \d+ sequences of 64"):
        build_calibration(
            [Corpus("wiki", "calibration", list(make_documents(5, 1)))], tokenizer, TEXTS_ALONE, no_model, CPU
        )


def test_messages_are_rendered_through_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    chats = [[{"role": "user", "content": text}] for text in make_documents(60, seed=6)]
    data = build_calibration([Corpus("chats", "calibration", list(chats))], tokenizer, TEXTS_ALONE, no_model, CPU).data
    assert "<|user|>" in tokenizer.decode(data.calibration.input_ids.flatten().tolist())


def test_packing_keeps_every_token_in_order_and_drops_the_unfilled_window() -> None:
    packed = pack([[1, 2, 3], [4, 5], [6, 7, 8, 9]], length=4, tokens=100)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert packed.document.tolist() == [[0, 0, 0, 1], [1, 2, 2, 2]]
    assert packed.scored.all()


def test_any_beginning_of_interleaved_parts_has_the_shares_of_the_whole() -> None:
    long, short = pack([[1] * 12], 2, 12), pack([[2] * 6], 2, 6)
    both = interleave([long, short])
    assert both.input_ids[:, 0].tolist() == [1, 2, 1, 1, 2, 1, 1, 2, 1]
    assert both.document[:, 0].tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]
    equal = interleave([pack([[which] * 6], 2, 6) for which in (1, 2, 3)])
    assert equal.input_ids[:, 0].tolist() == [1, 2, 3] * 3


def test_padding_and_prompts_are_never_scored() -> None:
    packed = pad([([1, 2, 3, 4], 2), ([5, 6], 1)], padding=0)
    assert packed.document.tolist() == [[NOT_SCORED, NOT_SCORED, 0, 0], [NOT_SCORED, 1, NOT_SCORED, NOT_SCORED]]
    assert packed.scored.tolist() == [[False, True, True], [True, False, False]]


def test_there_are_sixty_four_distinct_prompts() -> None:
    assert len(set(chat_prompts(64))) == 64


def test_packed_round_trip(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    packed = pad([([1, 2, 3, 4], 2), ([5, 6], 1)], padding=0)
    packed.save(tmp_path / "x.safetensors")
    again = Packed.load(tmp_path / "x.safetensors")
    assert torch.equal(again.input_ids, packed.input_ids)
    assert torch.equal(again.document, packed.document)
