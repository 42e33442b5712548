"""A checkout with two finished runs whose every link is real: git, DVC's cache, an experiment, MLflow's database.

`half` is kept as an experiment and was made from uncommitted code; `plain` worked in the checkout. Code is made up: for
each dependency of dvc.yaml a file or a directory with names that are hard to sort or to ignore as DVC does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner, Result

from flows.cli.app import app
from flows.workspaces.commands import dvc, git
from flows.workspaces.workspace import experiments
from sparsekd.artifacts import Artifact, library_versions
from tasks.graph import read_graph
from tasks.track import track
from tests.tracked_project import REPOSITORY, Project, client, stored

EDITED = "tasks/prune.py"
_ODD_NAMES = ("a.py", "a/b.py", "a-b.py", "ä ö.txt", "kept/.hidden", "kept/x.cfg", "empty")
_IGNORED_NAMES = ("gone.old", "__pycache__/a.pyc", "kept/local.tmp")
_IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org")


@dataclass(frozen=True)
class Traced:
    """The checkout, and the MLflow runs of `half` and `plain`. Their models are versions 1 and 2 of `tiny`."""

    project: Project
    half: str
    plain: str

    @property
    def root(self) -> Path:
        return self.project.root

    @property
    def store(self) -> Any:
        return client(self.project.database)

    def artifact(self, run: str, path: str) -> Path:
        """A file that MLflow keeps of a run."""
        return self.root / "mlflow" / "artifacts" / run / "artifacts" / path

    def registered(self, version: str, path: str) -> Path:
        """A file of a version of `tiny`."""
        return stored(self.project.database, version).parent / path

    def lock(self, run: str) -> dict[str, Any]:
        stages: dict[str, Any] = yaml.safe_load(self.artifact(run, "dvc.lock").read_text())["stages"]
        return stages

    def out(self, run: str, path: str) -> str:
        """The md5 that dvc.lock of a run has for an output."""
        return next(o["md5"] for stage in self.lock(run).values() for o in stage["outs"] if o["path"] == path)

    def dependency(self, run: str, path: str) -> str:
        """The md5 that dvc.lock of a run has for a dependency."""
        deps = [dep for stage in self.lock(run).values() for dep in stage["deps"]]
        return str(next(dep["md5"] for dep in deps if dep["path"] == path))

    def cached(self, run: str, out: str, name: str) -> Path:
        """The object of a file of an output; without a name, the one that lists them."""
        listing = self.object(self.out(run, out))
        if not name:
            return listing
        return self.object(next(e["md5"] for e in json.loads(listing.read_text()) if e["relpath"] == name))

    @property
    def versions(self) -> dict[str, str]:
        """The libraries that the stages ran with."""
        return Artifact.read(self.root / "data/raw/model").manifest.versions

    def object(self, digest: str) -> Path:
        return self.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]

    @contextlib.contextmanager
    def tags(self, run: str, version: str | None = None, **values: str) -> Iterator[None]:
        """Other tags of a run, and of its version, for the block; `__` stands for a dot."""
        store = self.store
        tags = {key.replace("__", "."): value for key, value in values.items()}
        before = {key: store.get_run(run).data.tags[key] for key in tags}
        try:
            for key, value in tags.items():
                store.set_tag(run, key, value)
                if version:
                    store.set_model_version_tag("tiny", version, key, value)
            yield
        finally:
            for key, value in before.items():
                store.set_tag(run, key, value)
                if version:
                    store.set_model_version_tag("tiny", version, key, value)

    @contextlib.contextmanager
    def forged_lock(self, old: str, new: str, **tags: str) -> Iterator[None]:
        """dvc.lock of `plain` with another text, and every record of its hash made to fit: the deeper links decide."""
        path = self.artifact(self.plain, "dvc.lock")
        text = path.read_text()
        assert old in text
        forged = text.replace(old, new).encode()
        sha256 = hashlib.sha256(forged).hexdigest()
        with replaced(path, forged), self.tags(self.plain, "2", dvc__lock__sha256=sha256, **tags):
            yield

    def commit_with(self, base: str, path: str, text: str) -> str:
        """A commit that is `base` with another text of one file; its hash. No branch names it."""
        environment = {**os.environ, "GIT_INDEX_FILE": str(self.root / ".git" / "index.forged")}

        def run(*arguments: str, text: str = "") -> str:
            line = ["git", *_IDENTITY, *arguments]
            done = subprocess.run(
                line, cwd=self.root, env=environment, input=text, check=True, capture_output=True, text=True
            )
            return done.stdout.strip()

        run("read-tree", base)
        blob = run("hash-object", "-w", "--stdin", text=text)
        run("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
        return run("commit-tree", run("write-tree"), "-p", base, "-m", "forged")

    @contextlib.contextmanager
    def experiment_at(self, commit: str | None) -> Iterator[None]:
        """The experiment `half` is another commit, or gone, for the block."""
        kept = experiments(self.root)["half"]
        ref = f"refs/exps/{kept.commit[:2]}/{kept.commit[2:]}/half"
        try:
            git(self.root, "update-ref", *(["-d", ref] if commit is None else [ref, commit]))
            yield
        finally:
            git(self.root, "update-ref", ref, kept.tree)


def lineage(*arguments: str) -> Result:
    """`sparsekd lineage …` in this process."""
    return CliRunner().invoke(app, ["lineage", *arguments])


def values(*arguments: str) -> dict[str, Any]:
    """What `--json` prints."""
    result = lineage(*arguments, "--json")
    assert result.exit_code in {0, 1}, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def first_difference(asked: str) -> dict[str, Any]:
    """What `--verify` finds, where it does."""
    found: dict[str, Any] = values(asked, "--verify")["verification"]["difference"]
    return found


@contextlib.contextmanager
def replaced(path: Path, content: bytes | None) -> Iterator[None]:
    """A file with other bytes, or none, for the block. What is linked to it keeps its own."""
    aside = path.with_name(path.name + ".aside")
    there = path.exists()
    if there:
        path.rename(aside)
    try:
        if content is not None:
            path.write_bytes(content)
        yield
    finally:
        path.unlink(missing_ok=True)
        if there:
            aside.rename(path)


def one_byte(path: Path) -> contextlib.AbstractContextManager[None]:
    """The file with one byte changed, as long as before, for the block."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return replaced(path, bytes(content))


def make_traced(root: Path, database: Path) -> Traced:
    """Make it at `root`, with a copy of an MLflow `database` that has no runs."""
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(database, root / "mlflow" / "mlflow.db")
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    _write_code(root)
    project = Project(root, yaml.safe_load((REPOSITORY / "params.yaml").read_text()))
    project.run()
    (root / "dvc.lock").unlink()
    git(root, "init", "-q", ".")
    dvc(root, "init", "-q")
    (root / ".dvcignore").write_text("# as the real one\n__pycache__\n*.old\n")
    git(root, "add", ".")
    git(root, *_IDENTITY, "commit", "-q", "-m", "the code")

    edited = (root / EDITED).read_text()
    (root / EDITED).write_text("edited, and never committed\n")
    dvc(root, "commit", "--force")
    half = track(root, "flow-half", name="half")
    dvc(root, "exp", "save", "--force", "--name", "half")
    (root / EDITED).write_text(edited)
    project.run(width=0.5, weights=b"others")
    (root / "dvc.lock").unlink()
    dvc(root, "commit", "--force")
    plain = track(root, "flow-plain")
    assert half.run_id
    assert plain.run_id
    client(project.database).set_registered_model_alias("tiny", "champion", "1")
    return Traced(project, half.run_id, plain.run_id)


def _write_code(root: Path) -> None:
    """Something for every dependency of dvc.yaml, and the files that pin libraries."""
    for path in {dep for stage in read_graph(root).values() for dep in stage.deps if not dep.startswith("data/")}:
        names = [path] if Path(path).suffix else [f"{path}/{name}" for name in (*_ODD_NAMES, *_IGNORED_NAMES)]
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("" if name.endswith("empty") else f"code of {name}\n")
    (root / "sparsekd" / ".dvcignore").write_text("**/kept/*.tmp\n")
    versions = library_versions()
    torch = versions.pop("torch").partition("+")[0]
    pins = [f"{name.replace('_', '-')}=={version} \\\n    --hash=sha256:0\n" for name, version in versions.items()]
    pins.append("numpy==0.1 ; python_full_version < '3' \\\n    --hash=sha256:0\n")
    (root / "requirements.lock").write_text("".join(pins))
    (root / "pyproject.toml").write_text(f'[project]\nname = "x"\ndependencies = ["torch=={torch}", "numpy>=2"]\n')
    (root / ".gitignore").write_text("/data/\n/mlflow/*\n/.sparsekd/\n__pycache__/\n")
