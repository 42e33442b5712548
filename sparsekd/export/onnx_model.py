"""A stock checkpoint as an ONNX file, by torch's own exporter, and what ONNX Runtime computes with it."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsekd.errors import NotExportableError
from sparsekd.export.check import Comparison, Reference, comparison
from sparsekd.models import load_model, load_tokenizer


class _Logits(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocab"]:
        return cast(Tensor, self.model(input_ids=input_ids, use_cache=False).logits)


def write_onnx(checkpoint: Path, file: Path) -> None:
    """Write `checkpoint` in float32 to `file`, its weights to `<file>.data`.

    Raises NotExportableError with torch's own words where it cannot trace the model.
    """
    example = torch.arange(18).reshape(2, 9)
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    quiet = contextlib.redirect_stdout(io.StringIO())
    try:
        with torch.inference_mode(False), warnings.catch_warnings(), quiet:
            warnings.simplefilter("ignore")  # of the exporter's own insides
            program: Any = torch.onnx.export(
                _Logits(load_model(checkpoint)),
                (example,),
                dynamo=True,
                input_names=["input_ids"],
                output_names=["logits"],
                dynamic_shapes={"input_ids": dynamic},
            )
            program.save(file, external_data=True)
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise NotExportableError(f"torch does not write {checkpoint} as ONNX: {said}") from None


def compare_onnx(file: Path, checkpoint: Path, expected: Reference) -> Comparison:
    """Load `file` in ONNX Runtime on the CPU and compare."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def logits(ids: Sequence[int]) -> Float[Tensor, "tokens vocab"]:
        return torch.from_numpy(session.run(None, {"input_ids": torch.tensor([list(ids)]).numpy()})[0][0])

    answer: list[int] = []
    for _ in expected.answer:
        answer.append(int(logits([*expected.question, *answer])[-1].argmax()))
    found = [logits(ids) for ids in expected.tokens]
    return comparison(found, answer, load_tokenizer(checkpoint), expected)
