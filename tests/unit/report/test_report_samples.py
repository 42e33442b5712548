"""Reading lm-eval's sample files and pairing their rows."""

import json

import pytest

from sparsekd.errors import ArtifactError
from sparsekd.report.samples import Scores, read_scores, shared_rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scores_by_doc_id(tmp_path):
    file = write(tmp_path / "s.jsonl", [{"doc_id": 7, "acc": 1.0, "doc_hash": "a"}, {"doc_id": 2, "acc": 0.0}])
    assert read_scores(file, "acc") == Scores({7: 1.0, 2: 0.0}, {7: "a"})


def test_first_filter_counts_unless_the_metric_names_one(tmp_path):
    rows = [
        {"doc_id": 0, "filter": "strict-match", "exact_match": 0.0},
        {"doc_id": 0, "filter": "flexible-extract", "exact_match": 1.0},
    ]
    file = write(tmp_path / "s.jsonl", rows)
    assert read_scores(file, "exact_match").values == {0: 0.0}
    assert read_scores(file, "exact_match,flexible-extract").values == {0: 1.0}


def test_no_file_or_no_plain_number_is_no_score(tmp_path):
    assert read_scores(tmp_path / "absent.jsonl", "acc") is None
    assert read_scores(write(tmp_path / "s.jsonl", [{"doc_id": 0, "ppl": [1.0, 2.0]}]), "ppl") is None
    assert read_scores(write(tmp_path / "empty.jsonl", []), "acc") is None


@pytest.mark.parametrize("text", ["no json\n", "[1]\n", '{"acc": 1.0}\n', '{"doc_id": null, "acc": 1}\n'])
def test_damaged_file_is_named(tmp_path, text):
    file = tmp_path / "samples_x.jsonl"
    file.write_text(text)
    with pytest.raises(ArtifactError, match=r"samples_x\.jsonl is no lm-eval sample file"):
        read_scores(file, "acc")


def test_only_the_same_rows_are_paired():
    model = Scores({3: 1.0, 1: 0.0, 5: 1.0, 8: 1.0}, {3: "c", 5: "e"})
    dense = Scores({1: 1.0, 3: 0.0, 5: 0.0, 9: 1.0}, {3: "c", 5: "another text"})
    assert shared_rows(model, dense) == ([0.0, 1.0], [1.0, 0.0])  # rows 1 and 3; 5 has the id but not the text
