"""Benchmark rows whose words stand in the calibration texts."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from sparsekd.calibration.packing import Packed, pack
from sparsekd.evaluation.overlap import benchmark_overlap


def packed(tokenizer: PreTrainedTokenizerFast, text: str) -> Packed:
    ids = tokenizer(text)["input_ids"]
    return pack([ids], len(ids), len(ids))


def test_rows_that_share_thirteen_words_are_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    text = " ".join(f"word{n}" for n in range(30))
    rows = {
        "shared": ["x " + " ".join(f"Word{n}," for n in range(5, 18)), "nothing"],
        "apart": [text.replace("word", "other")],
        "short": [" ".join(f"word{n}" for n in range(12))],
    }
    assert benchmark_overlap(packed(tokenizer, text), tokenizer, rows) == {"shared": 1}


def test_what_no_window_holds_together_is_not_shared(tokenizer: PreTrainedTokenizerFast) -> None:
    text = " ".join(f"word{n}" for n in range(20))
    ids = torch.tensor(tokenizer(text)["input_ids"])
    middle = len(ids) // 2
    halves = torch.stack([ids[:middle], ids[middle : 2 * middle]])
    assert benchmark_overlap(Packed(halves, torch.zeros_like(halves)), tokenizer, {"task": [text]}) == {}
