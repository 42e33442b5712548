"""The price list: one pass and one factorisation a layer give what pruning to each width in one shot gives."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flows.commands import previewing
from flows.commands.job import Request
from sparsekd import api
from sparsekd.config import Calibrate, Prune, RunConfig
from sparsekd.errors import ConfigError
from sparsekd.feed_forward import feed_forwards
from sparsekd.models import load_model
from sparsekd.pruning.preview import prune_to_each, pruned_model
from sparsekd.pruning.walk import prune_model
from tests.miniature import CHECKOUT

IDS = torch.arange(8 * 32).view(8, 32) * 7 % 251


@pytest.mark.parametrize(("family", "compensation"), [("llama", "one_shot"), ("gpt2", "one_shot"), ("gemma2", "none")])
def test_each_width_is_that_of_a_run_in_one_shot(
    make_model: Callable[..., Path], family: str, compensation: str
) -> None:
    path = make_model(family, seed=5)
    config = Prune.model_validate({"compensation": compensation})
    found = prune_to_each(load_model(path), IDS, (48, 16), config)
    for width, layers in found.items():
        alone = load_model(path)
        prune_model(alone, IDS, width, config)
        ours = pruned_model(path, layers, torch.float32, torch.device("cpu"))
        assert ours.config.get_text_config().to_dict() == alone.config.get_text_config().to_dict()
        for one, other in zip(feed_forwards(ours), feed_forwards(alone), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.incoming, other.incoming, strict=True))
            torch.testing.assert_close(one.down_weight, other.down_weight)


def test_an_offer_for_each_width(tiny_llama_dir: Path, tiny_texts: Path) -> None:
    calibrate = Calibrate(tokens=1024, sequence_length=32, held_out_tokens=256, minimum_characters=10, chat_prompts=0)
    config = RunConfig(calibrate=calibrate, prune=Prune(multiple_of=8))
    found = api.preview(tiny_llama_dir, (0.25, 0.75, 0.74), texts=[str(tiny_texts)], config=config)
    full = feed_forwards(load_model(tiny_llama_dir))[0].width
    assert [offer.width for offer in found.offers] == [full * 3 // 4, full // 4], "rounded, each once, widest first"
    assert 0 <= found.dense.mean_kl < 1e-3
    kl = [offer.mean_kl for offer in found.offers]
    assert found.dense.mean_kl < kl[0] < kl[1]
    for offer in found.offers:
        removed = found.dense.parameters["total"] - offer.parameters["total"]
        assert removed == found.dense.parameters["ffn"] * (1 - offer.share)
        assert offer.bytes == 4 * offer.parameters["total"]
        assert offer.speed_up["prefill"] > 1 < offer.speed_up["decode"]
    assert type(found).model_validate_json(found.to_json()) == found


def test_the_command_shows_a_table_and_writes_json_and_a_picture(
    tiny_llama_dir: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    calibrate = ("tokens=1024", "sequence_length=32", "held_out_tokens=256", "minimum_characters=10", "chat_prompts=0")
    settings = [word for value in calibrate for word in ("-S", f"calibrate.{value}")]
    command = ["preview", "--model", str(tiny_llama_dir), "--texts", str(tiny_texts), "--widths", "0.5,16", *settings]
    done = subprocess.run(
        [sys.executable, "-m", "flows", *command, "-S", "prune.multiple_of=8", "--out", "found"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "140"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pruned in one shot, not distilled" in done.stdout
    found = json.loads((tmp_path / "found" / "preview.json").read_text())
    assert [offer["width"] for offer in found["offers"]] == [32, 16]
    assert found["expectation"] is None, "no run, no estimate"
    assert (tmp_path / "found" / "preview.png").stat().st_size > 5_000


def test_a_preset_keeps_the_model_of_the_checkout_and_paths_start_where_they_were_typed(
    tiny_llama_dir: Path, tiny_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(CHECKOUT / "dvc.yaml", tmp_path)
    params = (CHECKOUT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(re.sub(r"(?m)^  source: .*", f"  source: {tiny_llama_dir}", params, count=1))
    (tmp_path / "below").mkdir()
    shutil.copy(tiny_texts, tmp_path / "below" / "mine.jsonl")
    monkeypatch.chdir(tmp_path / "below")
    few = ("calibrate.sequence_length=32",)
    found = previewing.settle(Request(preset="smoke", texts=("mine.jsonl",), settings=few))
    assert found.model.source.endswith(str(tiny_llama_dir))
    assert found.calibrate.tokens < 10_000, "smoke's"
    assert found.texts.sources == ("below/mine.jsonl",)


def test_widths_that_are_none_are_refused() -> None:
    for wrong in ("", "a", "0.5,", "-1,0.5"):
        with pytest.raises(ConfigError, match="--widths is"):
            previewing.widths_of(wrong)
