"""The catalogue is whole, and says what the issue asks it to say."""

from __future__ import annotations

import re

from sparsekd.sources import catalogue, model_config, packaged_tasks, resolve_model, resolve_text

DEFAULT = "smollm2-135m-instruct-q4_1"


def test_every_pin_is_a_hash_and_every_size_is_known() -> None:
    entries = catalogue()
    files = [e.file for table in (entries.models, entries.texts, entries.benchmarks) for e in table.values()]
    for pinned in [*files, *entries.packages.values()]:
        assert re.fullmatch(r"[0-9a-f]{64}", pinned.sha256)
        assert pinned.bytes > 10_000
    assert len({file.sha256 for file in files}) == len(files)


def test_the_default_model_is_called_what_it_is() -> None:
    resolved = resolve_model(DEFAULT)
    assert resolved.label == "SmolLM2-135M-Instruct, de-quantised from Q4_1"
    assert resolved.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert resolved.revision == catalogue().models[DEFAULT].file.sha256
    assert resolved.kind == "catalogue"
    assert resolved.terms is None
    assert resolve_model("gemma3-270m-q4_k_m").terms


def test_a_stale_content_hash_resolves_to_the_pin() -> None:
    assert resolve_model(DEFAULT, "0" * 64) == resolve_model(DEFAULT)
    assert resolve_text("wiki", "0" * 64).revision == catalogue().texts["wiki"].file.sha256


def test_parameters_follow_from_the_declared_sizes() -> None:
    entry, config = catalogue().models[DEFAULT], model_config(DEFAULT)
    d, m, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    expected = config["vocab_size"] * d + layers * (2 * d * d + 2 * d * kv + 3 * d * m + 2 * d) + d
    assert entry.parameters == expected == 134_515_008
    assert entry.checkpoint_bytes > 2 * entry.parameters


def test_the_packaged_tasks_and_held_out_corpora() -> None:
    assert {"arc_easy", "piqa", "hellaswag", "sciq", "winogrande", "boolq", "copa"} <= set(packaged_tasks())
    assert catalogue().held_out == ("stories", "code")
