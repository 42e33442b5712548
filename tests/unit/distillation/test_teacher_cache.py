"""The teacher cache on disk: shards, index and checksums; and a student that learns from each kind of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sparsekd.calibration.packing import CalibrationSet, Packed
from sparsekd.config import Distill, Teacher
from sparsekd.distillation.cache_size import cache_bytes
from sparsekd.distillation.run import Curriculum, distill_checkpoint
from sparsekd.distillation.teacher import TeacherCache, write_teacher_cache
from sparsekd.distillation.teacher import write as module
from sparsekd.distillation.teacher.shards import ShardWriter
from sparsekd.errors import ArtifactError, ConfigError
from sparsekd.models import final_hidden, lm_head, load_model
from sparsekd.runtime import mixed_precision

LENGTH, TOP_K, DRAWS = 32, 8, 24
CPU = torch.device("cpu")


def packed(seed: int, sequences: int) -> Packed:
    ids = torch.randint(4, 300, (sequences, LENGTH), generator=torch.Generator().manual_seed(seed))
    return Packed(ids, torch.zeros_like(ids))


DATA = CalibrationSet(packed(1, 10), {"wiki": packed(2, 2)}, {"wiki": packed(3, 2)})


def settings(kind: str, **changes: Any) -> Teacher:
    return Teacher(cache=kind, top_k=TOP_K, draws=DRAWS, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dense(make_model: Callable[..., Path]) -> Path:
    return make_model(seed=1)


@pytest.fixture(scope="module")
def caches(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TeacherCache]:
    """One cache of each kind, in shards of three sequences of hidden states."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ShardWriter", lambda out, part: ShardWriter(out, part, 3 * LENGTH * 2 * 32))
        for kind in ("hidden", "sampled", "online"):
            out = tmp_path_factory.mktemp(kind)
            write_teacher_cache(load_model(dense), DATA, out, settings(kind))
            found[kind] = TeacherCache.open(out)
    return found


def test_any_rows_come_back_from_shards_of_bounded_size(dense: Path, caches: dict[str, TeacherCache]) -> None:
    cache = caches["hidden"]
    assert [shard.sequences for shard in cache.index.parts["calibration"]] == [3, 3, 3, 1]
    with torch.inference_mode(), mixed_precision(torch.device("cpu")):
        expected = final_hidden(load_model(dense), DATA.calibration.input_ids).to(torch.bfloat16)
    assert torch.equal(cache.hidden("calibration", [7, 0, 9, 3]), expected[[7, 0, 9, 3]])
    assert torch.equal(cache.hidden("calibration"), expected)


def test_hidden_gives_the_teachers_logits_within_the_rounding_of_bfloat16(
    dense: Path, caches: dict[str, TeacherCache]
) -> None:
    """Of the teacher as it is cached, under autocast: states, head and logits are each rounded once."""
    model = load_model(dense)
    with torch.inference_mode():
        with mixed_precision(torch.device("cpu")):
            hidden = final_hidden(model, DATA.calibration.input_ids).float()
        exact = lm_head(model).logits(hidden)
    again = caches["hidden"].logits(caches["hidden"].hidden("calibration"))
    assert (again - exact).norm() < 2**-8 * exact.norm()


@pytest.mark.parametrize("kind", ["hidden", "sampled", "online"])
def test_the_size_is_said_before_and_is_what_is_written(dense: Path, tmp_path: Path, kind: str) -> None:
    def say(text: str) -> None:
        said.append(text)
        assert not list(tmp_path.iterdir())

    said: list[str] = []
    write_teacher_cache(load_model(dense), DATA, tmp_path, settings(kind), say=say)
    assert said[0].startswith(f"teacher cache ({kind}): ")
    tensors = [t for file in tmp_path.glob("*.safetensors") for t in load_file(file).values()]
    vocabulary = len(load_model(dense).get_input_embeddings().weight)
    expected = cache_bytes(settings(kind), 32, vocabulary, DATA.calibration.tokens, 4 * LENGTH)
    assert sum(tensor.nbytes for tensor in tensors) == expected
    assert ("calibration" in TeacherCache.open(tmp_path).index.parts) == (kind != "online")
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("kind", ["hidden", "sampled"])
def test_the_cache_is_the_same_for_every_batch_size(dense: Path, tmp_path: Path, kind: str) -> None:
    indices = []
    for size in (1, 1, 4):
        out = tmp_path / f"{size}-{len(indices)}"
        out.mkdir()
        write_teacher_cache(load_model(dense), DATA, out, settings(kind, batch_size=size, seed=5))
        indices.append(json.loads((out / "index.json").read_text()))
    assert indices[0] == indices[1], "seeded"
    shapes = [
        [(s["first"], s["sequences"], s["tensors"]) for p in index["parts"].values() for s in p] for index in indices
    ]
    assert shapes[0] == shapes[2]


def test_a_damaged_or_missing_shard_is_named_with_the_next_step(dense: Path, tmp_path: Path) -> None:
    write_teacher_cache(load_model(dense), DATA, tmp_path, settings("hidden"))
    shard = tmp_path / "calibration-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    cache = TeacherCache.open(tmp_path)
    cache.part("test-wiki")
    with pytest.raises(ArtifactError, match=r"calibration-00000.safetensors, .*has sha256 .*run stage teacher again"):
        cache.part("calibration")
    shard.unlink()
    with pytest.raises(ArtifactError, match=r"calibration-00000.safetensors, .*is not there. .*run stage teacher"):
        cache.part("calibration")
    (tmp_path / "lm_head.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"lm_head.safetensors is not what"):
        TeacherCache.open(tmp_path)


def test_a_cache_of_another_version_or_none_at_all_is_refused(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"index.json is not there; run stage teacher"):
        TeacherCache.open(tmp_path)
    write_teacher_cache(load_model(dense), DATA, tmp_path, settings("online"))
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | {"format_version": 2}))
    with pytest.raises(ArtifactError, match="has format version 2; this version reads 1"):
        TeacherCache.open(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is no index of ours"):
        TeacherCache.open(tmp_path)


def test_a_top_k_that_leaves_no_tail_is_refused(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher.top_k is 99999; the model's vocabulary has"):
        write_teacher_cache(load_model(dense), DATA, tmp_path, Teacher(cache="sampled", top_k=99_999))
    assert not list(tmp_path.iterdir())


def distil(cache: TeacherCache, student: Path, dense: Path | None, folder: Path, **changes: Any) -> list[list[str]]:
    """The rows of the curve."""
    (folder / "out").mkdir(parents=True)
    config = Distill(
        compile="never", validate_every=5, validation_tokens=64, learning_rate=3e-3, **({"epochs": 2} | changes)
    )
    curriculum = Curriculum(DATA.calibration, DATA.validation, cache, dense)
    distill_checkpoint(student, folder / "out", curriculum, config, CPU, folder / "checkpoints")
    return [line.split(",") for line in (folder / "out" / "curve.csv").read_text().splitlines()]


def column(rows: list[list[str]], name: str) -> list[float]:
    place = rows[0].index(name)
    return [float(row[place]) for row in rows[1:] if row[place]]


def test_every_kind_of_cache_teaches_the_same(
    caches: dict[str, TeacherCache], make_model: Callable[..., Path], dense: Path, tmp_path: Path
) -> None:
    """Online within rounding of hidden, step by step; sampled in the mean, judged on the same exact validation."""
    student = make_model(seed=2)
    hidden, sampled, online = (
        distil(caches[kind], student, dense, tmp_path / kind) for kind in ("hidden", "sampled", "online")
    )
    for name in ("kl", "ce", "gradient_norm", "validation_kl"):
        assert column(online, name) == pytest.approx(column(hidden, name), rel=2e-2), name
    assert column(sampled, "validation_kl") == pytest.approx(column(hidden, "validation_kl"), rel=0.05)
    assert column(sampled, "kl") != column(hidden, "kl")
    for rows in (hidden, sampled, online):
        assert column(rows, "validation_kl")[-1] < 0.99 * column(rows, "validation_kl")[0]


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd"])
def test_another_divergence_falls_when_it_is_trained(
    caches: dict[str, TeacherCache], make_model: Callable[..., Path], tmp_path: Path, divergence: str
) -> None:
    rows = distil(caches["hidden"], make_model(seed=2), None, tmp_path, divergence=divergence, alpha=1.0)
    assert column(rows, "loss") == column(rows, "kl")
    assert column(rows, "validation_kl")[-1] < 0.99 * column(rows, "validation_kl")[0]


def test_a_cache_that_cannot_serve_the_loss_is_refused_before_any_work(
    caches: dict[str, TeacherCache], tmp_path: Path
) -> None:
    nowhere = tmp_path / "no-student"
    with pytest.raises(ConfigError, match="a sample is unbiased only for losses linear"):
        distil(caches["sampled"], nowhere, None, tmp_path / "jsd", divergence="jsd")
    with pytest.raises(ConfigError, match="a sample drawn at one temperature is biased at another"):
        distil(caches["sampled"], nowhere, None, tmp_path / "warm", temperature=2.0)
    with pytest.raises(ArtifactError, match="holds no calibration tokens; give the dense model's checkpoint"):
        distil(caches["online"], nowhere, None, tmp_path / "alone")
