"""A user's corpora as sources: named like the catalogue's, pinned to a version, and loud when the bytes are others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from sparsekd.errors import ConfigError, SourceError
from sparsekd.sources import CorpusVersion, corpus_names, fetch_texts, resolve_text
from sparsekd.sources import texts as texts_module
from sparsekd.sources.texts import ResolvedText

CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]


def version(place: Path, *records: object) -> CorpusVersion:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    place.write_bytes(data)
    return CorpusVersion(hashlib.sha256(data).hexdigest(), len(data), (place.parent / "absent", place), "ask its owner")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[CorpusVersion]]:
    """Corpus `talks` with two versions, the second one newer, in files without a suffix; nothing is held out."""
    plain = texts_module.catalogue().model_copy(update={"held_out": ()})
    monkeypatch.setattr(texts_module, "catalogue", lambda: plain)
    monkeypatch.chdir(tmp_path)
    old = version(tmp_path / "old", {"text": "one"}, {"text": "two"})
    new = version(tmp_path / "new", {"messages": CHAT})
    return {"talks": [new, old]}


def fetch(out: Path, source: str, revision: str | None, own: dict[str, list[CorpusVersion]]) -> list[object]:
    """As a run does it, where texts.column is meant for another source."""
    out.mkdir()
    resolved = resolve_text(source, revision, "body", own)
    facts = fetch_texts([resolved.source], [resolved.revision], "body", out, own=own)
    assert (facts["talks"]["source"], facts["talks"]["revision"]) == ("talks", resolved.revision)
    return [json.loads(line) for line in (out / "talks.jsonl").read_text().splitlines()]


def test_a_name_is_the_newest_version_and_a_pinned_one_stays(
    own: dict[str, list[CorpusVersion]], tmp_path: Path
) -> None:
    new, old = own["talks"]
    assert resolve_text("talks", None, None, own) == ResolvedText("talks", new.revision, "corpus")
    assert resolve_text("talks", "c" * 40, None, own).revision == new.revision, "a commit is another source's"
    for source, revision in (("talks", old.revision), (f"talks@{old.revision[:6]}", None)):
        assert resolve_text(source, revision, None, own) == ResolvedText("talks", old.revision, "corpus")
    assert fetch(tmp_path / "one", "talks", None, own) == [{"messages": CHAT}]
    assert fetch(tmp_path / "two", "talks", old.revision, own) == [{"text": "one"}, {"text": "two"}]


def test_resolving_needs_no_bytes_and_fetching_says_what_to_do(
    own: dict[str, list[CorpusVersion]], tmp_path: Path
) -> None:
    revision = own["talks"][0].revision
    (tmp_path / "new").unlink()
    assert resolve_text("talks", None, None, own).revision == revision
    with pytest.raises(SourceError) as error:
        fetch(tmp_path / "out", "talks", None, own)
    said = f"Version {revision[:12]} of talks is recorded, but its bytes are not on this machine; ask its owner."
    assert str(error.value) == said


def test_bytes_that_are_others_are_refused_and_nothing_is_written(
    own: dict[str, list[CorpusVersion]], tmp_path: Path
) -> None:
    place = tmp_path / "new"
    place.write_bytes(place.read_bytes().replace(b"Hello", b"Hallo"))
    with pytest.raises(SourceError, match=rf"of talks is damaged: the sha256 of .*new is .*, not {'.' * 64}\. Remove"):
        fetch(tmp_path / "out", "talks", None, own)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("source", "revision", "said"),
    [
        ("talks", "0" * 64, "asks for version 000000000000 of talks, which is not recorded here: it has "),
        ("talks@000000", None, "asks for version 000000 of talks, which is not recorded here"),
        ("talks@main", None, "asks for version 'main' of talks; a version is the first 6 or more digits of its hash"),
        ("talks@abcde", None, "asks for version 'abcde' of talks"),
        ("talks@000000", "1" * 64, "asks for version 000000 of talks and the revision setting beside it for 1111"),
        ("talks", "main", "The revision of texts.sources is 'main'; talks is not on the hub"),
        ("talk", None, "Did you mean talks? The catalogue has wiki, c4, stories, code. Your corpora are talks."),
    ],
)
def test_a_version_that_is_not_there(
    own: dict[str, list[CorpusVersion]], source: str, revision: str | None, said: str
) -> None:
    with pytest.raises((ConfigError, SourceError)) as error:
        resolve_text(source, revision, None, own)
    assert said in str(error.value)


def test_a_beginning_that_two_versions_share_is_refused(tmp_path: Path) -> None:
    twins = [CorpusVersion(f"abcdef{digit}" + "0" * 57, 1, (), "") for digit in "12"]
    with pytest.raises(SourceError, match="version abcdef of talks, which stands for several"):
        resolve_text("talks@abcdef", None, None, {"talks": twins})
    assert resolve_text("talks@abcdef2", None, None, {"talks": twins}).revision == twins[1].revision


def test_a_corpus_keeps_its_name_and_comes_before_a_path(own: dict[str, list[CorpusVersion]], tmp_path: Path) -> None:
    (tmp_path / "talks").mkdir()
    assert resolve_text("talks", None, None, own).kind == "corpus"
    assert corpus_names(["talks.jsonl", "talks", "wiki"], own) == ("talks-2", "talks", "wiki")
    assert corpus_names(["talks.jsonl", "wiki"], own) == ("talks", "wiki"), "one that is no source takes no name"
