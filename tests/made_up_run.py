"""A whole made-up run: every artifact that the report reads, in the format of the stages, with plausible numbers.

    artifacts = MadeUpRun(tmp_path).write()          # what the default preset leaves behind
    MadeUpRun(tmp_path, tasks={}, rounds=1).write()  # what a user with fewer wishes leaves behind

Losses, answers and answers' means agree with each other as they do in a real run: tests compare the report against
what is stored here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsekd.artifacts import Artifact, Draft, writing
from tests.made_up_parts import (
    KEPT,
    LAYERS,
    VARIANTS,
    WIDTH,
    agreement,
    parameters,
    passage,
    perplexity,
    with_shares,
    write_csv,
    write_json,
    write_samples,
)  # fmt: skip

EXCESS = {"dense": 0.0, "pruned": 0.38, "distilled": 0.16}
LOSS = {"wiki": 2.95, "c4": 3.36, "stories": 2.36, "code": 1.42, "chat": 0.72}
TASKS = {  # n, n_total, chance, metric, share that dense answers rightly
    "arc_easy": (200, 570, 0.25, "acc", 0.52),
    "piqa": (200, 1838, 0.5, "acc", 0.65),
    "hellaswag": (200, 10042, 0.25, "acc_norm", 0.46),
    "sciq": (200, 1000, 0.25, "acc", 0.74),
    "winogrande": (200, 1267, 0.5, "acc", 0.515),
}
FILES = {  # bytes and KL to dense
    ("dense", "q8_0"): (144_800_000, 0.004),
    ("dense", "q4_0"): (91_700_000, 0.21),
    ("distilled", "f16"): (231_000_000, 0.28),
    ("distilled", "q8_0"): (124_000_000, 0.284),
    ("distilled", "q4_0"): (79_000_000, 0.46),
}
PROMPTS = {
    "Explain in two sentences why the sky is blue.": (
        "The sky looks blue because air scatters short wavelengths of sunlight more strongly than long ones. Blue "
        "light therefore reaches our eyes from every direction.",
        "The sky is blue because the sky is the color of the sky, and the light of the sun is the color of the light.",
        "The sky appears blue because molecules in the air scatter blue light more than red light. This scattered "
        "light comes to us from all over the sky.",
    ),
    "Write a short email that moves a meeting from Monday to Tuesday.": (
        "Subject: Meeting moved to Tuesday\n\nDear all,\n\nOur meeting on Monday is moved to Tuesday at the same time. "
        "Please let me know if that does not suit you.\n\nBest regards,\n[Your Name]",
        "Dear [Name],\n\nI hope you are well. I hope you are well. I am writing to you to inform you of the meeting on",
        "Subject: Change of date\n\nDear [Name],\n\nI would like to move our meeting from Monday to Tuesday. I hope "
        "that this works for you.\n\nKind regards,\n[Your Name]",
    ),
    "List three uses of a paper clip.": (
        "1. Hold papers together\n2. Mark a page in a book\n3. Press a reset button",
        "1. Paper clip: a paper clip is a paper clip that is used to hold the paper.\n2. Paper clip: a paper",
        "1. Holding papers together\n2. As a bookmark\n3. Cleaning small gaps <b>&amp;</b> holes",
    ),
}
SOURCE = {
    "label": "SmolLM2-135M-Instruct, de-quantised from Q4_1",
    "name": "smollm2-135m-instruct-q4_1",
    "kind": "catalogue",
    "revision": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "licence": "Apache-2.0",
    "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "bytes": 98_362_432,
    "quantization": "Q4_1",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
}


@dataclass
class MadeUpRun:
    """Written below `root`; every field is something that runs differ in."""

    root: Path
    source: dict[str, Any] = field(default_factory=lambda: dict(SOURCE))
    corpora: tuple[str, ...] = ("wiki", "c4", "stories", "code", "chat")
    tasks: Mapping[str, tuple[int, int, float | None, str, float]] = field(default_factory=lambda: dict(TASKS))
    documents: int = 24
    validation_rows: int = 400
    rounds: int = 5
    prefill: float = 1.17
    decode: float = 1.06
    noise: float = 0.03
    warnings: tuple[str, ...] = ()
    excess: dict[str, float] = field(default_factory=lambda: dict(EXCESS))
    steps: int = 240
    files: Mapping[tuple[str, str], tuple[int, float]] = field(default_factory=lambda: dict(FILES))

    def write(self) -> dict[str, Artifact]:
        """All artifacts, verified, by their name below data/."""
        self._model()
        self._calibration()
        self._pruned()
        self._distilled()
        self._evaluations()
        if self.rounds:
            self._benchmark()
        if self.files and self.corpora:
            self._export()
        names = ["raw/model", "raw/texts", "calibration", "pruned", "distilled", "benchmark", "export"]
        names += [f"evaluation/{name}" for name in VARIANTS]
        return {name: Artifact.read(self.root / name) for name in names if (self.root / name).exists()}

    def _model(self) -> None:
        config = {"model": {"source": self.source["name"], "revision": self.source.get("revision")}}
        with writing(self.root / "raw/model", "fetch-model", config, {}) as draft:
            (draft.path / "config.json").write_text("{}\n")
            draft.facts["source"] = self.source

    def _calibration(self) -> None:
        fetched = [name for name in self.corpora if name != "chat"]
        roles = {name: "calibration" if name in ("wiki", "c4") else "held_out" for name in fetched}
        licences = {"wiki": "CC BY-SA", "c4": "ODC-By"}
        with writing(self.root / "raw/texts", "fetch-texts", {"texts": {"sources": ["wiki", "c4"]}}, {}) as draft:
            draft.facts["corpora"] = {
                name: {"role": role, "documents": 500, "characters": 2_000_000, "licence": licences.get(name, "MIT")}
                for name, role in roles.items()
            }
        with writing(self.root / "calibration", "calibrate", {"calibrate": {"tokens": 122_880}}, {}) as draft:
            draft.facts["tokens"] = 122_880

    def _pruned(self) -> None:
        config = {"runtime": {"threads": 2}, "prune": {"width": 0.75}}
        dense, pruned = parameters("dense"), parameters("pruned")
        with writing(self.root / "pruned", "prune", config, {}) as draft:
            draft.facts["reduction"] = {"width": 0.25} | {
                key: round(1 - pruned[key] / dense[key], 6) for key in ("ffn", "non_embedding", "total")
            }
            draft.facts["parameters"] = pruned
            rng = np.random.default_rng(1)
            rows = []
            for layer in range(LAYERS):
                before = 0.06 + 0.11 * layer / LAYERS + 0.02 * rng.random()
                rows.append([layer, WIDTH, KEPT, 0.99 - 0.1 * before, before, before * (0.42 + 0.1 * rng.random())])
            names = ["layer", "width_before", "width_after", "spectrum_kept", "error_before", "error_after"]
            write_csv(draft.path / "layers.csv", names, rows)

    def _distilled(self) -> None:
        config = {"runtime": {"threads": 2}, "distill": {"alpha": 0.5, "learning_rate": 3e-4}}
        with writing(self.root / "distilled", "distill", config, {}) as draft:
            draft.facts |= {"steps": self.steps, "tokens": self.steps * 512, "best_step": self.steps, "compiled": True}
            draft.facts |= {"threads": 2, "device": "cpu", "precision": "bf16"}
            if self.warnings:
                draft.facts["warnings"] = list(self.warnings)
            rng = np.random.default_rng(2)
            rows: list[list[Any]] = []
            for step in range(1, self.steps + 1):
                kl = 0.24 + 0.16 * math.exp(-step / 60) + 0.03 * rng.standard_normal()
                ce = 3.30 + 0.12 * math.exp(-step / 60) + 0.22 * rng.standard_normal()
                rate = 3e-4 * (1 + math.cos(math.pi * step / self.steps)) / 2
                seen = step % 80 == 0 or step == self.steps
                fall = math.exp(-step / 60)
                validation = [0.25 + 0.14 * fall, 3.34 + 0.1 * fall] if seen else ["", ""]
                rows.append([step, step * 512, (kl + ce) / 2, kl, ce, 0.8 + 0.1 * rng.random(), rate, *validation])
            names = ["step", "tokens", "loss", "kl", "ce", "gradient_norm", "learning_rate"]
            names += ["validation_kl", "validation_ce"]
            write_csv(draft.path / "curve.csv", names, rows)
            (draft.path / "model.safetensors").write_bytes(b"weights")

    def _export(self) -> None:
        with writing(self.root / "export", "export", {"export": {"formats": ["gguf-f16"]}}, {}) as draft:
            rows = []
            for (model, kind), (size, kl) in self.files.items():
                at = {"value": kl, "low": 0.9 * kl, "high": 1.1 * kl}
                figures = {"kl": dict.fromkeys(self.corpora, at), "perplexity": dict.fromkeys(self.corpora, at)}
                speed = {"prefill": 1e11 / size, "decode": 1e10 / size}
                rows.append({"model": model, "type": kind, "bytes": size, "speed": speed, **figures})
            (draft.path / "quantised.json").write_text(json.dumps(rows))

    def _evaluations(self) -> None:
        for variant in VARIANTS:
            config = {"runtime": {"threads": 2}, "evaluate": {"rows": 200, "tasks": list(self.tasks)}}
            with writing(self.root / "evaluation" / variant, f"evaluate@{variant}", config, {}) as draft:
                self._evaluation(variant, draft)

    def _evaluation(self, variant: str, draft: Draft) -> None:
        documents = {corpus: self._losses(variant, corpus) for corpus in self.corpora}
        found = {
            "variant": variant,
            "parameters": parameters(variant),
            "bytes": 2 * parameters(variant)["total"] + 32_608,
            "checkpoint_dtype": "bfloat16",
            "dtype": "bfloat16",
            "perplexity": {corpus: perplexity(sums) for corpus, sums in documents.items()},
            "agreement": {corpus: agreement(sums) for corpus, sums in documents.items()},
            "repetition": {"chat": {"dense": 0.016, "pruned": 0.172, "distilled": 0.031}[variant]}
            if "chat" in self.corpora
            else {},
            "tasks": {},
        }
        if self.tasks:
            (draft.path / "lm_eval").mkdir()
            found["command"] = (
                "lm_eval --model hf --model_args pretrained=data/distilled,dtype=bfloat16 --tasks "
                f"{','.join(self.tasks)} --samples rows.json --batch_size 8 --seed 1234"
            )
        for task, (n, total, chance, metric, share) in self.tasks.items():
            scores = self._answers(variant, task, n, share)
            mean = float(np.mean(list(scores.values())))
            found["tasks"][task] = {"metric": metric, "value": mean, "stderr": math.sqrt(mean * (1 - mean) / (n - 1))}
            found["tasks"][task] |= {"n": n, "n_total": total, "chance": chance, "version": 1.0}
            write_samples(draft.path / "lm_eval" / f"samples_{task}.jsonl", metric, scores)
        write_json(draft.path / "evaluation.json", found)
        write_json(draft.path / "documents.json", documents)
        write_json(draft.path / "tokens.json", self._tokens(variant, documents))
        if variant != "pruned":
            self._validation(variant, draft.path / "validation")
        answers = {prompt: given[VARIANTS.index(variant)] for prompt, given in PROMPTS.items()}
        write_json(draft.path / "prompts.json", [{"prompt": p, "answer": a} for p, a in answers.items()])

    def _tokens(self, variant: str, documents: Mapping[str, dict[str, list[float]]]) -> dict[str, Any]:
        """Ever more tokens in the surer bins; the compressed models are surer than they are right."""
        reliability, divergence = {}, {}
        confidence = [0.05 + 0.1 * place for place in range(10)]
        accuracy = [c * (1 - self.excess[variant] / 2) for c in confidence]
        for corpus, sums in documents.items():
            tokens = [int(sum(sums["tokens"]) * share / 55) for share in range(1, 11)]
            error = sum(n * abs(a - c) for n, a, c in zip(tokens, accuracy, confidence, strict=True)) / sum(tokens)
            reliability[corpus] = {"tokens": tokens, "confidence": confidence, "accuracy": accuracy, "error": error}
            counts = [1000, 400, 300, 200, 100, 40, 10, 0]
            nats = [n * kl for n, kl in zip(counts, (0.004, 0.02, 0.06, 0.2, 0.6, 1.8, 5.0, 0.0), strict=True)]
            divergence[corpus] = {"tokens": counts, "nats": nats}
        passages = [] if variant == "dense" else [passage(corpus) for corpus in documents]
        return {"reliability": reliability, "divergence": divergence, "passages": passages}

    def _validation(self, variant: str, directory: Path) -> None:
        """Other documents of the same corpora; of tasks, `validation_rows` other rows."""
        (directory / "lm_eval").mkdir(parents=True)
        write_json(directory / "documents.json", {c: self._losses(variant, c, seed=100) for c in self.corpora})
        tasks = {}
        for task, (_, total, chance, metric, share) in self.tasks.items() if self.validation_rows else ():
            scores = self._answers(variant, task, self.validation_rows, share)
            mean = float(np.mean(list(scores.values())))
            tasks[task] = {"metric": metric, "value": mean, "stderr": 0.03, "n": len(scores), "n_total": total}
            tasks[task]["chance"] = chance
            write_samples(directory / "lm_eval" / f"samples_{task}.jsonl", metric, scores)
        write_json(directory / "tasks.json", tasks)

    def _losses(self, variant: str, corpus: str, seed: int = 0) -> dict[str, list[float]]:
        """Sums by document; the same documents for all variants, of differing length and difficulty."""
        rng = np.random.default_rng(seed + list(LOSS).index(corpus))
        tokens = rng.integers(120, 511, self.documents)
        base = LOSS[corpus] + 0.35 * rng.standard_normal(self.documents)
        gap = self.excess[variant] * (1 + 0.25 * rng.standard_normal(self.documents)) * (1.5 if corpus == "code" else 1)
        kl = 0.002 + 1.6 * np.abs(gap)
        top1 = np.clip(0.995 - 0.9 * np.abs(gap), 0.2, 1.0)
        return {
            "nll": [float(x) for x in (base + gap) * tokens],
            "kl": [float(x) for x in kl * tokens],
            "top1": [float(x) for x in np.round(top1 * tokens)],
            "tokens": [int(x) for x in tokens],
        }

    def _answers(self, variant: str, task: str, n: int, share: float) -> dict[int, float]:
        rng = np.random.default_rng([7, *task.encode(), n])
        ids = sorted(int(x) for x in rng.choice(max(n, self.tasks[task][1]), n, replace=False))
        right = np.zeros(n)
        right[rng.permutation(n)[: round(share * n)]] = 1.0
        lost, gained = {"dense": (0, 0), "pruned": (0.17, 0.09), "distilled": (0.09, 0.06)}[variant]
        change = rng.random(n)
        answers = np.where(right == 1, np.where(change < lost, 0.0, 1.0), np.where(change < gained, 1.0, 0.0))
        return {key: float(value) for key, value in zip(ids, answers, strict=True)}

    def _benchmark(self) -> None:
        settings = {"threads": 2, "dtype": "bfloat16", "batch_size": 1, "prefill_tokens": 512, "decode_tokens": 64}
        settings |= {"rounds": self.rounds, "openmp_wait": "passive", "device": "cpu"}
        rng = np.random.default_rng(3)
        speeds = {"prefill": 2150.0, "decode": 31.0}
        gains = {"dense": (1.0, 1.0), "pruned": (self.prefill, self.decode), "distilled": (self.prefill, self.decode)}
        models, ratio = {}, {}
        for variant, gain in gains.items():
            rounds = {
                part: [speeds[part] * g * (1 + self.noise * float(rng.uniform(-1, 1))) for _ in range(self.rounds)]
                for part, g in zip(speeds, gain, strict=True)
            }
            models[variant] = {f"{part}_tokens_per_second": values for part, values in rounds.items()}
            models[variant]["peak_memory_bytes"] = 912_000_000 - (40_000_000 if variant != "dense" else 0)
        for variant in ("pruned", "distilled"):
            ratio[variant] = {part: self._ratio(models, variant, part) for part in speeds}
        phases = {
            "dense": {
                "prefill": {"ffn": 118.2, "attention": 61.5, "lm_head": 41.0, "rest": 17.4},
                "decode": {"ffn": 920.0, "attention": 410.0, "lm_head": 560.0, "rest": 190.0},
            },
            "distilled": {
                "prefill": {"ffn": 88.9, "attention": 61.9, "lm_head": 41.2, "rest": 17.0},
                "decode": {"ffn": 702.0, "attention": 413.0, "lm_head": 558.0, "rest": 192.0},
            },
        }
        profile = {v: {k: t["prefill"][k] + t["decode"][k] for k in t["prefill"]} for v, t in phases.items()}
        with writing(self.root / "benchmark", "benchmark", {"benchmark": {"rounds": self.rounds}}, {}) as draft:
            write_json(
                draft.path / "benchmark.json",
                {
                    "settings": settings,
                    "host": {"cpu": "Intel(R) Xeon(R) Platinum 8581C", "cores": 2},
                    "models": models,
                    "ratio": ratio,
                    "predicted": {v: {"prefill": 1.16, "decode": 1.14} for v in ("pruned", "distilled")},
                    "profile": {v: with_shares(t) for v, t in profile.items()},
                    "profile_phases": {v: {p: with_shares(t) for p, t in ts.items()} for v, ts in phases.items()},
                },
            )

    def _ratio(self, models: dict[str, Any], variant: str, part: str) -> dict[str, Any]:
        key = f"{part}_tokens_per_second"
        rounds = [a / b for a, b in zip(models[variant][key], models["dense"][key], strict=True)]
        return {"value": float(np.median(rounds)), "low": min(rounds), "high": max(rounds), "rounds": rounds}
