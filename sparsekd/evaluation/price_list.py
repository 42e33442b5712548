"""Before anything is paid for: size, quality and predicted speed of a model at every width, on held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from sparsekd.calibration.packing import CalibrationSet
from sparsekd.config import Benchmark, Prune
from sparsekd.distillation.teacher import TeacherCache
from sparsekd.evaluation.offers import Offer, PriceList
from sparsekd.evaluation.perplexity import document_sums
from sparsekd.evaluation.speed import predicted_speedup
from sparsekd.evaluation.speed_worker import request_cost
from sparsekd.feed_forward import feed_forwards
from sparsekd.models import count_parameters, declared_dtype, load_model, reduction
from sparsekd.progress import Progress, silent
from sparsekd.pruning.preview import prune_to_each, pruned_model
from sparsekd.runtime import compute_dtype

_SEQUENCES = 8  # a forward pass


def price_list(
    name: str,
    dense: Path,
    data: CalibrationSet,
    cache: TeacherCache,
    widths: Sequence[int],
    config: Prune,
    device: torch.device,
    progress: Progress = silent,
) -> PriceList:
    """Prune the checkpoint `dense` to each of `widths` by statistics over `data.calibration`, and score each.

    `cache` holds the dense model's hidden states of the validation part. Models are scored one at a time, in the
    checkpoint's own dtype, or in float32 where that is bfloat16 and the device has no units for it.
    """
    model = load_model(dense, torch.float32, device)
    full, own = feed_forwards(model)[0].width, declared_dtype(dense)
    dtype = compute_dtype(device) if own is torch.bfloat16 else own
    layers = prune_to_each(model, data.calibration.input_ids, widths, config, progress)
    model = load_model(dense, dtype, device)
    whole = _Counts(count_parameters(model), request_cost(model, Benchmark()), own.itemsize)
    offers = [_offer(model, full, whole, data, cache)]
    for kept in layers.values():
        progress(len(offers), 1 + len(layers), "models")
        offers.append(_offer(pruned_model(dense, kept, dtype, device), full, whole, data, cache))
    tokens = sum(packed.tokens for packed in data.validation.values())
    return PriceList(
        model=name, tokens=data.calibration.tokens, held_out_tokens=tokens, dense=offers[0], offers=tuple(offers[1:])
    )


class _Counts(NamedTuple):
    """Of the dense model: its parameters, what bounds the speed of a request, bytes of a weight in its checkpoint."""

    parameters: dict[str, int]
    cost: dict[str, float]
    itemsize: int


def _offer(model: PreTrainedModel, full: int, dense: _Counts, data: CalibrationSet, cache: TeacherCache) -> Offer:
    width, parameters = feed_forwards(model)[0].width, count_parameters(model)
    sums = {
        corpus: document_sums(model, packed, _SEQUENCES, cache, f"validation-{corpus}")
        for corpus, packed in data.validation.items()
    }
    return Offer(
        width=width,
        share=width / full,
        parameters=parameters,
        reduction=reduction(dense.parameters, parameters, width / full),
        bytes=parameters["total"] * dense.itemsize,
        kl={corpus: found["kl"] for corpus, one in sums.items() if (found := one.agreement(0))},
        perplexity={corpus: found.perplexity(0) for corpus, found in sums.items()},
        speed_up=predicted_speedup(dense.cost, request_cost(model, Benchmark())),
    )
