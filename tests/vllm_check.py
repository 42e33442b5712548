"""vLLM on the CPU with a narrowed checkpoint against Transformers: `make test-vllm`. Not part of the other tests.

vLLM pins packages that ours cannot have, so it lives in build/vllm and is asked through tests/vllm_probe.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from sparsekd.decoding import greedy
from sparsekd.models import load_model
from tests.tiny_models import make_tokenizer, write_model

ROOT = Path(__file__).parents[1]
PYTHON = Path(os.environ.get("SPARSEKD_VLLM_PYTHON", ROOT / "build/vllm/bin/python"))
PROBE = Path(__file__).with_name("vllm_probe.py")
NEW_TOKENS = 8


@pytest.mark.timeout(600)
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_vllm_computes_what_transformers_does(model_type: str, tmp_path: Path) -> None:
    """With a width that is no power of two, as pruning makes it; log-probabilities of whole prompts, greedy text."""
    own = {"head_dim": 32} if model_type == "qwen3" else {}
    sizes = {"hidden_size": 128, "intermediate_size": 136, "num_attention_heads": 4}
    path = write_model(tmp_path / "model", make_tokenizer(), model_type, **sizes, **own)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(8, 384, (length,), generator=generator).tolist() for length in (5, 17, 60)]
    found = _ask_vllm(path, prompts, tmp_path)
    model = load_model(path)
    for ids, answer in zip(prompts, found, strict=True):
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        targets = torch.tensor(ids[1:])[:, None]
        torch.testing.assert_close(
            torch.tensor(answer["log_probs"]), expected.gather(1, targets)[:, 0], atol=1e-3, rtol=0.0
        )
        assert answer["greedy"] == greedy(model, [ids], NEW_TOKENS)[0]


def _ask_vllm(path: Path, prompts: list[list[int]], folder: Path) -> list[dict[str, list[float]]]:
    request, answer = folder / "request.json", folder / "answer.json"
    request.write_text(json.dumps({"prompts": prompts, "new_tokens": NEW_TOKENS}))
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [PYTHON, PROBE, path, request, answer],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[dict[str, list[float]]] = json.loads(answer.read_text())
    return answers
