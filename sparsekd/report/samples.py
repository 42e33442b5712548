"""Per-row scores from lm-eval's own sample files, so that variants are compared row by row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsekd.errors import ArtifactError


@dataclass(frozen=True)
class Scores:
    """Score of each scored row by doc id, and lm-eval's hash of the row's content where it wrote one."""

    values: dict[int, float]
    hashes: dict[int, str]

    def mean(self) -> float:
        return sum(self.values.values()) / len(self.values)


def read_scores(path: Path, metric: str) -> Scores | None:
    """Scores by `metric` ("acc", or "exact_match,strict-match" to name lm-eval's filter) in a samples_TASK.jsonl.

    None when the file is not there (a group of tasks has none of its own) or its rows carry no plain number for the
    metric. Without a named filter the first one of each row counts. Raises ArtifactError for a file that is no JSONL.
    """
    name, _, wanted = metric.partition(",")
    values: dict[int, float] = {}
    hashes: dict[int, str] = {}
    try:
        with path.open() as stream:
            for line in stream:
                row = json.loads(line)
                key = int(row["doc_id"])
                if key in values or (wanted and row.get("filter", "none") != wanted):
                    continue
                score = _score(row.get(name))
                if score is None:
                    return None
                values[key] = score
                if row.get("doc_hash"):
                    hashes[key] = str(row["doc_hash"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is no lm-eval sample file ({error!r}); run the stage evaluate again.") from None
    return Scores(values, hashes) if values else None


def shared_rows(model: Scores, dense: Scores) -> tuple[Sequence[float], Sequence[float]]:
    """The two scores of each row that both scored, in the order of doc ids.

    Rows whose content hashes differ are not the same row, whatever their id, and are left out.
    """
    ids = [
        key
        for key in sorted(model.values.keys() & dense.values.keys())
        if key not in model.hashes or key not in dense.hashes or model.hashes[key] == dense.hashes[key]
    ]
    return [model.values[key] for key in ids], [dense.values[key] for key in ids]


def _score(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
