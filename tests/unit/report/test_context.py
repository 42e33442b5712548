"""What a page tells beside its own run: only results that compare, where it comes from, how to repeat it."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsekd.report import Context, write_report
from sparsekd.report.comparison import headline, write_comparison
from sparsekd.report.context import comparable, groups, same_model
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.others import THIS, among_others
from sparsekd.report.provenance import cost_table, repeat
from sparsekd.report.summarise import summarise
from sparsekd.report.tradeoff import results
from sparsekd.settings import parse_config
from tests.made_up_prices import made_up_prices
from tests.made_up_run import EXCESS, MadeUpRun


def of(root, **differing):
    return summarise(ReportInputs.read(MadeUpRun(root, **differing).write()))


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    root = tmp_path_factory.mktemp("known")
    return {
        "mine": of(root / "mine"),
        "better": of(root / "better", excess=EXCESS | {"distilled": 0.05}),
        "elsewhere": of(root / "elsewhere", documents=12),
    }


ROOT = Path(__file__).parents[3]


def test_only_the_same_dense_model_on_the_same_text_compares(known):
    assert comparable(known["mine"], known["better"])
    assert not comparable(known["mine"], known["elsewhere"])
    assert [list(group) for group in groups(known)] == [["mine", "better"], ["elsewhere"]]


def test_a_model_measured_again_is_the_same(known):
    assert same_model(known["mine"], known["mine"].model_copy(update={"verdict": "again"}))
    assert not same_model(known["mine"], known["better"])


def test_this_run_stands_among_those_that_compare_and_not_beside_itself(known):
    found = among_others(known["mine"], Context(runs=known))
    assert {result.label: result.dominated_by for result in found} == {THIS: "better", "better": None}
    assert among_others(known["mine"], Context(runs={"mine": known["mine"]})) == []


def test_the_page_shows_what_is_known(known, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    context = Context(
        runs=known, prices=made_up_prices(), seconds={"fetch": None, "distill": 754.4}, commit="c0ffee", edited=True
    )
    write_report(MadeUpRun(tmp_path / "data").write(), out, context=context)
    page = (out / "index.html").read_text()
    assert "dominated by better" in page
    assert "12 min 34 s" in page
    assert "kept from before" in page
    assert "<code>c0ffee</code>, with edits" in page
    assert "git checkout c0ffee\nsparsekd compress --preset default" in page
    assert (out / "trade_off.png").is_file()
    assert (out / "preview.png").is_file()
    weights = ReportInputs.read(MadeUpRun(tmp_path / "again").write()).weights["distilled"]
    assert weights
    assert all(digest in page for digest in weights.values())


def test_what_is_damaged_or_of_another_version_is_not_told(tmp_path):
    path = tmp_path / "context.json"
    assert Context.read(path) == Context()
    for text in ("{", '{"runs": {"a": {}}}', '{"unknown": 1}'):
        path.write_text(text)
        assert Context.read(path) == Context()


def test_no_times_no_table():
    assert cost_table(Context(seconds={"fetch": None})) is None


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"prune": {"width": 0.5}, "distill": {"alpha": 0.3}},
        {"prune": {"width": None, "total_reduction": 0.2}},
        {"model": {"source": "hf:owner/name", "revision": "abc"}, "evaluate": {"tasks": ["piqa", "sciq"]}},
        {"texts": {"sources": ["wiki", "stories"]}},
    ],
)
def test_the_command_gives_the_settings_back(values, monkeypatch):
    """The command line itself reads it: what it would settle is the configuration that it came from."""
    from flows.cli import app as cli
    from flows.commands import job
    from flows.settings import params

    config = parse_config(values)
    (command,) = repeat(config.model_dump(mode="json"), config, Context())
    asked = []
    monkeypatch.setattr(job, "compress", asked.append)
    done = CliRunner().invoke(cli.app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    settled = job.settle(ROOT, params.load_preset("default"), asked[0], ROOT)
    assert settled.model_dump(exclude={"model": {"revision"}}) == config.model_dump(exclude={"model": {"revision"}})


def test_a_path_of_the_user_is_not_told():
    config = parse_config({"model": {"source": "file:/home/someone/secret/model"}})
    (command,) = repeat(config.model_dump(mode="json"), config, Context())
    assert "someone" not in command
    assert "model" in command


def test_results_on_one_page(known, tmp_path):
    page = write_comparison(known, tmp_path / "comparison").read_text()
    assert headline(results(groups(known)[0])).startswith("1 of 2 is dominated by no other: better")
    assert page.count("<h2>") == 2
    for name, summary in known.items():
        assert f"{name}: what its report says" in page
        assert summary.model.label in page
    assert list((tmp_path / "comparison").glob("*.png"))
