"""The documents say what is true: links, commands, options, settings, files, messages, and the README's Python."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import typer

import sparsekd
from benchmarks import jobs, peers, peers_table
from flows.cli.app import app
from sparsekd import api
from sparsekd.calibration.corpora import read_jsonl
from sparsekd.config import RunConfig
from sparsekd.report import summary, write_report
from sparsekd.settings import all_keys, parse_config
from tests.made_up_run import MadeUpRun

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mlflow/README.md")]
DOCS += sorted((ROOT / "docs").glob("*.md"))
CODE = [file for folder in ("sparsekd", "tasks", "flows") for file in sorted((ROOT / folder).rglob("*.py"))]
NO_SETTINGS = {"model.name", "model.version", "benchmark.json", "export.json"}
"""Fields of summary.json, tags in MLflow and files that look like settings of params.yaml."""

every_document = pytest.mark.parametrize("file", DOCS, ids=lambda file: file.relative_to(ROOT).as_posix())


def blocks(text: str, language: str = r"\w*") -> list[str]:
    """The fenced code blocks of a page."""
    return re.findall(rf"^```(?:{language})\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Its inline code, outside of blocks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def code_lines(text: str) -> list[str]:
    """Everything that a reader could type: inline code, and the lines of blocks without their comments."""
    lines = [line for block in blocks(text) for line in block.splitlines()]
    indented = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    return [re.sub(r"\s+#\s.*$", "", line).strip() for line in [*spans(text), *lines, *indented]]


def slug(heading: str) -> str:
    """The anchor that a forge gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def command_line() -> dict[str, set[str]]:
    """Every command of sparsekd with its options and those of the commands below it, as typer makes them."""
    group: Any = typer.main.get_command(app)

    def options(command: Any) -> set[str]:
        below = [options(inner) for inner in getattr(command, "commands", {}).values()]
        own = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        return own.union({"--help", "-h"}, *below)

    return {name: options(command) for name, command in group.commands.items()}


def messages() -> list[str]:
    """Every text in the code, with … for what is filled in."""
    found = [(ROOT / "Makefile").read_text()]
    for file in CODE:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


# --- links and files -----------------------------------------------------------------------------------------------


@every_document
def test_every_relative_link_resolves(file: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        page = (file.parent / path).resolve() if path else file
        assert page.exists(), target
        assert page.is_relative_to(ROOT), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


@every_document
def test_every_file_of_ours_that_is_named_exists(file: Path) -> None:
    for span in spans(file.read_text()):
        match = re.fullmatch(r"((?:flows|tasks|sparsekd|tests|presets|docs|benchmarks)/[\w./-]*)", span)
        if match and "NAME" not in span:
            assert (ROOT / match[1]).exists(), span


@every_document
def test_no_path_of_a_machine(file: Path) -> None:
    assert not re.search(r"(?<![\w.])/(?:root|home|work|Users|opt)/", file.read_text())


def test_the_readme_says_what_each_file_at_the_top_is() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    table = (ROOT / "README.md").read_text().partition("## What lies where")[2].partition("\n## ")[0]
    named = {span.rstrip("/") for row in table.splitlines() if row.startswith("|") for span in spans(row)}
    missing = {line.split("/")[0] for line in done.stdout.splitlines()} - named - {"README.md"}
    assert not missing


@pytest.mark.parametrize("file", ["README.md", "mkdocs.yml"])
def test_readme_and_navigation_lead_to_every_page_of_docs(file: str) -> None:
    text = (ROOT / file).read_text()
    assert all(f"docs/{page.name}" in text for page in (ROOT / "docs").glob("*.md"))


def test_how_it_works_names_every_folder_of_the_flows() -> None:
    folders = {f"`flows/{file.parent.name}/`" for file in (ROOT / "flows").glob("*/__init__.py")}
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert folders
    assert not [folder for folder in folders if folder not in text]


def test_the_place_of_the_results_is_marked() -> None:
    assert len(re.findall(r"<!-- RESULTS -->.+<!-- /RESULTS -->", (ROOT / "README.md").read_text(), re.DOTALL)) == 1


def test_the_readme_shows_the_run_that_the_results_are_made_from() -> None:
    """Perplexities and speeds with their intervals, as the table has them."""
    text = (ROOT / "README.md").read_text().replace("*", "")
    kept = summary.read_summary(ROOT / "docs" / "results" / "default.json")
    for variant in kept.variants.named().values():
        for corpus in ("wiki", "c4", "stories", "code"):
            found = variant.perplexity[corpus]
            assert f" {found.value:.2f} ({found.low:.2f}–{found.high:.2f}) |" in text
    speed = kept.variants.distilled.speed.ratio
    assert speed
    for ratio in (speed.prefill, speed.decode):
        assert ratio
        assert f" {ratio.value:.2f} × ({ratio.low:.2f}–{ratio.high:.2f}) |" in text


@pytest.mark.parametrize("file", ["README.md", "docs/quantise.md"])
def test_the_quantised_files_are_those_of_that_run(file: str) -> None:
    """Every row of the table: bytes, tasks and speed, and the KL and perplexity as that page rounds them."""
    text = (ROOT / file).read_text()
    quantised = summary.read_summary(ROOT / "docs" / "results" / "default.json").quantised
    assert quantised
    for row in quantised:
        kl = {corpus: score.value for corpus, score in row.kl.items()}
        inside = mean(kl[corpus] for corpus in ("wiki", "c4"))
        outside = mean(kl[corpus] for corpus in ("stories", "code", "chat"))
        tasks = f"{100 * mean(score.value for score in row.tasks.values()):.1f}"
        wiki = row.perplexity["wiki"].value
        readme = f"| {mean(kl.values()):.3f} | {wiki:.1f} | {tasks} % |"
        page = f"| {inside:.3f} | {outside:.3f} | {wiki:.2f} | {tasks} |"
        name = "ours" if row.model == "distilled" else row.model
        assert row.speed
        line = f"| {name} {row.type.upper()} | {row.bytes / 1e6:.0f} {readme if file == 'README.md' else page}"
        assert f"{line} {row.speed.prefill:.0f} | {row.speed.decode:.1f} |" in text


def test_the_page_on_peers_shows_what_is_committed() -> None:
    text = (ROOT / "docs" / "peers.md").read_text()
    found = jobs.read(ROOT / peers.OUT, peers.Job)
    assert peers_table.tables(found) == text.partition("<!-- TABLES -->\n")[2].partition("\n<!-- /TABLES -->")[0]


# --- commands, options, settings -----------------------------------------------------------------------------------


@every_document
def test_every_command_and_option_of_ours_exists(file: Path) -> None:
    known = command_line()
    options = set().union(*known.values())
    for line in code_lines(file.read_text()):
        if line.startswith("sparsekd "):
            name, *words = shlex.split(line.replace("…", ""))[1:]
            assert name in known, line
            for word in words:
                assert not word.startswith("-") or word.split("=")[0] in known[name], line
        elif re.fullmatch(r"--[a-z-]+( .*)?", line):
            assert line.split()[0] in options | {"--help"}, line


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(f"`sparsekd {name}`" in text for name in command_line())


@every_document
def test_every_setting_that_is_named_exists(file: Path) -> None:
    sections = "|".join(name for name in RunConfig.model_fields if name != "preset")
    keys = set(all_keys())
    for line in code_lines(file.read_text()):
        for found in re.findall(rf"(?:-S|--set)[ =]['\"]?((?:{sections})[.\w]+)=", line):
            assert found in keys, line
        match = re.fullmatch(rf"((?:{sections})\.[.\w]+)(?:=.*)?", line)
        if match and match[1] not in NO_SETTINGS:
            assert match[1] in keys, line


@every_document
def test_every_make_target_exists(file: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in code_lines(file.read_text()):
        words = line.split()
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if re.fullmatch(r"[a-z]+", word)} <= targets, line


@every_document
def test_every_module_that_is_run_exists(file: Path) -> None:
    for line in code_lines(file.read_text()):
        for module in re.findall(r"python -m ((?:tasks|flows|sparsekd|benchmarks)[.\w]*)", line):
            path = ROOT / module.replace(".", "/")
            assert module.endswith(".NAME") or path.with_suffix(".py").exists() or (path / "__main__.py").exists(), line


@every_document
def test_every_variable_of_ours_exists(file: Path) -> None:
    code = "".join(path.read_text() for path in [*CODE, ROOT / ".ci/run", ROOT / "Makefile"])
    for name in re.findall(r"\b(?:SPARSEKD|TORCH)_[A-Z_]+\b", file.read_text()):
        assert name in code, name


def test_every_dvc_command_is_one() -> None:
    commands = {
        tuple(words[1:])
        for file in DOCS
        for line in code_lines(file.read_text())
        if (words := line.split())[:1] == ["dvc"] and len(words) > 1
    }
    assert {("repro",), ("metrics", "diff"), ("params", "diff"), ("plots", "show")} <= commands
    program = (
        "import sys, json\nfrom dvc.cli.parser import get_main_parser\n"
        "for command in json.loads(sys.argv[1]): get_main_parser().parse_args(command)"
    )
    asked = repr([list(command) for command in sorted(commands)]).replace("'", '"')
    done = subprocess.run([sys.executable, "-c", program, asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- messages, schema, version -------------------------------------------------------------------------------------


def test_every_message_in_troubleshooting_is_one_of_the_code() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert not re.search(r"^\*\*", text, re.MULTILINE), (
        "each message is a heading: it has an anchor, and the search finds it"
    )
    quoted = [message for lead in re.findall(r"^### .*$", text, re.MULTILINE) for message in spans(lead)]
    quoted = [message for message in quoted if not message.startswith("python -m")]
    assert len(quoted) > 30
    known = messages()
    for message in quoted:
        fragments = [fragment.strip() for fragment in message.split("…")]
        pattern = re.compile(".*?".join(map(re.escape, fragments)), re.DOTALL)
        likely = [text for text in known if all(fragment in text for fragment in fragments)]
        assert any(map(pattern.search, likely)), message


def test_summary_md_documents_every_field_and_no_other() -> None:
    text = (ROOT / "docs" / "summary.md").read_text()
    records = {
        name: model
        for name, model in vars(summary).items()
        if isinstance(model, type) and issubclass(model, summary.Record) and model is not summary.Record
    }
    for name, model in records.items():
        section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert section, name
        rows = re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)
        assert rows == list(model.model_fields), name
    assert f"**Schema version {summary.SUMMARY_VERSION}.**" in text


def test_summary_md_documents_every_metric(tmp_path: Path) -> None:
    section = (ROOT / "docs" / "summary.md").read_text().partition("## metrics.json")[2]
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    found = summary.metrics(made_up_summary(tmp_path))
    assert {re.sub(r"^perplexity_ratio_\w+", "perplexity_ratio_CORPUS", name) for name in found} == set(documented)


def test_the_python_in_summary_md_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up_summary(tmp_path)
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks((ROOT / "docs" / "summary.md").read_text(), "python")
    exec(compile(snippet, "docs/summary.md", "exec"), {})
    assert "value=" in capsys.readouterr().out


def made_up_summary(folder: Path) -> summary.Summary:
    artifacts = MadeUpRun(folder / "data").write()
    (folder / "data" / "report").mkdir()
    return write_report(artifacts, folder / "data" / "report")


def test_the_changelog_has_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version in headings


def test_the_licence_is_the_one_that_the_package_declares() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    text = (ROOT / "LICENSE").read_text()
    assert declared == "Apache-2.0"
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


# --- the README's Python -------------------------------------------------------------------------------------------


def readme_snippet() -> str:
    found = [block for block in blocks((ROOT / "README.md").read_text(), "python") if "from sparsekd import" in block]
    assert len(found) == 1
    return found[0]


def test_the_readmes_python_is_short_and_its_names_exist() -> None:
    tree = ast.parse(readme_snippet())
    assert len(tree.body) <= 5
    imported = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert set(imported) <= set(sparsekd.__all__)
    assert all(callable(getattr(sparsekd, name)) for name in imported)


def test_the_readmes_python_runs(
    make_model: Callable[..., Path],
    tiny_texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As it stands, on a tiny model; only the defaults are made small and the texts local."""

    def fetch_texts(
        _sources: Any, _revisions: Any, _column: Any, out: Path, *_: Any, **__: Any
    ) -> dict[str, dict[str, str]]:
        assert read_jsonl(tiny_texts)
        (out / "wiki.jsonl").write_bytes(tiny_texts.read_bytes())
        return {"wiki": {"role": "calibration"}}

    small = parse_config(
        {
            "runtime": {"threads": 1},
            "calibrate": {"tokens": 1024, "sequence_length": 64, "held_out_tokens": 128, "chat_prompts": 2}
            | {"minimum_characters": 50, "chat_tokens": 4, "held_out_share": 0.2},
            "prune": {"statistics_tokens": 512, "multiple_of": 8},
            "distill": {"compile": "never", "validation_tokens": 64},
            "evaluate": {"tasks": [], "batch_size": 2},
            "report": {"prompt_tokens": 2},
        }
    )
    monkeypatch.setattr(api, "RunConfig", lambda: small)
    monkeypatch.setattr(api, "fetch_texts", fetch_texts)
    make_model("llama").rename(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    exec(compile(readme_snippet(), "README.md", "exec"), {})
    assert (tmp_path / "distilled" / "model.safetensors").is_file()
    assert "'wiki': Perplexity(value=" in capsys.readouterr().out
