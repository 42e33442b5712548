"""Whatever says how much is kept becomes one integer width."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sparsekd.calibration.packing import Packed
from sparsekd.config import BUDGETS, Prune
from sparsekd.errors import ConfigError
from sparsekd.families import parameters_from_config
from sparsekd.pruning.budget import describe_reduction, resolve_budget, resolve_width
from sparsekd.pruning.checkpoint import prune_checkpoint
from sparsekd.sources import model_config
from tests.tiny_models import tiny_config

SMOLLM = model_config("smollm2-135m-instruct-q4_1")
SHARES = {"ffn_reduction": "ffn", "non_embedding_reduction": "non_embedding", "total_reduction": "total"}


@pytest.mark.parametrize(
    ("width", "multiple_of", "expected"),
    [(0.75, 128, 1152), (0.58, 128, 896), (1.0, 128, 1536), (900, 128, 900), (0.5001, 1, 768), (0.99, 128, 1536)],
)
def test_width(width: float, multiple_of: int, expected: int) -> None:
    assert resolve_width(width, 1536, multiple_of) == expected
    assert resolve_budget(Prune(width=width, multiple_of=multiple_of), SMOLLM) == expected


@pytest.mark.parametrize(("width", "found"), [(2000, "prune.width is 2000"), (0.01, "prune.width is 0.01")])
def test_a_width_that_does_not_fit_is_refused(width: float, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        resolve_width(width, 1536, 128)


@given(key=st.sampled_from(list(SHARES)), share=st.floats(0, 0.5), multiple_of=st.sampled_from([1, 7, 128, 256]))
def test_a_reduction_gives_the_nearest_width(key: str, share: float, multiple_of: int) -> None:
    """No other allowed width removes a share that is nearer to the one asked for."""
    dense = parameters_from_config(SMOLLM)[SHARES[key]]

    def missed(width: int) -> float:
        return abs(1 - parameters_from_config(SMOLLM, width)[SHARES[key]] / dense - share)

    width = resolve_budget(Prune(**{key: share}, multiple_of=multiple_of), SMOLLM)
    allowed = {*range(multiple_of, 1536, multiple_of), 1536}
    assert width in allowed
    nearest = range(max(multiple_of, width - multiple_of), min(1536, width + multiple_of) + 1)
    assert (
        missed(width) <= min(missed(other) for other in nearest if other in allowed and other % multiple_of == 0) + 1e-9
    )


@given(parameters=st.integers(70_000_000, 134_515_008), multiple_of=st.sampled_from([1, 128, 256]))
def test_a_number_of_parameters_is_never_exceeded(parameters: int, multiple_of: int) -> None:
    width = resolve_budget(Prune(parameters=parameters, multiple_of=multiple_of), SMOLLM)
    assert parameters_from_config(SMOLLM, width)["total"] <= parameters
    larger = width + multiple_of
    assert width == 1536 or larger > 1536 or parameters_from_config(SMOLLM, larger)["total"] > parameters


def test_nothing_removed_keeps_a_width_that_is_no_multiple() -> None:
    model = SMOLLM | {"intermediate_size": 1500}
    total = parameters_from_config(model)["total"]
    for budget in ({"width": 1.0}, {"total_reduction": 0.0}, {"parameters": total}):
        assert resolve_budget(Prune(**budget), model) == 1500


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (
            {"total_reduction": 0.65},
            r"prune.total_reduction is 0.65; neurons of the feed-forward layers are 59.2% of the model's parameters, "
            r"and prune.multiple_of leaves at least 128 of 1536, so 0.542 is the most. Give that or less",
        ),
        ({"non_embedding_reduction": 0.9}, "so 0.687 is the most"),
        ({"ffn_reduction": 0.99}, "are 100.0% of the model's feed-forward parameters, .* so 0.916 is the most"),
        ({"parameters": 50_000_000}, "leaves at least 128 of 1536 neurons a layer, and then the model has 61,524,288"),
        ({"parameters": 200_000_000}, "is 200,000,000; the model's 134,515,008 parameters are the most it can be"),
        ({"ffn_reduction": 0.5, "multiple_of": 4096}, "leaves at least 1536 of 1536, so 0 is the most"),
    ],
)
def test_what_no_width_can_do_is_refused_with_what_one_can(budget: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_budget(Prune(**budget), SMOLLM)


def test_one_budget_holds_and_the_others_are_null() -> None:
    assert Prune().budget == ("width", 0.75)
    assert Prune(total_reduction=0.3).budget == ("total_reduction", 0.3)
    assert Prune(total_reduction=0.3).width is None
    assert Prune(total_reduction=None).width == 0.75
    form = Prune(parameters=10).model_dump(exclude_unset=True)
    assert form == dict.fromkeys(BUDGETS) | {"parameters": 10}, "so that a form with one value replaces the other"
    with pytest.raises(ValidationError, match=r"prune.width is 0.5 and prune.ffn_reduction is 0.2; only one can say"):
        Prune(width=0.5, ffn_reduction=0.2)
    with pytest.raises(ValidationError, match=r"prune.width is null, and so is ffn_reduction, .*; give one of them"):
        Prune(width=None)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_stage_prunes_to_what_was_resolved_before(
    family: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """From config.json alone, whatever the layout; the reductions of the written model are the ones foreseen."""
    from transformers import AutoModelForCausalLM

    values = tiny_config(family).to_dict()
    AutoModelForCausalLM.from_config(tiny_config(family)).save_pretrained(tmp_path / "dense")
    config = Prune(total_reduction=0.2, multiple_of=1)
    width = resolve_budget(config, values)
    ids = torch.randint(4, 384, (2, 16)).int()
    (tmp_path / "out").mkdir()
    packed = Packed(ids, torch.zeros_like(ids))
    facts = prune_checkpoint(
        tmp_path / "dense", tmp_path / "out", packed, config, torch.device("cpu"), tmp_path / "work"
    )
    assert facts["intermediate_size"] == {"dense": 64, "pruned": width}
    assert facts["parameters"] == parameters_from_config(values, width)
    assert facts["reduction"]["total"] == pytest.approx(0.2, abs=0.01)
    told = describe_reduction(facts["reduction"])
    assert all(word in told for word in ("of the width", "of the FFN", "of the non-embedding", "of all parameters"))
