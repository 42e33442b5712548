"""What a description of a family must say: the documented example holds, and what does not fit is told apart."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from sparsekd import families, feed_forward
from sparsekd.config import Prune
from sparsekd.errors import ModelError
from sparsekd.families import find_family
from sparsekd.feed_forward import feed_forwards
from sparsekd.pruning import walk
from tests.tiny_models import tiny_model
from tests.unit.test_every_family import KEPT, changed, check_surgery, tokens


def described(monkeypatch: pytest.MonkeyPatch, **wrong: Any) -> PreTrainedModel:
    """A Gemma 2 whose family is described otherwise."""
    family = dataclasses.replace(find_family("gemma2"), **wrong)
    monkeypatch.setattr(feed_forward, "family_of", lambda config: family)
    return changed("gemma2")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"down": "fc2"}, r"should have model\.layers\.N\.mlp\.fc2 and .* has no attribute `fc2`.*docs/families\.md"),
        ({"layers": "transformer.h"}, r"should have transformer\.h\.N\.mlp\.down_proj"),
        ({"post_norm": "ln_3"}, "has no attribute `ln_3`"),
        ({"multiplier": "residual_multiplier"}, "has no attribute 'residual_multiplier'"),
        ({"up": "act_fn"}, "a projection is a .*, not a Linear or Conv1D"),
        ({"fused": True, "gate": None}, "up_proj gives 64 values, not the 128 that 64 neurons need"),
    ],
)
def test_a_description_that_does_not_fit_names_what_was_looked_for(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        feed_forwards(described(monkeypatch, **wrong))


@pytest.mark.parametrize("wrong", [{"post_norm": None}, {"norm": "mlp"}, {"beside": "self_attn"}])
def test_the_walk_refuses_a_description_whose_sum_is_not_the_layers(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match="Gemma2DecoderLayer does not add its block's output to the residual stream"):
        walk.prune_model(described(monkeypatch, **wrong), tokens(), 40, Prune())


def test_the_documented_example_is_all_that_a_new_family_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    entry = page.partition("```python\nFamily(")[2].partition("\n```")[0]
    added: families.Family = eval(f"families.Family({entry}")
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, added))
    model = tiny_model(added.model_types[0])
    check_surgery(model)
    walk.prune_model(model, tokens(), 40, Prune())
    assert model.config.intermediate_size == 40


def test_the_page_lists_the_families_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    table = page.partition("| | `model_type` |")[2].partition("\n\n")[0]
    described = {name for family in families.FAMILIES for name in family.model_types}
    assert set(re.findall(r"`(\w+)`", table)) == described
    fields = page.partition("| field | what it says |")[2].partition("\n\n")[0]
    named = {
        name for row in fields.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1:2][0] if row else "")
    }
    assert named == {field.name for field in dataclasses.fields(families.Family)} - {"model_types"}


def test_an_entry_takes_less_than_fifteen_lines_and_no_model_type_is_asked_for_elsewhere() -> None:
    root = Path(__file__).parents[2]
    tree = ast.parse((root / "sparsekd" / "families.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Family"]
    assert len(calls) == len(families.FAMILIES)
    assert max((call.end_lineno or 0) - call.lineno + 1 for call in calls) < 15
    for folder in ("sparsekd", "tasks", "flows"):
        for file in (root / folder).rglob("*.py"):
            asked = re.findall(r"model_type\S* *(?:==|!=|in ).*", file.read_text())
            own = ["model_type in family.model_types), None)", "model_type in REFUSED:"]
            assert asked == (own if file.name == "families.py" else []), file


def test_layers_of_different_widths_are_refused() -> None:
    model = changed("llama")
    feed_forwards(model)[0].keep(KEPT)
    with pytest.raises(ModelError, match="are 10 and 64 neurons wide; they must have one intermediate_size"):
        feed_forwards(model)
