"""optipfair by its own code: its static and data-driven choice of neurons, and its own distillation.

python -m pip install --no-deps --target build/peers optipfair==0.4.2
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from sparsekd.runtime import mixed_precision

sys.path.append(str(Path("build/peers").resolve()))


def _batches(input_ids: Int[Tensor, "sequences length"], size: int) -> Any:
    rows: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in input_ids]
    return torch.utils.data.DataLoader(rows, batch_size=size)


def prune(model: PreTrainedModel, input_ids: Int[Tensor, "sequences length"] | None, width: int) -> PreTrainedModel:
    """Its MAW criterion, from the weights alone or, with `input_ids`, weighed by activations over them."""
    from optipfair import prune_model

    old = model.config.intermediate_size
    pruned = cast(
        PreTrainedModel,
        prune_model(
            model=model,
            pruning_type="MLP_GLU",
            neuron_selection_method="MAW",
            pruning_percentage=100 * (1 - (width + 0.5) / old),  # it rounds down what is left
            expansion_divisor=32,
            dataloader=None if input_ids is None else _batches(input_ids, 4),
            show_progress=False,
        ),
    )
    assert pruned.config.intermediate_size == width, pruned.config.intermediate_size
    return pruned


def distill(
    student: PreTrainedModel, teacher: PreTrainedModel, input_ids: Int[Tensor, "sequences length"], rate: float
) -> PreTrainedModel:
    """Its distillation at its own settings, but one epoch over our tokens, and autocast as in ours."""
    from optipfair.distillation import distill_model

    with mixed_precision(torch.device("cpu")):
        return cast(
            PreTrainedModel,
            distill_model(student, teacher, _batches(input_ids, 1), epochs=1, learning_rate=rate, show_progress=False),
        )
