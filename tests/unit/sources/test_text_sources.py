"""Texts: documents told apart, readers, names of corpora, and errors that say which line or column."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsekd.errors import SourceError
from sparsekd.sources import corpus_names, fetch_texts, resolve_text
from sparsekd.sources import texts as texts_module
from sparsekd.sources.catalogue import PinnedFile
from sparsekd.sources.documents import JOIN_UNTIL, SPLITS, split_plain

CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEKD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def catalogue_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files in the place of the pinned ones."""
    contents = {
        "wiki.utf8": '<doc id="1" title="One">\nOne\n\nFirst.\n\n</doc>\n<doc id="2" title="Two">\nTwo\n\n\n</doc>\n',
        "c4.utf8": "page one\npage two\n",
        "tiny.utf8": "Once.\n<|endoftext|>\nTwice.\n",
        "code.utf8": "lost\n// ===== BEGIN c =====\n  int x;\n\n// ===== END =====\n",
    }

    def pinned(file: PinnedFile, progress: Any) -> Path:
        path = tmp_path / file.name
        path.write_text(contents[file.name])
        return path

    monkeypatch.setattr(texts_module, "pinned_file", pinned)


@pytest.fixture
def fetch(tmp_path: Path, catalogue_texts: None) -> Callable[..., dict[str, list[Any]]]:
    """Fetch sources into a new directory and read the corpora back, held-out ones left aside."""

    def run(*sources: str, column: str | None = None) -> dict[str, list[Any]]:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        facts = fetch_texts(sources, None, column, out)
        found = {}
        for name in (name for name, fact in facts.items() if fact["role"] == "calibration"):
            found[name] = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().split("\n")[:-1]]
            assert facts[name]["documents"] == len(found[name])
        return found

    return run


def test_wiki_articles_lose_their_marks() -> None:
    text = '<doc id="1" url="u" title="A">\nA\n\nFirst &amp; <b>.\n\n</doc>\n<doc id="2" title="B">\nB\n\n\n</doc>\n'
    assert list(SPLITS["wiki"](text)) == ["A\n\nFirst &amp; <b>.", "B"]


def test_code_files_lose_their_marks_and_what_has_none_is_left_out() -> None:
    text = (
        "x = 1\n\n\ny = 2\n// ===== BEGIN python =====\n\ndef f():\n    pass\n\n\n// ===== END =====\n\n"
        "// ===== BEGIN c++ =====\n    int y;\n// ===== END =====\n\n// ===== BEGIN css =====\nbody { cut"
    )
    assert list(SPLITS["code"](text)) == ["def f():\n    pass", "    int y;", "body { cut"]


def test_stories_and_pages() -> None:
    assert list(SPLITS["endoftext"]("One.\n<|endoftext|>\n\nTwo.\n")) == ["One.", "Two."]
    assert list(SPLITS["lines"]("One.\nTwo.\n")) == ["One.", "Two.", ""]


def test_blocks_of_a_plain_text_are_joined_to_documents() -> None:
    blocks = [f"{n} " + "word " * 100 for n in range(20)]
    documents = list(split_plain("\n\n".join(blocks)))
    assert all(len(document) >= JOIN_UNTIL for document in documents[:-1])
    assert len(documents) > 3
    assert "\n\n".join(documents).split() == " ".join(blocks).split(), "nothing is lost, nothing is twice"
    lines = list(split_plain("\n".join(blocks)))
    assert [d.split() for d in lines] == [d.split() for d in documents], "lines stand for blocks where none is blank"
    assert list(split_plain("a\n<|endoftext|>\nb")) == ["a", "b"]


def test_jsonl_text_messages_and_a_named_column(fetch: Callable[..., dict[str, list[Any]]], tmp_path: Path) -> None:
    rows = [{"text": "Eins, zwei – drei."}, {"text": None}, {"text": "  "}, {"other": 1, "text": "second\u2028line"}]
    (tmp_path / "Mein Text!.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    found = fetch(str(tmp_path / "Mein Text!.jsonl"))
    assert found == {"mein-text": [{"text": "Eins, zwei – drei."}, {"text": "second\u2028line"}]}
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": CHAT, "id": 1, "body": "hi"}) + "\n")
    assert fetch(str(tmp_path / "chats.jsonl")) == {"chats": [{"messages": CHAT}]}
    assert fetch(str(tmp_path / "chats.jsonl"), column="body") == {"chats": [{"text": "hi"}]}


def test_parquet_text_messages_and_a_named_column(fetch: Callable[..., dict[str, list[Any]]], tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3], "text": ["one", None, "three"], "messages": [CHAT, CHAT, []]})
    path = tmp_path / "table.parquet"
    pq.write_table(table, path)
    assert fetch(str(path)) == {"table": [{"text": "one"}, {"text": "three"}]}
    assert fetch(str(path), column="messages") == {"table": [{"messages": CHAT}, {"messages": CHAT}]}
    pq.write_table(table.drop_columns(["text"]), path)
    assert fetch(str(path)) == {"table": [{"messages": CHAT}, {"messages": CHAT}]}


def test_plain_text_with_windows_line_ends_and_a_mark(
    fetch: Callable[..., dict[str, list[Any]]], tmp_path: Path
) -> None:
    (tmp_path / "book.txt").write_bytes("\ufeffOne.\r\n\r\nTwo.\r\n".encode())
    assert fetch(str(tmp_path / "book.txt")) == {"book": [{"text": "One.\n\nTwo."}]}


def test_lone_surrogates_do_not_break_the_file(fetch: Callable[..., dict[str, list[Any]]], tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"text": "a \\ud800 b"}\n')
    assert fetch(str(tmp_path / "odd.jsonl")) == {"odd": [{"text": "a ? b"}]}


BAD: list[tuple[str, bytes, str | None, str]] = [
    ("latin.txt", "caf\xe9".encode("latin-1"), None, r"latin.txt is no UTF-8 text \(byte 3 is 0xe9\)"),
    ("picture.txt", b"GIF\0\0", None, "picture.txt is a binary file"),
    ("empty.txt", b" \n\n", None, "holds no text"),
    ("empty.jsonl", b"", None, "holds no text"),
    ("bad.jsonl", b'{"text": "\xff"}\n', None, r"bad.jsonl, line 1, is no UTF-8"),
    ("broken.jsonl", b'\n{"text": \n', None, r"broken.jsonl, line 2, is no JSON"),
    ("list.jsonl", b"[1]\n", None, "line 1, holds list; each line must be one JSON object"),
    (
        "columns.jsonl",
        b'{"id": 1, "body": "x"}\n',
        None,
        "neither a text nor a messages column; its columns are id, body",
    ),
    ("named.jsonl", b'{"text": "x"}\n', "body", "no column 'body'; its columns are text"),
    ("number.jsonl", b'{"text": 3}\n', None, "line 1, has int in column 'text'"),
    ("chat.jsonl", b'{"messages": [{"role": "user"}]}\n', None, "a message in column 'messages' that is not"),
    ("fake.parquet", b"not parquet at all", None, "fake.parquet is no Parquet file"),
    ("table.csv", b"a,b\n", None, r"a .csv file; it must be a file that ends in .jsonl, .parquet, .txt"),
]


@pytest.mark.parametrize(("name", "data", "column", "message"), BAD, ids=[case[0] for case in BAD])
def test_a_bad_file_is_named_before_a_run(
    tmp_path: Path, name: str, data: bytes, column: str | None, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        resolve_text(str(tmp_path / name), None, column)


def test_missing_paths_directories_and_tables_without_text(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no such file"):
        resolve_text(str(tmp_path / "absent.txt"))
    with pytest.raises(SourceError, match="a directory; it must be a file"):
        resolve_text(str(tmp_path))
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"its columns are id, body\. Set texts\.column"):
        resolve_text(str(tmp_path / "t.parquet"))
    with pytest.raises(SourceError, match="Did you mean wiki"):
        resolve_text("wikki")


def test_a_later_bad_line_stops_the_fetch_and_leaves_no_file(
    fetch: Callable[..., dict[str, list[Any]]], tmp_path: Path
) -> None:
    path = tmp_path / "late.jsonl"
    path.write_text('{"text": "fine"}\n{"text": 7}\n')
    resolve_text(str(path))
    with pytest.raises(SourceError, match="line 2, has int"):
        fetch(str(path))
    assert list((tmp_path / "out").iterdir()) == []


def test_names_of_corpora_are_safe_and_never_collide(tmp_path: Path) -> None:
    sources = [
        "wiki",
        "a/Data Set.jsonl",
        "b/data_set.txt",
        "file:chat.txt",
        "stories.jsonl",
        "me/talks:small",
        "./…/.txt",
    ]
    assert corpus_names(sources) == ("wiki", "data-set", "data-set-2", "chat-2", "stories-2", "talks-small", "txt")


@pytest.mark.usefixtures("catalogue_texts")
def test_the_default_corpora_their_roles_and_equal_bytes(tmp_path: Path) -> None:
    def run(name: str, *sources: str) -> Iterator[tuple[str, bytes]]:
        out = tmp_path / name
        out.mkdir()
        facts = fetch_texts(sources, None, None, out)
        roles[name] = {corpus: fact["role"] for corpus, fact in facts.items()}
        assert {f"{corpus}.jsonl" for corpus in facts} == {p.name for p in out.iterdir()}
        yield from ((p.name, p.read_bytes()) for p in sorted(out.iterdir()))

    roles: dict[str, dict[str, str]] = {}
    first, second = dict(run("one", "wiki", "c4")), dict(run("two", "wiki", "c4"))
    assert first == second
    assert roles["one"] == {"wiki": "calibration", "c4": "calibration", "stories": "held_out", "code": "held_out"}
    assert first["wiki.jsonl"] == b'{"text": "One\\n\\nFirst."}\n{"text": "Two"}\n'
    list(run("three", "code"))
    assert roles["three"] == {"code": "calibration", "stories": "held_out"}


@pytest.mark.usefixtures("catalogue_texts")
def test_a_file_that_changed_since_it_was_resolved_is_refused(tmp_path: Path) -> None:
    path, out = tmp_path / "mine.txt", tmp_path / "out"
    out.mkdir()
    path.write_text("some words")
    revision = resolve_text(str(path)).revision
    facts = fetch_texts([str(path)], [revision], None, out)
    assert facts["mine"]["revision"] == revision
    path.write_text("other words")
    with pytest.raises(SourceError, match=f"texts.revisions has {revision} for .*sparsekd compress"):
        fetch_texts([str(path)], [revision], None, out)


@pytest.mark.usefixtures("catalogue_texts")
def test_a_very_large_text_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "MOST_CHARACTERS", 25)
    (tmp_path / "big.jsonl").write_text('{"text": "ten chars."}\n' * 50)
    said: list[str] = []
    (tmp_path / "out").mkdir()
    facts = fetch_texts([str(tmp_path / "big.jsonl")], None, None, tmp_path / "out", say=said.append)
    assert facts["big"]["documents"] == 3
    assert any("only its first 3 documents" in line for line in said)
