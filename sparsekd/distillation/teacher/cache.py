"""A teacher cache on disk: what it holds, and how the dense model's logits come back from it.

`hidden` keeps the final normed hidden states (2·hidden_size bytes a token, 1.2 KB at 576, instead of 2·vocab, 98 KB)
and rebuilds logits at any temperature, for any divergence. `sampled` keeps an unbiased sample of the calibration
tokens' distributions, `online` nothing of them. Held-out parts are always hidden states: evaluation is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsekd.artifacts import hash_file
from sparsekd.config import CacheKind, Distill, sampled_refusal
from sparsekd.distillation.teacher.sampled import SampledFormat
from sparsekd.distillation.teacher.shards import Part, Shard
from sparsekd.errors import ArtifactError, ConfigError
from sparsekd.models import LMHead
from sparsekd.runtime import compute_dtype

CALIBRATION = "calibration"
INDEX = "index.json"
FORMAT_VERSION = 1
_HEAD = "lm_head.safetensors"


class CacheIndex(BaseModel):
    """index.json: the kind of cache, every shard by part, and the LM head's hash. Written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    kind: CacheKind
    sampled: SampledFormat | None = None
    head_sha256: str
    parts: dict[str, tuple[Shard, ...]]


@dataclass(frozen=True)
class TeacherCache:
    """A teacher cache on disk, memory-mapped, and the LM head that turns its hidden states into logits."""

    directory: Path
    head: LMHead
    index: CacheIndex
    _opened: dict[str, Part] = field(default_factory=dict)
    _heads: dict[torch.device, LMHead] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: Path) -> TeacherCache:
        """Read index and head. Raises ArtifactError where one is missing, damaged or of another version."""
        index, head = _read_index(directory / INDEX), directory / _HEAD
        if not head.is_file() or hash_file(head) != index.head_sha256:
            raise ArtifactError(
                f"{head} is not what {directory / INDEX} says; delete {directory} and run stage teacher again: "
                "`sparsekd compress`."
            )
        return cls(directory, read_head(head), index)

    def part(self, name: str) -> Part:
        """A part such as "calibration" or "test-wiki". The first time, every shard of it is hashed (0.7 GB/s).

        Raises ArtifactError when the cache has no such part or a shard is not what was written.
        """
        if name not in self.index.parts:
            raise ArtifactError(
                f"{self.directory} has no part {name}; the teacher cache was made for other texts. Run stage teacher."
            )
        if name not in self._opened:
            self._opened[name] = Part(self.directory, name, self.index.parts[name])
        return self._opened[name]

    def hidden(self, name: str, rows: Sequence[int] | None = None) -> Float[Tensor, "sequences length hidden"]:
        """bfloat16 hidden states of a part's sequences, of all of them by default."""
        part = self.part(name)
        return part.rows(range(part.sequences) if rows is None else rows)["hidden"]

    def logits(self, hidden: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens vocab"]:
        """The teacher's logits, float32: one matmul, in the cache's own dtype or else in float32."""
        device = hidden.device
        if device not in self._heads:
            self._heads[device] = self.head.to(device, compute_dtype(device))
        return self._heads[device].logits(hidden).float()

    def check(self, config: Distill) -> None:
        """Raise ConfigError, with the reason, for a loss that this cache cannot serve without bias."""
        form = self.index.sampled
        reason = form and sampled_refusal(config.divergence, config.temperature, form.temperature)
        if reason:
            raise ConfigError(f"{reason}.")


def _read_index(file: Path) -> CacheIndex:
    if not file.is_file():
        raise ArtifactError(f"{file} is not there; run stage teacher: `sparsekd compress`.")
    try:
        index = CacheIndex.model_validate_json(file.read_text())
    except ValidationError:
        raise ArtifactError(f"{file} is no index of ours; delete {file.parent} and run stage teacher again.") from None
    if index.format_version != FORMAT_VERSION:
        raise ArtifactError(
            f"{file} has format version {index.format_version}; this version reads {FORMAT_VERSION}. Run stage teacher."
        )
    return index


def read_head(file: Path) -> LMHead:
    """The LM head that `write_head` wrote."""
    with safe_open(file, framework="pt") as tensors:
        bias = tensors.get_tensor("bias") if "bias" in tensors.keys() else None  # noqa: SIM118 - not a mapping
        facts = tensors.metadata() or {}
        softcap = float(facts["softcap"]) if "softcap" in facts else None
        return LMHead(tensors.get_tensor("weight"), bias, float(facts.get("scale", 1.0)), softcap)


def write_head(head: LMHead, directory: Path) -> str:
    """Write the head and return its sha256. What a model has of bias, scale and softcap stands beside the weight."""
    head = head.to("cpu", torch.bfloat16)
    tensors = {"weight": head.weight.contiguous()} | ({} if head.bias is None else {"bias": head.bias.contiguous()})
    facts = {"scale": head.scale if head.scale != 1 else None, "softcap": head.softcap}
    given = {name: repr(float(value)) for name, value in facts.items() if value is not None}
    save_file(tensors, directory / _HEAD, metadata=given or None)
    return hash_file(directory / _HEAD)
