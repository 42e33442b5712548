"""The student: which parameters train, and how its layers are compiled."""

from __future__ import annotations

import os
import shutil
import sys

import torch
from torch import nn
from transformers import PreTrainedModel

from sparsekd.config import Distill
from sparsekd.errors import ResourceError
from sparsekd.feed_forward import PROJECTIONS, feed_forwards, projection_parameters


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


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each decoder layer for one static shape; they share one compiled graph.

    On a CPU attention is written out for the compiler to fuse: 1.16 × the tokens a CPU-second of torch's flash kernel
    at 512 tokens (docs/experiments.md).
    """
    if model.device.type == "cpu":
        model.set_attn_implementation("eager")
    for block in feed_forwards(model):
        block.layer.compile(dynamic=False)
