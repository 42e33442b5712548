"""llama.cpp's converter in a process of its own: `python convert.py CHECKPOINT TYPE FILE …`, run by write.py.

Imports nothing of sparsekd: the converter's `gguf` comes first on this process's path, and only here.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import gguf
import torch
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
from conversion.base import TextModel

_QUANTIZED_AS: dict[str, str] = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def convert(checkpoint: Path, file: Path, name: str) -> None:
    """Write `checkpoint` to `file`. The converter raises NotImplementedError for a layout or tokenizer it lacks."""
    with torch.inference_mode():
        architecture = get_model_architecture(ModelBase.load_hparams(checkpoint, False), ModelType.TEXT)
        four = name == "q4_0"
        kind = gguf.LlamaFileType[_QUANTIZED_AS["q8_0" if four else name]]
        model = get_model_class(architecture)(checkpoint, kind, file)
        if four:
            _quantize_blocks_to_four_bits(model)
        model.write()


def _quantize_blocks_to_four_bits(model: Any) -> None:
    """Q4_0 for the matrices of the layers, Q8_0 for embeddings and LM head.

    The converter itself quantises to Q8_0 at most. llama-quantize keeps the output in Q6_K, or Q8_0 where rows do not
    fit its blocks of 256.
    """
    forced, described = model.tensor_force_quant, model.set_gguf_parameters

    def force(name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
        found = forced(name, new_name, bid, n_dims)
        if found is False and n_dims == 2 and new_name.startswith("blk.") and new_name.endswith(".weight"):
            return gguf.GGMLQuantizationType.Q4_0
        return found

    def describe() -> None:
        model.ftype = gguf.LlamaFileType.MOSTLY_Q4_0
        described()

    model.tensor_force_quant, model.set_gguf_parameters = force, describe


def _take_plain_byte_level_tokenizers(checkpoint: Path) -> None:
    """Let a tokenizer pass that the converter does not know by hash, if it splits text as GPT-2 does.

    What llama.cpp makes of text is compared with the tokenizer afterwards.
    """
    known = TextModel.get_vocab_base_pre

    def pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            name = _pre_tokenizer(json.loads((checkpoint / "tokenizer.json").read_text()).get("pre_tokenizer"))
            if name is None:
                raise
            return name

    TextModel.get_vocab_base_pre = pre


def _pre_tokenizer(described: Any) -> str | None:
    """llama.cpp's name for what a tokenizer.json says of splitting; None where it has none that we know."""
    parts = (described or {}).get("pretokenizers", [described])
    kinds = [(part or {}).get("type") for part in parts]
    last = parts[-1] or {}
    if kinds[-1] != "ByteLevel" or last.get("add_prefix_space") or not last.get("use_regex", True):
        return None
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    return None


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    source = Path(sys.argv[1])
    _take_plain_byte_level_tokenizers(source)
    for kind, target in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        convert(source, Path(target), kind)
