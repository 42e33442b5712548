"""Files become one file of documents: which files, copies, what had no text; lengths, languages, overlap."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsekd.corpus.describe import Description, describe
from sparsekd.corpus.files import estimated_bytes, text_files
from sparsekd.corpus.overlap import BenchmarkOverlap
from sparsekd.corpus.write import Written, read_documents, write_documents
from sparsekd.errors import SourceError
from sparsekd.evaluation.overlap import read_benchmark_rows
from sparsekd.sources import benchmarks as benchmarks_module
from sparsekd.sources import benchmarks_at_hand
from tests.small_benchmarks import write_benchmarks

CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]


def lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write(tmp_path: Path, *files: Path, column: str | None = None) -> tuple[Written, list[Any]]:
    out = tmp_path / "out.jsonl"
    written = write_documents(files, column, out, "here")
    assert hashlib.sha256(out.read_bytes()).hexdigest() == written.revision
    assert out.stat().st_size == written.bytes
    return written, [json.loads(line) for line in out.read_text().splitlines()]


def test_a_folder_is_the_text_files_below_it_in_order_and_each_file_counts_once(tmp_path: Path) -> None:
    names = ["b.txt", "a/2.jsonl", "a/1.PARQUET", "a/picture.png", ".hidden/x.txt", ".y.txt"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    folder = tmp_path / "in"
    found = text_files([folder / "b.txt", folder, folder / "a"], "here")
    assert [file.relative_to(folder).as_posix() for file in found] == ["b.txt", "a/1.PARQUET", "a/2.jsonl"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.txt", "; there is no such file or folder. Correct the path."),
        ("empty", ", where no file ends in .jsonl, .parquet, .txt; name another."),
        ("table.csv", ", a .csv file; it must end in .jsonl, .parquet, .txt."),
    ],
)
def test_a_path_that_names_no_text_is_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").touch()
    with pytest.raises(SourceError) as error:
        text_files([tmp_path / name], "here")
    assert str(error.value) == f"here names {str(tmp_path / name)!r}{said}"


def test_copies_and_rows_without_text_are_left_out_and_counted(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", {"text": "One  two", "id": 1}, {"text": None, "tags": ["x"]}, {"id": 2.5})
    second = lines(tmp_path / "b.jsonl", {"text": "one\ntwo "}, {"text": "  "}, {"text": "Three \ud800"})
    written, documents = write(tmp_path, first, second)
    assert documents == [{"text": "One  two"}, {"text": "Three ?"}]
    assert (written.documents, written.copies, written.without_text, written.seen.rows) == (2, 1, 3, 6)
    assert written.characters == len("One  two" + "Three ?")
    assert written.seen.columns == {"text": "string", "id": "integer", "tags": "list"}
    assert written.seen.used == ["text"]
    assert list(read_documents(tmp_path / "out.jsonl")) == ["One  two", "Three ?"]


def test_a_table_its_types_a_named_column_and_plain_text(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "body": ["x y", None, "z"], "more": [CHAT] * 3}), table)
    written, documents = write(tmp_path, table, column="body")
    assert documents == [{"text": "x y"}, {"text": "z"}]
    assert written.seen.columns == {"id": "int64", "body": "string", "more": "list"}
    assert (written.seen.used, written.seen.rows, written.without_text) == (["body"], 3, 1)
    assert estimated_bytes([table]) >= table.stat().st_size
    plain = tmp_path / "p.txt"
    plain.write_text("One.\n<|endoftext|>\nTwo.\n")
    written, documents = write(tmp_path, plain)
    assert documents == [{"text": "One."}, {"text": "Two."}]
    assert (written.seen.columns, written.without_text) == ({}, 0)


def test_conversations_are_a_corpus_but_not_beside_documents(tmp_path: Path) -> None:
    chats = lines(tmp_path / "c.jsonl", {"messages": CHAT}, {"messages": CHAT})
    written, documents = write(tmp_path, chats)
    assert documents == [{"messages": CHAT}]
    assert (written.kind, written.copies) == ("messages", 1)
    assert list(read_documents(tmp_path / "out.jsonl")) == ["user: Hello?\nassistant: Hi."]
    with pytest.raises(SourceError, match=r"a.jsonl holds plain documents, the files before it conversations; .* two"):
        write(tmp_path, chats, lines(tmp_path / "a.jsonl", {"text": "x"}))


def test_files_without_text_are_refused_but_one_of_several_may_be(tmp_path: Path) -> None:
    empty = lines(tmp_path / "empty.jsonl", {"text": ""})
    with pytest.raises(SourceError, match=r"here names '.*empty.jsonl', which holds no text; name a file that does"):
        write(tmp_path, empty)
    assert write(tmp_path, empty, lines(tmp_path / "full.jsonl", {"text": "x"}))[0].documents == 1


def test_the_bytes_depend_on_the_documents_alone(tmp_path: Path) -> None:
    rows = [{"text": f"document {n}"} for n in range(5)]
    one, _ = write(tmp_path, lines(tmp_path / "one.jsonl", *rows))
    two, _ = write(tmp_path, *(lines(tmp_path / f"{n}.jsonl", row | {"id": n}) for n, row in enumerate(rows)))
    other, _ = write(tmp_path, lines(tmp_path / "other.jsonl", *rows[:4], {"text": "document 5"}))
    assert one.revision == two.revision != other.revision


def test_lengths_and_languages(tmp_path: Path) -> None:
    english = "This is what was said to all of them, and it was not the first time that they had been there."
    german = "Das ist nicht das erste Mal, dass sie mit uns auf dem Weg zu den anderen sind, und wir sind es auch."
    written, _ = write(tmp_path, lines(tmp_path / "a.jsonl", {"text": english}, {"text": german}, {"text": "x" * 7}))
    shown: list[str] = []
    found = describe(tmp_path / "out.jsonl", written.documents, 50, also=shown.append)
    total = len(english) + len(german) + 7
    shares = {"German": len(german), "English": len(english), "undetermined": 7}
    assert found == Description(len(english), 1, {name: round(n / total, 4) for name, n in shares.items()})
    assert list(found.languages)[-1] == "undetermined", "the largest share comes first"
    assert shown == [english, german, "x" * 7]


def test_rows_that_share_thirteen_words_are_counted_once_and_no_other(tmp_path: Path) -> None:
    folder = write_benchmarks(tmp_path / "benchmarks")
    tasks = ("sciq", "boolq")
    files = {task: folder / f"{task}.arrow" for task in tasks}
    facts = {"benchmarks": {task: {"file": f"{task}.arrow"} for task in tasks}}
    rows = read_benchmark_rows(folder, facts)
    overlap = BenchmarkOverlap(files)
    assert overlap.rows == {"sciq": 12, "boolq": 12}
    assert overlap.shared() == {}
    words = rows["boolq"][3].split()
    overlap.look("Before. " + " ".join(words[:12]) + " after")
    assert overlap.shared() == {}, "twelve words are not enough"
    overlap.look("Before. " + " ".join(words[:13]).upper() + ", after")
    assert overlap.shared() == {"boolq": 1}
    overlap.look(rows["boolq"][3])
    overlap.look(rows["sciq"][0] + " " + rows["sciq"][1])
    assert overlap.shared() == {"sciq": 2, "boolq": 1}


def test_benchmarks_at_hand_are_those_whose_bytes_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEKD_CACHE", str(tmp_path / "cache"))
    folder = write_benchmarks(tmp_path / "benchmarks")
    assert benchmarks_at_hand(folder) == {}, "rows of another release are not looked at"
    real = benchmarks_module.catalogue()
    data = (folder / "copa.arrow").read_bytes()
    pinned = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    entry = real.benchmarks["copa"]
    small = entry.model_copy(update={"file": entry.file.model_copy(update=pinned)})
    changed = real.model_copy(update={"benchmarks": {**real.benchmarks, "copa": small}})
    monkeypatch.setattr(benchmarks_module, "catalogue", lambda: changed)
    assert benchmarks_at_hand(folder) == {"copa": folder / "copa.arrow"}
    assert benchmarks_at_hand() == {}
