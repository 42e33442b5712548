"""Stock decoder checkpoints: load, save, count, and find the feed-forward block of every supported family.

A family is one entry in sparsekd/families.py: everything else is shared code.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from sparsekd.errors import ModelError
from sparsekd.families import Family, find_family

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward block of one decoder layer."""

    family: Family
    layer: nn.Module

    @property
    def block(self) -> nn.Module:
        return self.layer.get_submodule(self.family.block)

    @property
    def norm(self) -> nn.Module:
        return self.layer.get_submodule(self.family.norm)

    @property
    def down(self) -> nn.Linear:
        return cast(nn.Linear, self.block.get_submodule(self.family.down))

    @property
    def width(self) -> int:
        """intermediate_size of this layer."""
        return self.down.in_features

    def keep(self, neurons: Int[Tensor, " kept"], down_weight: Float[Tensor, "hidden kept"] | None = None) -> None:
        """Cut the block down to `neurons`, in that order: one index tensor slices every projection.

        `down_weight` replaces the sliced down_proj.weight (compensation). Biases of the neurons follow them.
        """
        rows = torch.cat([neurons, neurons + self.width]) if self.family.fused else neurons
        for name in (self.family.gate, self.family.up):
            if name is not None:
                _replace(self.block, name, *_rows(self.block.get_submodule(name), rows))
        weight = self.down.weight.detach()[:, neurons] if down_weight is None else down_weight.to(self.down.weight)
        bias = None if self.down.bias is None else self.down.bias.detach()
        _replace(self.block, self.family.down, weight, bias)


def _rows(linear: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    linear = cast(nn.Linear, linear)
    return linear.weight.detach()[rows], None if linear.bias is None else linear.bias.detach()[rows]


def _replace(block: nn.Module, name: str, weight: Tensor, bias: Tensor | None) -> None:
    old = cast(nn.Linear, block.get_submodule(name))
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.contiguous(), requires_grad=old.weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.contiguous(), requires_grad=old.weight.requires_grad)
    setattr(block, name, new)


def feed_forwards(model: PreTrainedModel) -> list[FeedForward]:
    """The feed-forward block of every decoder layer, in order."""
    family = find_family(model.config.model_type)
    try:
        layers = cast(nn.ModuleList, model.get_submodule(family.layers))
        blocks = [FeedForward(family, layer) for layer in layers]
        for block in blocks:
            if not isinstance(block.down, nn.Linear):
                raise AttributeError(family.down)
            _ = block.norm
    except AttributeError:
        raise ModelError(
            f"A {model.config.model_type} model should have {family.layers}.N.{family.block}.{family.down} and "
            f"{family.norm}; this one has not. Describe it in sparsekd/families.py."
        ) from None
    return blocks


def set_width(model: PreTrainedModel, width: int) -> None:
    """Write the new integer intermediate_size into the model's config and blocks."""
    family = find_family(model.config.model_type)
    setattr(model.config, family.width, width)
    for block in feed_forwards(model):
        if hasattr(block.block, family.width):
            setattr(block.block, family.width, width)


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory. Raises ModelError when there is none or its layout is unknown."""
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise ModelError(f"{path} has no readable config.json; a Transformers checkpoint directory has one.") from None
    find_family(str(config.get("model_type")))
    return config


def load_model(path: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> PreTrainedModel:
    """A stock checkpoint in eval mode, weights in `dtype`, on `device`.

    Reads safetensors only and trusts no remote code. Raises ModelError for an unknown layout and for a missing,
    unexpected, mismatched or non-finite tensor.
    """
    read_config(path)
    if not list(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} has no .safetensors file; pickled weights are not read. Convert the checkpoint first."
        )
    check_tensors(path)
    try:
        with _errors_only():  # its report of wrong keys takes a page; ours is a sentence
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, output_loading_info=True, use_safetensors=True, local_files_only=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} does not load: {' '.join(str(error).split())[:300]}") from None
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            names = ", ".join(map(str, sorted(info[kind])[:3]))
            raise ModelError(f"{path} has {kind.replace('_', ' ')}: {names}. The checkpoint is incomplete or damaged.")
    feed_forwards(model)
    return cast(PreTrainedModel, model.to(device).eval())


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Transformers logs nothing below an error."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def check_tensors(path: Path) -> None:
    """Raise ModelError when a tensor of the checkpoint cannot be read or holds NaN or infinity."""
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    tensor = tensors.get_tensor(name)
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        raise ModelError(f"{file} holds NaN or infinity in {name}; the checkpoint is damaged.")
        except ModelError:
            raise
        except Exception as error:  # safetensors raises its own type from Rust
            raise ModelError(f"{file} cannot be read ({error}); download or copy the checkpoint again.") from None


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a checkpoint."""
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(path, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} has no usable tokenizer: {' '.join(str(error).split())[:200]}") from None


def declared_dtype(path: Path) -> torch.dtype:
    """The dtype that the checkpoint's config.json declares (float32 when it says nothing)."""
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


_MORE_TEMPLATES = "additional_chat_templates"


def save_checkpoint(model: PreTrainedModel, source: Path, out: Path) -> None:
    """Write a stock checkpoint to `out`: weights in the dtype that `source` declares, all else as `source` has it.

    Tokenizer, chat template and generation config are copied byte for byte; ties are kept; no custom code is added.
    """
    dtype = declared_dtype(source)
    copies: dict[tuple[int, torch.Size], Tensor] = {}  # tied weights share memory; two copies would both be written
    state = {
        name: copies.setdefault((tensor.data_ptr(), tensor.shape), tensor.detach().to("cpu", dtype))
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(out, state_dict=state, safe_serialization=True)
    # save_pretrained declares the dtype that the model has in memory, not that of the tensors it was given
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in source.iterdir():
        if file.is_file() and _is_companion(file):
            shutil.copyfile(file, out / file.name)
    if (source / _MORE_TEMPLATES).is_dir():
        shutil.copytree(source / _MORE_TEMPLATES, out / _MORE_TEMPLATES, dirs_exist_ok=True)


def _is_companion(file: Path) -> bool:
    """Tokenizer, chat template and generation files: what a checkpoint has beside weights and config."""
    if file.name in {"config.json", "manifest.json", "README.md"}:
        return False
    return file.suffix in {".json", ".model", ".txt", ".jinja", ".tiktoken"} and "index" not in file.name


def lm_head(model: PreTrainedModel) -> Float[Tensor, "vocab hidden"]:
    """The weight of the output projection (the embedding matrix where they are tied)."""
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head.weight


def final_hidden(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch length hidden"]:
    """The final normed hidden states: what the LM head multiplies."""
    return cast(Tensor, model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state)


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Parameters in all, without the embeddings and the LM head, and in the feed-forward blocks; tied ones once."""
    total = sum(p.numel() for p in model.parameters())
    embeddings = {id(p): p.numel() for p in (cast(nn.Embedding, model.get_input_embeddings()).weight, lm_head(model))}
    ffn = sum(p.numel() for block in feed_forwards(model) for p in block.block.parameters())
    return {"total": total, "non_embedding": total - sum(embeddings.values()), "ffn": ffn}


def reduction(dense: dict[str, int], pruned: dict[str, int], width: float) -> dict[str, float]:
    """The four numbers: share of the width, of FFN, of non-embedding and of all parameters that was removed."""
    shares = {key: 1 - pruned[key] / dense[key] for key in ("ffn", "non_embedding", "total")}
    return {"width": 1 - width, **shares}
