"""GGUF to a stock checkpoint: weights de-quantised once, tokenizer mended, everything checked before it is used."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from sparsekd.errors import SourceError
from sparsekd.sources.catalogue import CatalogueModel

_PROBE = "In 1984, 3 cafés opened at 10:05;\n\n\tnaïve “quotes” – x = 42 * 7.5"


def convert_gguf(gguf: Path, entry: CatalogueModel, out: Path) -> None:
    """Write the checkpoint of a catalogue GGUF file to `out`, in the dtype that the entry declares.

    About 20 s and 1.3 GB for the default model. Raises SourceError when the result is not the model that the
    catalogue describes.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _mend_tokenizer(tokenizer, entry)
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that cannot be switched off; warnings come through
        # Without `dequantize` the weights stay in GGUF blocks and save_pretrained refuses them.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    # GGUF keeps the epsilon as a float32: 1e-05 reads as 9.999999747378752e-06.
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")
    if hasattr(model.config, "_model_name_or_path"):
        del model.config._model_name_or_path  # the name inside the GGUF file
    model = model.to(getattr(torch, entry.config["dtype"]))
    _check(model.config.to_dict() | {"dtype": entry.config["dtype"]}, model.num_parameters(), entry)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _name_stock_tokenizer(out / "tokenizer_config.json")


def _mend_tokenizer(tokenizer: Any, entry: CatalogueModel) -> None:
    """Restore what the conversion drops, and check by a round trip that no text is lost."""
    from tokenizers import pre_tokenizers

    if entry.individual_digits:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.model_max_length = entry.config["max_position_embeddings"]
    ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids) != _PROBE:
        raise SourceError(
            f"The tokenizer of {entry.file.name} does not give back what it read: this Transformers converts it "
            "wrongly. Install the versions of requirements.lock."
        )


def _check(config: dict[str, Any], parameters: int, entry: CatalogueModel) -> None:
    """Raise SourceError unless the converted model is the one that the catalogue describes."""
    expected = {**entry.config, "parameters": entry.parameters}
    found = {**config, "parameters": parameters}
    wrong = [
        f"{key} {found.get(key)!r} instead of {value!r}" for key, value in expected.items() if found.get(key) != value
    ]
    if wrong:
        raise SourceError(
            f"{entry.file.name} was converted to another model than the catalogue describes ({', '.join(wrong)}); "
            "install the versions of requirements.lock."
        )


def _name_stock_tokenizer(path: Path) -> None:
    """Name the class that every version of Transformers knows (the converted one is new in version 5), and drop what
    says how this process was set up rather than what the tokenizer is."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("is_local", "local_files_only"):
        values.pop(key, None)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
