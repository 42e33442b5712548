"""The model card, as the hub's own library reads it."""

from typing import get_args

import pytest
from huggingface_hub import ModelCard

from sparsekd.config import Compensation, Prune, RunConfig, SelectionName
from sparsekd.report import write_report
from sparsekd.report.card import base_model, hub_licence, licence_slug
from sparsekd.report.settings import pruning
from sparsekd.report.summary import Source
from tests.made_up_run import SOURCE, MadeUpRun


def write(tmp_path, **differing):
    out = tmp_path / "out"
    out.mkdir()
    summary = write_report(MadeUpRun(tmp_path / "data", **differing).write(), out)
    return ModelCard.load(out / "README.md"), summary


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    return write(tmp_path_factory.mktemp("card"))


def test_front_matter(default):
    card, summary = default
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.model_name == summary.model.name
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    model = summary.variants.distilled
    assert results["arc_easy", "acc"] == pytest.approx(model.tasks["arc_easy"].value)
    assert results["hellaswag", "acc_norm"] == pytest.approx(model.tasks["hellaswag"].value)
    assert results["wiki", "perplexity"] == pytest.approx(model.perplexity["wiki"].value, abs=1e-5)
    assert results["chat", "kl_divergence"] == pytest.approx(model.agreement["chat"].kl.value, abs=1e-5)


def test_front_matter_survives_the_hubs_own_round_trip(default):
    card, _ = default
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()


def test_text_says_what_it_is_and_how_to_load_it(default):
    card, summary = default
    for words in (
        "SmolLM2-135M-Instruct, de-quantised from Q4_1",
        "98.4 MB",
        "AutoModelForCausalLM.from_pretrained(path)",
        "| 25.0 % | 25.0 % | 18.7 % | 14.8 % |",
        "lm_eval --model hf",
        "Apache-2.0",
        "CC BY-SA",
        "  - sampled from the dense model: calibration only, 33 % of its tokens\n",
        summary.verdict,
        *summary.warnings,
    ):
        assert words in card.text


def test_results_table_has_a_row_for_every_figure(default):
    card, _ = default
    rows = [line for line in card.text.splitlines() if line.startswith("|")]
    assert all(line.count("|") - line.count("\\|") in (5,) for line in rows), "every row has four cells"
    assert any(line.startswith("| wiki (same source as calibration) | 17.") for line in rows)


def test_a_local_model_has_no_base_model_and_its_own_licence(tmp_path):
    source = {"name": "/models/mine", "kind": "local", "revision": "abc", "licence": "My Own: Licence #2"}
    card, _ = write(tmp_path, source=source, tasks={})
    assert card.data.base_model is None
    assert card.data.license == "other"
    assert card.data.license_name == "my-own-licence-2"
    assert "/models" not in card.text


def test_hostile_names_stay_inside_the_front_matter(tmp_path):
    source = SOURCE | {"label": 'x": y\n---\n<script>', "licence": None}
    card, summary = write(tmp_path, source=source, tasks={}, rounds=0)
    assert card.data.model_name == summary.model.name
    assert card.data.license is None


@pytest.mark.parametrize(
    ("licence", "known"),
    [("Apache-2.0", "apache-2.0"), ("gemma", "gemma"), ("Company terms", "other"), (None, None), ("", None)],
)
def test_licence_identifiers(licence, known):
    assert hub_licence(licence) == known


def test_licence_slug():
    assert licence_slug("My Own: Licence (v2.0)") == "my-own-licence-v2.0"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (Source(name="owner/model", kind="hub"), "owner/model"),
        (Source(name="smol", kind="catalogue", base_model="owner/base"), "owner/base"),
        (Source(name="mine", kind="local"), None),
        (Source(name="mine", kind="local", base_model="mine"), None),
    ],
)
def test_base_model(source, name):
    assert base_model(source) == name


@pytest.mark.parametrize("selection", get_args(SelectionName))
@pytest.mark.parametrize("compensation", get_args(Compensation))
def test_every_way_of_pruning_has_words(selection: SelectionName, compensation: Compensation) -> None:
    said = pruning(RunConfig(prune=Prune(selection=selection, compensation=compensation, beta=0.25)))
    assert ("SVD" in said) == ("svd" in selection)
    assert ("β 0.25" in said) == (compensation == "sequential")
    assert ("without compensation" in said) == (compensation == "none")
