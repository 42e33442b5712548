"""The walk over tiny random models of every family, and the surgery on their blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsekd.config import Prune
from sparsekd.feed_forward import feed_forwards
from sparsekd.models import count_parameters, load_model, save_checkpoint
from sparsekd.pruning.walk import prune_model
from tests.tiny_models import FAMILIES


def tokens(vocab: int, sequences: int = 6, length: int = 32) -> torch.Tensor:
    return torch.randint(4, vocab, (sequences, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_full_width_leaves_identical_logits(family: str, make_model: Callable[..., Path]) -> None:
    model = load_model(make_model(family))
    ids = tokens(model.config.vocab_size)
    before = model(input_ids=ids).logits
    prune_model(model, ids, 64, Prune())
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_surgery_equals_masking_the_same_neurons(family: str, make_model: Callable[..., Path]) -> None:
    path = make_model(family)
    cut, masked = load_model(path), load_model(path)
    keep = torch.tensor([1, 3, 4, 10, 33, 63])
    mask = torch.zeros(64)
    mask[keep] = 1
    for one, other in zip(feed_forwards(cut), feed_forwards(masked), strict=True):
        one.keep(keep)
        other.down.register_forward_pre_hook(lambda _, inputs: (inputs[0] * mask,))
    ids = tokens(cut.config.vocab_size)
    torch.testing.assert_close(cut(input_ids=ids).logits, masked(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_pruned_checkpoint_is_stock(family: str, tied: bool, make_model: Callable[..., Path], tmp_path: Path) -> None:
    """Plain Transformers loads it, with no key missing or left over, with the same logits, ties and files kept."""
    from transformers import AutoModelForCausalLM

    source = make_model(family, tie_word_embeddings=tied, dtype=torch.bfloat16)
    model = load_model(source, torch.float32)
    ids = tokens(model.config.vocab_size)
    before = count_parameters(model)
    reports = prune_model(model, ids, 40, Prune())
    save_checkpoint(model, source, tmp_path / "out")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.intermediate_size == 40
    assert again.dtype == torch.bfloat16
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied
    assert torch.equal(again(input_ids=ids).logits, load_model(tmp_path / "out", torch.bfloat16)(input_ids=ids).logits)
    assert {file.name for file in source.iterdir()} == {file.name for file in (tmp_path / "out").iterdir()}
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    removed = before["ffn"] - count_parameters(model)["ffn"]
    assert removed == 2 * 3 * 32 * 24
    assert before["total"] - count_parameters(model)["total"] == removed
    assert [report.layer for report in reports] == [0, 1]
    assert all(0 <= report.error_after <= report.error_before for report in reports)


def test_compensation_brings_the_logits_nearer_than_slicing(make_model: Callable[..., Path]) -> None:
    path = make_model("llama")
    dense, compensated, sliced = load_model(path), load_model(path), load_model(path)
    ids = tokens(dense.config.vocab_size, sequences=16)
    prune_model(compensated, ids, 48, Prune())
    for one, other in zip(feed_forwards(sliced), feed_forwards(compensated), strict=True):
        kept = [
            row for row in range(64) if (other.block.gate_proj.weight == one.block.gate_proj.weight[row]).all(1).any()
        ]
        one.keep(torch.tensor(kept))
    exact = dense(input_ids=ids).logits
    error = [(m(input_ids=ids).logits - exact).square().mean().item() for m in (compensated, sliced)]
    assert error[0] < error[1]
