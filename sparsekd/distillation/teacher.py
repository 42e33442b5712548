"""The teacher cache: the dense model's final normed hidden states, from which its logits are rebuilt exactly.

2·hidden_size bytes a token (1.2 KB at 576) instead of 2·vocab (98 KB), and no teacher body in memory: any temperature
and any divergence from the same cache. See docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from sparsekd.calibration.packing import CalibrationSet, Packed
from sparsekd.errors import ArtifactError
from sparsekd.models import LMHead, final_hidden, lm_head
from sparsekd.progress import Progress, silent

_HEAD = "lm_head.safetensors"


@dataclass(frozen=True)
class TeacherCache:
    """A teacher cache on disk, memory-mapped, and the LM head that turns its hidden states into logits."""

    directory: Path
    head: LMHead

    @classmethod
    def open(cls, directory: Path) -> TeacherCache:
        """Raises ArtifactError when the head is missing."""
        if not (directory / _HEAD).is_file():
            raise ArtifactError(f"{directory / _HEAD} is not there; run stage teacher: `sparsekd compress`.")
        return cls(directory, _read_head(directory / _HEAD))

    def hidden(self, part: str) -> Float[Tensor, "sequences length hidden"]:
        """bfloat16 hidden states of a part such as "calibration" or "test-wiki", in the order of its sequences."""
        file = self.directory / f"{part}.safetensors"
        if not file.is_file():
            raise ArtifactError(f"{file} is not there; the teacher cache was made for other texts. Run stage teacher.")
        return _read(file, "hidden")

    def logits(self, hidden: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens vocab"]:
        """The teacher's logits, float32: one matmul in the cache's own dtype."""
        return self.head.to(hidden.device).logits(hidden).float()


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        return cast(Tensor, tensors.get_tensor(name))


def _read_head(file: Path) -> LMHead:
    with safe_open(file, framework="pt") as tensors:
        bias = tensors.get_tensor("bias") if "bias" in tensors.keys() else None  # noqa: SIM118 - not a mapping
        facts = tensors.metadata() or {}
        softcap = float(facts["softcap"]) if "softcap" in facts else None
        return LMHead(tensors.get_tensor("weight"), bias, float(facts.get("scale", 1.0)), softcap)


def _write_head(head: LMHead, file: Path) -> None:
    """What a model has of bias, scale and softcap stands beside the weight; of most there is the weight alone."""
    head = head.to("cpu", torch.bfloat16)
    tensors = {"weight": head.weight.contiguous()} | ({} if head.bias is None else {"bias": head.bias.contiguous()})
    facts = {"scale": head.scale if head.scale != 1 else None, "softcap": head.softcap}
    given = {name: repr(float(value)) for name, value in facts.items() if value is not None}
    save_file(tensors, file, metadata=given or None)


@torch.inference_mode()
def hidden_states(
    model: PreTrainedModel,
    packed: Packed,
    batch_size: int,
    progress: Progress = silent,
    before: int = 0,
    total: int = 0,
) -> Float[Tensor, "sequences length hidden"]:
    """Final normed hidden states of every sequence, bfloat16, on the CPU.

    `before` and `total` place this part in a longer progress, in tokens.
    """
    device = model.device
    parts = []
    for start in range(0, len(packed.input_ids), batch_size):
        batch = packed.input_ids[start : start + batch_size].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            parts.append(final_hidden(model, batch).to("cpu", torch.bfloat16))
        done = before + min(start + batch_size, len(packed.input_ids)) * packed.input_ids.shape[1]
        progress(done, total or packed.tokens, "tokens")
    return torch.cat(parts)


def write_teacher_cache(
    model: PreTrainedModel, data: CalibrationSet, out: Path, batch_size: int, progress: Progress = silent
) -> None:
    """One pass of the dense model over every part; writes the cache into the directory `out`."""
    parts = data.parts()
    total, done = sum(packed.tokens for packed in parts.values()), 0
    for name, packed in parts.items():
        hidden = hidden_states(model, packed, batch_size, progress, done, total)
        save_file({"hidden": hidden}, out / f"{name}.safetensors")
        done += packed.tokens
    _write_head(lm_head(model), out / _HEAD)
