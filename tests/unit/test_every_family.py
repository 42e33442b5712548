"""Every described family, on tiny random models: surgery, compensation, the walk, checkpoints, logits, one step."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsekd.config import Benchmark, Prune
from sparsekd.decoding import greedy
from sparsekd.distillation.head import HeadLoss
from sparsekd.distillation.student import cast_frozen_projections, freeze_all_but_ffn_and_norms
from sparsekd.distillation.teacher.cache import read_head, write_head
from sparsekd.evaluation.profile import operator_classes
from sparsekd.evaluation.speed_worker import request_cost
from sparsekd.families import find_family
from sparsekd.feed_forward import FeedForward, feed_forwards
from sparsekd.models import count_parameters, final_hidden, lm_head, load_model, save_checkpoint
from sparsekd.pruning import passes, walk
from sparsekd.pruning.compensation import ridge
from sparsekd.pruning.statistics import Moments
from sparsekd.pruning.target import block_target
from sparsekd.runtime import mixed_precision
from tests.tiny_models import EVERY_FAMILY, tiny_model

WIDTH = 64
KEPT = torch.tensor([1, 3, 4, 10, 11, 20, 33, 34, 50, 63])
every_family = pytest.mark.parametrize("family", EVERY_FAMILY)


@functools.cache
def model_of(family: str) -> PreTrainedModel:
    """Shared by the tests that do not change it."""
    return tiny_model(family)


def changed(family: str) -> PreTrainedModel:
    return copy.deepcopy(model_of(family))


def tokens(sequences: int = 6, length: int = 24, seed: int = 0) -> Tensor:
    return torch.randint(4, 384, (sequences, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


@every_family
def test_full_width_leaves_identical_logits_and_one_integer_width(family: str) -> None:
    model = changed(family)
    walk.prune_model(model, tokens(), WIDTH, Prune())
    assert torch.equal(logits(model, tokens()), logits(model_of(family), tokens()))
    assert getattr(model.config, find_family(family).width) == WIDTH


@every_family
def test_surgery_equals_masking_the_same_neurons(family: str) -> None:
    check_surgery(model_of(family))


def check_surgery(model: PreTrainedModel) -> None:
    cut, masked = copy.deepcopy(model), copy.deepcopy(model)
    mask = torch.zeros(WIDTH)
    mask[KEPT] = 1
    for one, other in zip(feed_forwards(cut), feed_forwards(masked), strict=True):
        one.keep(KEPT)
        other.down.register_forward_pre_hook(lambda _, inputs: (inputs[0] * mask,))
        assert one.width == len(KEPT)
        assert [type(module) for module in one.projections] == [type(module) for module in other.projections]
    torch.testing.assert_close(logits(cut, tokens()), logits(masked, tokens()), rtol=1e-4, atol=1e-5)
    dense = logits(model, tokens())
    assert (logits(cut, tokens()) - dense).abs().max() > 1e-3 * dense.std(), "the mask must matter"


@every_family
def test_with_all_neurons_kept_compensation_is_the_identity(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first layer nothing is lost yet, so the ridge without damping gives the weights back."""
    seen: list[tuple[Moments, Tensor]] = []
    prune_layer = walk.prune_layer

    def spy(moments: Moments, weight: Tensor, *arguments: Any) -> Any:
        seen.append((moments, weight.clone()))
        return prune_layer(moments, weight, *arguments)

    monkeypatch.setattr(walk, "prune_layer", spy)
    walk.prune_model(changed(family), tokens(24), WIDTH, Prune())
    moments, weight = seen[0]
    found = ridge(moments.cross, moments.covariance, weight, 0.0)
    error = torch.linalg.norm((found - weight) @ moments.covariance @ (found - weight).T)
    assert error < 1e-3 * torch.linalg.norm(weight.double() @ moments.covariance @ weight.T.double())  # bf16 matmuls


@every_family
@torch.no_grad()
def test_a_block_that_met_its_target_would_give_the_stream_what_it_lost(family: str) -> None:
    """Exactly where the stream takes the output as it is; along most of it where a norm stands between."""
    block = feed_forwards(model_of(family))[1]
    output, lost = torch.randn(2, 2, 5, 32, generator=torch.Generator().manual_seed(1))
    target, weight = block_target(block, output, 1e-3 * lost)
    gained = 1e3 * (block.contribution(target) - block.contribution(output))
    if block.post_norm is None:
        assert weight is None
        torch.testing.assert_close(gained, lost, rtol=0.01, atol=0.01)
    else:
        assert weight is not None
        torch.testing.assert_close(weight[..., 0], 1 / output.square().mean(-1).sqrt())
        assert 0.5 * lost.norm() < gained.norm() < lost.norm()
        assert nn.functional.cosine_similarity(gained.flatten(), lost.flatten(), dim=0) > 0.9


@every_family
def test_the_walk_follows_the_model_that_it_prunes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of its streams end where the dense and the pruned model's last layer do, up to bfloat16."""
    streams: dict[str, Tensor] = {}
    prune_block = walk._prune_block

    def spy(block: FeedForward, arguments: Any, dense: Tensor, pruned: Tensor, *more: Any) -> Any:
        streams.update(dense=dense, pruned=pruned)
        return prune_block(block, arguments, dense, pruned, *more)

    monkeypatch.setattr(walk, "_prune_block", spy)
    model, ids = changed(family), tokens()
    reports = walk.prune_model(model, ids, 40, Prune(batch_size=4))
    ends = {"dense": last_stream(model_of(family), ids), "pruned": last_stream(model, ids)}
    for name, expected in ends.items():
        assert (streams[name] - expected).norm() < 0.02 * expected.norm(), name
    assert (ends["dense"] - ends["pruned"]).norm() > 0.05 * ends["dense"].norm()
    assert all(0 <= report.error_after <= report.error_before for report in reports)


@pytest.mark.parametrize("family", ["gemma3_text", "olmo2", "glm4"])
def test_behind_a_norm_the_scale_of_the_down_projection_changes_nothing(family: str) -> None:
    """The norm leaves it free, so equal models must be pruned alike."""
    found = []
    for scale in (1.0, 16.0):
        model = changed(family)
        with torch.no_grad():
            for block in feed_forwards(model):
                block.down.weight.mul_(scale)
        walk.prune_model(model, tokens(), 40, Prune())
        found.append(logits(model, tokens(seed=3)))
    dense = logits(model_of(family), tokens(seed=3))
    assert (found[0] - found[1]).norm() < 0.02 * (found[0] - dense).norm()


@torch.no_grad()
def last_stream(model: PreTrainedModel, ids: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = feed_forwards(model)[-1].layer.register_forward_hook(lambda _, inputs, out: seen.append(passes._first(out)))
    with mixed_precision(torch.device("cpu")):
        model.base_model(input_ids=ids, use_cache=False)
    hook.remove()
    return seen[0].float()


def test_every_family_reloads_in_plain_transformers(tmp_path: Path) -> None:
    """One fresh process that knows nothing of us: no key missing or left over, the same logits, ties and widths."""
    for family in EVERY_FAMILY:
        model = changed(family)
        model.save_pretrained(tmp_path / family / "dense")
        walk.prune_model(model, tokens(), 40, Prune())
        save_checkpoint(model, tmp_path / family / "dense", tmp_path / family / "pruned")
        save_file({"logits": logits(model, tokens(2))}, tmp_path / family / "expected.safetensors")
    program = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
ids = torch.tensor(json.loads(sys.argv[2]))
for place in sorted(Path(sys.argv[1]).iterdir()):
    model, info = AutoModelForCausalLM.from_pretrained(place / "pruned", output_loading_info=True)
    faults = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    with torch.no_grad():
        gap = (model(input_ids=ids).logits - load_file(place / "expected.safetensors")["logits"]).abs().max()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    print(json.dumps([place.name, faults, float(gap), tied]))
"""
    arguments = [sys.executable, "-c", program, str(tmp_path), json.dumps(tokens(2).tolist())]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    for family in EVERY_FAMILY:
        tied = bool(model_of(family).config.tie_word_embeddings)
        assert found[family] == [{}, 0.0, tied], family
        width = find_family(family).width
        assert json.loads((tmp_path / family / "pruned" / "config.json").read_text())[width] == 40


@every_family
@torch.no_grad()
def test_the_teacher_cache_gives_the_models_logits(family: str, tmp_path: Path) -> None:
    """In float32 to the bit; through the cache's file and bfloat16 within its rounding."""
    model, ids = model_of(family), tokens()
    hidden, exact = final_hidden(model, ids), logits(model_of(family), ids)
    torch.testing.assert_close(lm_head(model).logits(hidden), exact, rtol=1e-5, atol=1e-5)
    write_head(lm_head(model), tmp_path)
    again = read_head(tmp_path / "lm_head.safetensors").logits(hidden.to(torch.bfloat16)).float()
    assert (again - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@every_family
def test_a_distillation_step_has_autograds_gradient(family: str, temperature: float) -> None:
    """Of the mean of (1−α)·CE + α·T²·KL through the model's own logits, for every trained parameter."""
    student, teacher, ids = changed(family), tiny_model(family, seed=1), tokens(2, 12)
    parameters = freeze_all_but_ffn_and_norms(student)
    targets = ids[:, 1:].flatten()
    with torch.no_grad():
        dense = final_hidden(teacher, ids)[:, :-1].flatten(0, 1)
        p = (logits(teacher, ids)[:, :-1].flatten(0, 1) / temperature).log_softmax(-1)
    out = student(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    q = (out / temperature).log_softmax(-1)
    loss = 0.5 * nn.functional.cross_entropy(out, targets)
    loss = loss + 0.5 * temperature**2 * (p.exp() * (p - q)).sum(-1).mean()
    expected = torch.autograd.grad(loss, list(parameters.values()))
    hidden = final_hidden(student, ids)[:, :-1].flatten(0, 1)
    head = HeadLoss(lm_head(student).to("cpu"), lm_head(teacher).to("cpu"), 0.5, temperature)
    with torch.no_grad():
        kl, ce, gradient = head(hidden, dense, targets)
    assert 0.5 * ce + 0.5 * temperature**2 * kl == pytest.approx(loss.item(), rel=1e-4)
    hidden.backward(gradient)
    for (name, parameter), wanted in zip(parameters.items(), expected, strict=True):
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            parameter.grad, wanted, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@every_family
def test_feed_forward_blocks_and_norms_train_and_nothing_else(family: str) -> None:
    model = changed(family)
    chosen = set(freeze_all_but_ffn_and_norms(model))
    projections = {id(p) for block in feed_forwards(model) for module in block.projections for p in module.parameters()}
    for name, parameter in model.named_parameters():
        words = name.lower()
        norm = "norm" in words or ".ln_" in words
        assert (name in chosen) == (id(parameter) in projections or norm), name


@every_family
@torch.no_grad()
def test_casting_what_is_frozen_changes_no_bit_under_autocast(family: str) -> None:
    model, ids = changed(family), tokens(2)
    with torch.autocast("cpu", torch.bfloat16):
        before = final_hidden(model, ids)
        freeze_all_but_ffn_and_norms(model)
        cast_frozen_projections(model, torch.bfloat16)
        assert torch.equal(final_hidden(model, ids), before)


@every_family
def test_greedy_answers_with_a_cache_and_padding_are_those_without(family: str) -> None:
    model = model_of(family)
    prompts = [tokens(1, 5, 1)[0].tolist(), tokens(1, 11, 2)[0].tolist()]
    for prompt, answer in zip(prompts, greedy(model, prompts, 3), strict=True):
        sequence = list(prompt)
        for token in answer:
            scores = logits(model, torch.tensor([sequence]))[0, -1]
            assert scores[token] >= scores.max() - 1e-4
            sequence.append(token)


@every_family
def test_a_request_costs_what_its_attention_layers_hold(family: str) -> None:
    cost = request_cost(model_of(family), Benchmark(prefill_tokens=8, decode_tokens=4))
    counts, head = count_parameters(model_of(family)), lm_head(model_of(family)).weight.numel()
    cached = cost["decode_bytes"] / 4 - counts["non_embedding"] - head
    heads = {"gemma4_text": 2 * 8 + 2 * 16, "gemma4_unified_text": 2 * 8 + 2 * 16, "qwen3_5_text": 2 * 8}
    without_groups = 2 * 32 if family in {"gpt2", "opt"} else 2 * 16
    assert cached == 2 * heads.get(family, without_groups) * (8 + 4 / 2)


@every_family
def test_the_profile_counts_projections_attention_and_head_apart(family: str) -> None:
    model = model_of(family)
    found = list(operator_classes(model).values())
    assert found.count("ffn") == sum(len(block.projections) for block in feed_forwards(model))
    assert found.count("attention") == len(feed_forwards(model))
    assert found.count("lm_head") == 1


def test_qwen3_5_with_its_picture_model_gives_a_plain_text_checkpoint(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = model_of("qwen3_5_text").config
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    whole = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text.to_dict(), vision_config=vision)).eval()
    whole.save_pretrained(tmp_path / "whole")
    model = load_model(tmp_path / "whole")
    assert torch.equal(logits(model, tokens(2)), logits(whole, tokens(2)))
    walk.prune_model(model, tokens(), 40, Prune())
    save_checkpoint(model, tmp_path / "whole", tmp_path / "pruned")
    assert not [name for name in load_file(tmp_path / "pruned" / "model.safetensors") if "visual" in name]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert (again.config.model_type, again.config.intermediate_size) == ("qwen3_5_text", 40)
    assert torch.equal(logits(again, tokens(2)), logits(model, tokens(2)))
