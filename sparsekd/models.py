"""Stock decoder checkpoints: load, save, count, and turn hidden states into logits.

A family is one entry in sparsekd/families.py: everything else is shared code.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging

from sparsekd.errors import ModelError
from sparsekd.families import family_of
from sparsekd.feed_forward import feed_forwards, projection_parameters

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

_CHECKED_AT_ONCE = 2**22  # elements


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory. Raises ModelError when there is none or its layout is not supported."""
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise ModelError(f"{path} has no readable config.json; a Transformers checkpoint directory has one.") from None
    family_of(config)
    return config


def attention_widths(config: PreTrainedConfig) -> tuple[int, int]:
    """Heads times head width, of queries and of keys, summed over the layers with attention over all tokens."""
    kinds = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    queries = keys = 0
    for layer, kind in zip(config.per_layer_config, kinds, strict=True):  # widths may differ by layer (Gemma 4)
        if "linear" not in kind:
            width = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
            queries += layer.num_attention_heads * width
            keys += (getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads) * width
    return queries, keys


def load_model(path: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> PreTrainedModel:
    """A stock checkpoint in eval mode, weights in `dtype`, on `device`.

    Reads safetensors only and trusts no remote code. Raises ModelError for an unknown layout and for a missing,
    unexpected, mismatched or non-finite tensor.
    """
    read_config(path)
    check_tensors(path)
    options = {"output_loading_info": True, "use_safetensors": True, "local_files_only": True}
    model: Any = whole_model(path, lambda: AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **options))
    return cast(PreTrainedModel, model.to(device))


def whole_model(path: Path, load: Callable[[], Any]) -> PreTrainedModel:
    """The model in eval mode that `load` makes of the checkpoint at `path`, with Transformers' account of its loading.

    Raises ModelError when it fails, for a missing, unexpected or mismatched tensor, and for an unknown layout.
    """
    try:
        with errors_only():  # its report of wrong keys takes a page; ours is a sentence
            model, info = load()
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} does not load: {' '.join(str(error).split())[:300]}") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            names = ", ".join(map(str, sorted(info[kind])[:3]))
            raise ModelError(f"{path} has {kind.replace('_', ' ')}: {names}. The checkpoint is incomplete or damaged.")
    feed_forwards(model)
    return cast(PreTrainedModel, model.eval())


def empty_model(values: dict[str, Any]) -> PreTrainedModel:
    """The model that Transformers builds from the values of a config.json: its modules, but no memory for weights.

    Raises ModelError for values that it does not take.
    """
    try:
        with errors_only(), torch.device("meta"):
            config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
            return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config))  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ModelError(f"config.json does not describe a model: {' '.join(str(error).split())[:300]}") from None


@contextlib.contextmanager
def errors_only() -> Iterator[None]:
    """Transformers logs nothing below an error."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def check_tensors(path: Path) -> None:
    """Raise ModelError when the checkpoint has no tensors, one cannot be read, or one holds NaN or infinity."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{path} has no .safetensors file; pickled weights are not read. Convert the checkpoint first."
        )
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    tensor = tensors.get_tensor(name)
                    if tensor.is_floating_point() and not _is_finite(tensor):
                        raise ModelError(f"{file} holds NaN or infinity in {name}; the checkpoint is damaged.")
        except ModelError:
            raise
        except Exception as error:  # safetensors raises its own type from Rust
            raise ModelError(f"{file} cannot be read ({error}); download or copy the checkpoint again.") from None


def _is_finite(tensor: Tensor) -> bool:
    """Piece by piece: the tensor is mapped from its file, what isfinite makes of it is not."""
    return all(bool(torch.isfinite(part).all()) for part in torch.split(tensor.flatten(), _CHECKED_AT_ONCE))


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a checkpoint."""
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(path, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} has no usable tokenizer: {' '.join(str(error).split())[:200]}") from None


def declared_dtype(path: Path) -> torch.dtype:
    """The dtype that the checkpoint's config.json declares (float32 when it says nothing)."""
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    declared = (config.dtype, config.get_text_config().dtype)
    return next((dtype for dtype in declared if isinstance(dtype, torch.dtype)), torch.float32)


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


@dataclass(frozen=True)
class LMHead:
    """What makes logits of final hidden states: z = scale · (W h + b), and with a cap c of it c · tanh(z / c).

    Granite and Cohere scale, Gemma caps, Phi has a bias; of most models there is only the weight.
    """

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens vocab"]:
        """One matmul in the weight's dtype; scale and cap in float32."""
        logits = nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1:
            logits = logits.float() * self.scale
        if self.softcap is not None:
            logits = (logits.float() / self.softcap).tanh() * self.softcap
        return logits

    def backward(
        self, gradient: Float[Tensor, "tokens vocab"], logits: Float[Tensor, "tokens vocab"]
    ) -> Float[Tensor, "tokens hidden"]:
        """The gradient of the hidden states, float32, from that of the `logits` which they gave."""
        if self.softcap is not None:
            gradient = gradient * (1 - (logits / self.softcap).square())
        if self.scale != 1:
            gradient = gradient * self.scale
        return (gradient.to(self.weight.dtype) @ self.weight).float()

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> LMHead:
        """The same on another device or in another dtype, cut off from autograd."""
        bias = None if self.bias is None else self.bias.detach().to(device, dtype)
        return replace(self, weight=self.weight.detach().to(device, dtype), bias=bias)


def lm_head(model: PreTrainedModel) -> LMHead:
    """The output projection (the embedding matrix where they are tied), with the family's scale and softcap."""
    family, config = family_of(model.config.to_dict()), model.config
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    scale = float(getattr(config, family.logit_factor)) if family.logit_factor else 1.0
    if family.logit_divisor:
        scale /= getattr(config, family.logit_divisor)
    return LMHead(head.weight, head.bias, scale, getattr(config, family.softcap) if family.softcap else None)


def final_hidden(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch length hidden"]:
    """The final normed hidden states: what the LM head multiplies."""
    return cast(Tensor, model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state)


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Parameters in all, without the embeddings and the LM head, and in the feed-forward blocks; tied ones once."""
    total = sum(p.numel() for p in model.parameters())
    weights = (cast(nn.Embedding, model.get_input_embeddings()).weight, lm_head(model).weight)
    embeddings = {id(p): p.numel() for p in weights}
    ffn = sum(p.numel() for p in projection_parameters(feed_forwards(model)))
    return {"total": total, "non_embedding": total - sum(embeddings.values()), "ffn": ffn}


def reduction(dense: dict[str, int], pruned: dict[str, int], width: float) -> dict[str, float]:
    """The four numbers: share of the width, of FFN, of non-embedding and of all parameters that was removed."""
    shares = {key: 1 - pruned[key] / dense[key] for key in ("ffn", "non_embedding", "total")}
    return {"width": 1 - width, **shares}
