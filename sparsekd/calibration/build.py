"""From raw documents to the packed sequences of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsekd.calibration.chat import chat_corpus
from sparsekd.calibration.corpora import Corpus
from sparsekd.calibration.packing import CalibrationSet, Packed, interleave, pack
from sparsekd.calibration.self_generated import self_generated
from sparsekd.calibration.split import Role, Split, refuse_overlap, split_documents
from sparsekd.config import Calibrate
from sparsekd.errors import ConfigError, SourceError
from sparsekd.progress import Progress, silent
from sparsekd.runtime import compute_dtype

Load = Callable[[torch.dtype, torch.device], PreTrainedModel]
_BATCH = 256


@dataclass(frozen=True)
class Built:
    """The packed sequences, figures about them, and what the user should know."""

    data: CalibrationSet
    facts: dict[str, Any]
    warnings: list[str]


def build_calibration(
    corpora: Sequence[Corpus],
    tokenizer: PreTrainedTokenizerBase,
    config: Calibrate,
    load: Load,
    device: torch.device,
    progress: Progress = silent,
) -> Built:
    """Split by document, tokenise, pack; add what the dense model writes: its share of calibration, and corpus `chat`.

    Calibration sequences come from all their sources in turn, the corpora in equal shares. Held-out documents
    contribute their first window only, so that a corpus counts many documents and its interval means something.
    `load` gives the dense model in a dtype on `device`, and is called where it has something to write. Raises
    SourceError for overlap between parts and for a corpus that is too short, ConfigError for a model that cannot write.
    """
    texts = {corpus.name: [_render(d, tokenizer, corpus.name) for d in corpus.documents] for corpus in corpora}
    splits = {corpus.name: _split(texts[corpus.name], corpus.role, config) for corpus in corpora}
    short = {name: sum(len(text) < config.minimum_characters for text in found) for name, found in texts.items()}
    refuse_overlap(splits)
    training = [corpus.name for corpus in corpora if corpus.role == "calibration"]
    warnings: list[str] = []
    own = config.self_generated_sequences
    share = _equal_shares(config.text_sequences, len(training))
    parts = []
    for number, (name, sequences) in enumerate(zip(training, share, strict=True)):
        tokens = sequences * config.sequence_length
        packed = pack(_tokenise(splits[name].calibration, tokenizer, tokens), config.sequence_length, tokens)
        _require(name, "calibration", len(packed.input_ids), sequences, config, short[name])
        parts.append(packed)
        progress(number + 1, len(corpora) + len(training), "corpora")
    validation: dict[str, Packed] = {}
    test: dict[str, Packed] = {}
    for number, corpus in enumerate(corpora):
        for part, target in (("validation", validation), ("test", test)):
            packed = _held_out(getattr(splits[corpus.name], part), tokenizer, config)
            _require(corpus.name, part, len(packed.input_ids), 1, config, short[corpus.name])
            if packed.tokens < config.held_out_tokens // config.sequence_length * config.sequence_length:
                warnings.append(
                    f"{part} of {corpus.name} holds {packed.tokens:,} tokens; "
                    f"{config.held_out_tokens:,} were asked for, so its intervals are wider."
                )
            target[corpus.name] = packed
        progress(len(training) + number + 1, len(corpora) + len(training), "corpora")
    if own:
        parts.append(
            self_generated(
                load(compute_dtype(device), device), tokenizer, own, config.sequence_length, config.seed, progress
            )
        )
    if config.chat_prompts:
        # float32: with padding, bfloat16 attention was seen to change greedy answers for the worse
        test["chat"] = chat_corpus(
            load(torch.float32, device), tokenizer, config.chat_prompts, config.chat_tokens, progress
        )
    data = CalibrationSet(interleave(parts), validation, test)
    shares = dict(zip(training, share, strict=True)) | ({"self_generated": own} if own else {})
    return Built(data, _facts(data, splits) | {"trained_on": training, "calibration_sequences": shares}, warnings)


def _split(texts: Sequence[str], role: Role, config: Calibrate) -> Split:
    long_enough = (text for text in texts if len(text) >= config.minimum_characters)
    return split_documents(long_enough, role, config.held_out_share, config.seed)


def _render(document: str | list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, corpus: str) -> str:
    if isinstance(document, str):
        return document
    if not tokenizer.chat_template:
        raise SourceError(
            f"Corpus {corpus} holds chat messages; the model's tokenizer has no chat template to render them. "
            "Give texts in a text column, or set texts.column."
        )
    return cast(str, tokenizer.apply_chat_template(document, tokenize=False))


def _tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[list[int]]:
    """Token ids of as many of the texts as it takes to have `tokens` of them."""
    documents: list[list[int]] = []
    count = 0
    for start in range(0, len(texts), _BATCH):
        if count >= tokens:
            break
        batch = cast(list[list[int]], tokenizer(list(texts[start : start + _BATCH]), verbose=False)["input_ids"])
        documents += batch
        count += sum(map(len, batch))
    return documents


def _held_out(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, config: Calibrate) -> Packed:
    length = config.sequence_length
    documents = _tokenise(texts, tokenizer, config.held_out_tokens * 64)
    return pack([document[:length] for document in documents], length, config.held_out_tokens)


def _equal_shares(total: int, count: int) -> list[int]:
    return [total // count + (number < total % count) for number in range(count)]


def _require(corpus: str, part: str, found: int, needed: int, config: Calibrate, short: int) -> None:
    if not needed:
        raise ConfigError(
            f"calibrate.tokens is {config.tokens}; with {config.sequence_length} tokens a sequence that leaves none "
            f"for {corpus}. Raise calibrate.tokens or name fewer texts."
        )
    if found < needed:
        limit = f"calibrate.minimum_characters = {config.minimum_characters}"
        left_out = f" Documents left out because they are shorter than {limit}: {short:,}; lower it to use them."
        raise SourceError(
            f"Corpus {corpus} is too short: its {part} part fills {found} sequences of {config.sequence_length} "
            f"tokens, {needed} are needed. Give more text, or lower calibrate.tokens or calibrate.sequence_length."
            + (left_out if short else "")
        )


def _facts(data: CalibrationSet, splits: dict[str, Split]) -> dict[str, Any]:
    documents = {
        name: {part: len(getattr(split, part)) for part in ("calibration", "validation", "test")}
        for name, split in splits.items()
    }
    return {"tokens": {name: packed.tokens for name, packed in data.parts().items()}, "documents": documents}
