"""The student: which parameters train, and how its layers are compiled."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sparsekd.config import Distill
from sparsekd.errors import ConfigError, ResourceError
from sparsekd.feed_forward import PROJECTIONS, feed_forwards, projection_parameters
from sparsekd.runtime import compute_dtype


def freeze_all_but_ffn_and_norms(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Leave only feed-forward blocks and normalisation weights trainable; return them by name, in model order."""
    trainable = {id(p) for p in projection_parameters(feed_forwards(model))}
    for module in model.modules():
        if "Norm" in type(module).__name__:
            trainable |= {id(p) for p in module.parameters()}
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) in trainable)
        if parameter.requires_grad:
            chosen[name] = parameter
    return chosen


def cast_frozen_projections(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the frozen projections inside the decoder layers once, as autocast would at every step: the same numbers.

    Embeddings stay float32, so that the residual stream does.
    """
    for block in feed_forwards(model):
        for module in block.layer.modules():
            if isinstance(module, PROJECTIONS) and not any(p.requires_grad for p in module.parameters()):
                module.to(dtype)


def should_compile(config: Distill, device: torch.device) -> tuple[bool, str | None]:
    """Whether layers are compiled, and a warning when they are not although the configuration would have it.

    Decided from the configuration and the machine alone, never by timing, so that a resume decides the same. Raises
    ResourceError when `distill.compile` is always and it cannot be done.
    """
    if config.compile == "never":
        return False, None
    reason = _compile_obstacle(device)
    if reason is None:
        return True, None
    if config.compile == "always":
        raise ResourceError(f"distill.compile is always; {reason}. Set distill.compile to auto or never.")
    return False, f"layers are not compiled: {reason}. Distillation is slower; nothing else changes."


def _compile_obstacle(device: torch.device) -> str | None:
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None and shutil.which("clang++") is None:
        return "no C++ compiler was found (install g++)"
    for place in (sys.prefix, torch.__file__, os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")):
        if " " in place:
            return f"the path {place!r} holds a space, which the compiler's command line does not survive"
    try:
        torch._dynamo.reset()
        compiled = torch.compile(torch.nn.functional.silu, dynamic=False)
        compiled(torch.zeros(64, device=device))
    except Exception as error:  # any failure of the tool chain means the same: go on without it
        return f"a trial compilation failed ({' '.join(str(error).split())[:160]})"
    return None


def choose_attention(model: PreTrainedModel, config: Distill, compiled: bool, device: torch.device) -> None:
    """Compute attention as `distill.attention` says; by default as Transformers chooses for the model.

    Compiled for a CPU it is written out for the compiler to fuse: 1.16 × the tokens a CPU-second of torch's flash
    kernel at 512 tokens (docs/experiments.md). Raises ConfigError for what the model cannot do.
    """
    chosen = config.attention
    if chosen == "auto":
        if not (compiled and device.type == "cpu"):
            return
        chosen = "eager"
    try:
        model.set_attn_implementation(chosen)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"distill.attention is {chosen}, which {model.config.model_type} models do not take "
            f"({' '.join(str(error).split())[:160]}); set it to auto."
        ) from None


class _Checkpointed(nn.Module):
    """A decoder layer that keeps its input alone and is computed again, hooks and all, when its gradient is due."""

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        # Nothing in a layer is drawn at random: the student is in eval mode
        return checkpoint(super().__call__, *inputs, use_reentrant=False, preserve_rng_state=False, **named)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Make every decoder layer recompute its activations; the numbers stay the same bits.

    Transformers' own switch works in train mode only, where dropout would come alive.
    """
    classes: dict[type, type] = {}
    for block in feed_forwards(model):
        kind = type(block.layer)
        if kind not in classes:
            classes[kind] = type(kind.__name__, (_Checkpointed, kind), {})
        block.layer.__class__ = classes[kind]


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each decoder layer for one static shape; they share one compiled graph."""
    for block in feed_forwards(model):
        block.layer.compile(dynamic=False)


def prepare(model: PreTrainedModel, config: Distill, compiled: bool, device: torch.device) -> None:
    """Make the passes of a student with frozen parameters what `config` says and `should_compile` has decided.

    Raises ConfigError for an attention that the model cannot do.
    """
    cast_frozen_projections(model, compute_dtype(device, config.precision))
    choose_attention(model, config, compiled, device)
    if config.activation_checkpointing:
        checkpoint_activations(model)
    if compiled:
        compile_layers(model)
