"""Making a teacher cache: one pass of the dense model, written shard by shard as it goes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from sparsekd.calibration.packing import CalibrationSet, Packed
from sparsekd.config import Teacher
from sparsekd.distillation.cache_size import cache_bytes, calibration_token_bytes
from sparsekd.distillation.teacher.cache import CALIBRATION, INDEX, CacheIndex, write_head
from sparsekd.distillation.teacher.sampled import SampledFormat, sample
from sparsekd.distillation.teacher.shards import ShardWriter
from sparsekd.errors import ConfigError
from sparsekd.models import LMHead, final_hidden, lm_head
from sparsekd.progress import Progress, silent
from sparsekd.runtime import compute_dtype, mixed_precision

_CHUNK = 64  # tokens whose logits are sampled at once: this many still fit a CPU's cache


def write_teacher_cache(
    model: PreTrainedModel,
    data: CalibrationSet,
    out: Path,
    config: Teacher,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> None:
    """One pass of the dense model over every part that is kept; writes the cache into the directory `out`.

    Its size is said first. Raises ConfigError for a top_k that leaves no tail in this vocabulary.
    """
    head = lm_head(model).to(model.device, torch.bfloat16)
    form = _sampled_format(config, len(head.weight)) if config.cache == "sampled" else None
    sampler = head.to(model.device, compute_dtype(model.device)) if form else head
    say(describe_size(config, head, data))
    parts = data.parts()
    if config.cache == "online":
        del parts[CALIBRATION]
    total, done = sum(packed.tokens for packed in parts.values()), 0
    shards = {}
    for name, packed in parts.items():
        writer, first = ShardWriter(out, name), 0
        for hidden in hidden_states(model, packed, config.batch_size):
            sampled = form is not None and name == CALIBRATION
            writer.add(_sampled(hidden, first, sampler, form) if form and sampled else {"hidden": hidden})
            first += len(hidden)
            done += hidden.shape[0] * hidden.shape[1]
            progress(done, total, "tokens")
        shards[name] = writer.close()
    index = CacheIndex(kind=config.cache, sampled=form, head_sha256=write_head(head, out), parts=shards)
    partial = out / f"{INDEX}.partial"
    partial.write_text(index.model_dump_json(indent=1) + "\n")
    os.replace(partial, out / INDEX)


@torch.inference_mode()
def hidden_states(
    model: PreTrainedModel, packed: Packed, batch_size: int
) -> Iterator[Float[Tensor, "batch length hidden"]]:
    """Final normed hidden states batch by batch, bfloat16, on the model's device."""
    for start in range(0, len(packed.input_ids), batch_size):
        batch = packed.input_ids[start : start + batch_size].to(model.device)
        with mixed_precision(model.device):
            yield final_hidden(model, batch).to(torch.bfloat16)


def describe_size(config: Teacher, head: LMHead, data: CalibrationSet) -> str:
    """The line that says how large the cache will be, in all and for a calibration token."""
    vocabulary, hidden_size = head.weight.shape
    tokens = data.calibration.tokens
    held_out = sum(packed.tokens for packed in data.parts().values()) - tokens
    size = cache_bytes(config, hidden_size, vocabulary, tokens, held_out)
    each = calibration_token_bytes(config, hidden_size, vocabulary)
    return (
        f"teacher cache ({config.cache}): {size / 1e6:,.1f} MB in all; {tokens:,} calibration tokens of {each:,} bytes "
        f"({each / (2 * vocabulary):.2%} of their logits in bf16), {held_out:,} held-out tokens, exact"
    )


def _sampled_format(config: Teacher, vocabulary: int) -> SampledFormat:
    if config.top_k >= vocabulary:
        raise ConfigError(
            f"teacher.top_k is {config.top_k}; the model's vocabulary has {vocabulary} tokens, and some must be left "
            "to draw from. Lower teacher.top_k, or set teacher.cache to hidden."
        )
    return SampledFormat(
        top_k=config.top_k,
        draws=config.draws,
        temperature=config.temperature,
        seed=config.seed,
        vocabulary=vocabulary,
    )


def _sampled(
    hidden: Float[Tensor, "batch length hidden"], first: int, head: LMHead, form: SampledFormat
) -> dict[str, Tensor]:
    """The records of a batch whose first sequence is number `first`; the same for every size of batch."""
    sequences = []
    for number, states in enumerate(hidden, start=first):
        generator = torch.Generator(hidden.device).manual_seed(_seed(form.seed, number))
        chunks = [sample(head.logits(chunk), form, generator) for chunk in states.split(_CHUNK)]
        sequences.append({name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]})
    return {name: torch.stack([records[name] for records in sequences]) for name in sequences[0]}


def _seed(seed: int, sequence: int) -> int:
    """32 bits, all that torch's generator on a CPU takes, that differ for every sequence."""
    return int.from_bytes(hashlib.sha256(f"{seed} {sequence}".encode()).digest()[:4])
