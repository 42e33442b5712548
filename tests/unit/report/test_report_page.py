"""The page and the pictures as files: self-contained, escaped, repeatable, readable, and never a crash."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sparsekd.report import write_report
from sparsekd.report.drawing import THEME
from sparsekd.report.plots import loss_curve
from tests.made_up_run import PROMPTS, SOURCE, MadeUpRun

PICTURES = {
    "loss_curve",
    "layer_error",
    "perplexity",
    "agreement",
    "tasks",
    "speed",
    "profile",
    "reliability",
    "quantised",
}
STYLE = Path(write_report.__code__.co_filename).parent / "templates" / "style.css.jinja"


class Outline(HTMLParser):
    """Tags with their attributes, and the text of headings and cells."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.ids = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def write(tmp_path, **differing):
    out = tmp_path / "out"
    out.mkdir(parents=True)
    summary = write_report(MadeUpRun(tmp_path / "data", **differing).write(), out)
    return out, (out / "index.html").read_text(), summary


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write(tmp_path_factory.mktemp("report"))


def test_every_file_is_there(report):
    files = {path.name for path in report[0].iterdir()}
    assert files == {"summary.json", "metrics.json", "index.html", "README.md"} | {f"{name}.png" for name in PICTURES}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report[0].glob("*.png"))


def test_equal_inputs_give_equal_bytes(report, tmp_path):
    again, _, _ = write(tmp_path)
    for path in report[0].iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_nothing_is_loaded_from_elsewhere(report):
    html = report[1]
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", html)
    assert "@import" not in html
    assert html.count("<script") == 1
    assert "<script>// Headings" in html  # the page's own, and the policy lets no other run
    assert not re.search(r"url\((?!#)", html)
    policy = [meta["content"] for meta in Outline(html).all("meta") if "Content-Security-Policy" in meta.values()]
    assert policy[0].startswith("default-src 'none'")


def test_no_time_host_or_path_of_this_machine(report):
    for path in report[0].iterdir():
        content = path.read_bytes()
        assert str(report[0].parent).encode() not in content, path.name
        assert b"tIME" not in content
        assert b"Matplotlib" not in content
        assert b"matplotlib.org" not in content


def test_answers_and_names_cannot_become_markup(tmp_path):
    source = SOURCE | {"label": "<img src=x onerror=alert(1)>"}
    _, html, _ = write(tmp_path, source=source, tasks={"<b>task": (20, 40, 0.25, "acc", 0.8)})
    assert "<img" not in html
    assert "<b>" not in html
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in html  # the answer that the made-up model gave
    assert "&lt;b&gt;task" in html


def test_ids_are_unique_and_references_resolve(report):
    outline = Outline(report[1])
    assert len(outline.ids) == len(set(outline.ids))
    references = re.findall(r"(?:href=\"#|url\(#|aria-labelledby=\")([^\")]+)", report[1])
    assert set(references) <= set(outline.ids)


def test_every_picture_is_described(report):
    outline = Outline(report[1])
    described = [attributes["aria-label"] for attributes in outline.all("div") if attributes.get("role") == "img"]
    assert len(described) == len(outline.all("svg")) == len(PICTURES)
    assert all(len(text) > 40 and re.search(r"\d", text) for text in described)
    assert any("arc_easy dense 52.0, pruned 47.0, distilled 48.0" in text for text in described)


def test_tables_have_headings_for_columns_and_rows(report):
    outline = Outline(report[1])
    assert len(outline.all("table")) >= 6
    assert all(heading.get("scope") in ("col", "row", "rowgroup") for heading in outline.all("th"))
    for attributes in outline.all("div"):
        if attributes.get("class") == "scroll":  # a region that scrolls must be reachable by keyboard and have a name
            assert attributes["tabindex"] == "0"
            assert attributes.get("aria-label") or attributes.get("aria-labelledby")


def test_heading_levels_are_not_skipped(report):
    levels = [int(tag[1]) for tag, _ in Outline(report[1]).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_page_says_what_must_be_said(report):
    _, html, summary = report
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).replace("\u00a0", " ")
    for words in (
        "SmolLM2-135M-Instruct, de-quantised from Q4_1",
        "98.4 MB",
        "compared at equal dtype",
        "25.0 %",
        "18.7 %",
        "14.8 %",
        "lm_eval --model hf",
        "not in the mean",
        "window and stride of 512 tokens",
        "Predicted",
        "Intel(R) Xeon(R) Platinum 8581C",
        "same source as calibration",
        "never trained on",
        "sequence_length",
        *PROMPTS,
    ):
        assert words in text, words
    assert all(warning in text for warning in summary.warnings)


@pytest.mark.parametrize(
    "differing",
    [
        {"tasks": {}, "rounds": 1},
        {"corpora": ("stories",), "tasks": {}, "rounds": 0},
        {"corpora": (), "source": {"name": "/somewhere/mine", "kind": "local"}},
        {"documents": 1, "steps": 1},
        {"noise": 0.6, "tasks": {f"task_{i}": (8, 8, None, "exact_match", 0.9) for i in range(25)}},
        {"excess": {"dense": 0.0, "pruned": 0.0, "distilled": -0.1}},
        {
            "excess": {"dense": 0.0, "pruned": 4.0, "distilled": 2.0},
            "tasks": {"wikitext": (20, 20, None, "word_perplexity", 0.5)},
        },
    ],
    ids=lambda differing: "-".join(differing),
)
def test_less_or_odd_input_still_makes_a_page(tmp_path, differing):
    out, html, _ = write(tmp_path, **differing)
    assert html.rstrip().endswith("</html>")
    for name in re.findall(r"id=\"(\w+)-figure_1\"", html):
        assert (out / f"{name}.png").is_file()
    json.loads((out / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_what_was_not_measured_is_said_in_words(tmp_path):
    _, html, _ = write(tmp_path, tasks={}, rounds=0)
    assert "No tasks were scored in this run." in html
    assert "Speed against dense was not measured in this run." in html
    assert "lm_eval" not in re.sub(r"(?s)<details>\n<summary>Every setting.*?</details>", "", html)


def test_absent_optional_files_leave_their_sections_out(tmp_path):
    artifacts = MadeUpRun(tmp_path, tasks={}).write()
    for file in ("distilled/curve.csv", "pruned/layers.csv", "evaluation/distilled/prompts.json"):
        (tmp_path / file).unlink()
    for name in ("raw/texts", "calibration", "benchmark"):
        del artifacts[name]
    out = tmp_path / "out"
    out.mkdir()
    write_report(artifacts, out)
    html = (out / "index.html").read_text()
    assert "How it was made" not in html
    assert "side by side" not in html
    assert "window and stride" not in html  # not recorded, so not claimed


def test_settings_of_another_version_are_shown_as_they_are(tmp_path):
    run = MadeUpRun(tmp_path, tasks={})
    artifacts = run.write()
    manifest = artifacts["pruned"].manifest
    manifest.config["prune"] = {"width": 0.5, "of_tomorrow": "yes"}
    out = tmp_path / "out"
    out.mkdir()
    write_report(artifacts, out)
    assert "of_tomorrow" in (out / "index.html").read_text()


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme):
    block = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    for text in ("ink", "faint", "link"):
        for ground in ("paper", "panel"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["ink"], colours["warn"]) >= 4.5
    for mark in ("dense", "pruned", "distilled", "op-ffn", "op-attention", "op-lm-head"):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark


def test_pictures_and_page_agree_on_colours():
    light = dict(re.findall(r"--([\w-]+): (#\w{6})", re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)[0]))
    assert {name.removeprefix("--"): colour for colour, name in THEME.items()}.items() <= light.items()


def test_the_report_needs_no_torch():
    code = (
        "import sys, sparsekd.report; "
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'lm_eval', 'huggingface_hub'} & set(sys.modules); "
        "print(*heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_loss_curve_is_named_after_the_divergence_that_was_trained():
    curve = {name: np.array([2.0, 1.0]) for name in ("tokens", "kl", "ce")}
    assert "Jensen-Shannon divergence from 2.000" in loss_curve(curve, "Jensen-Shannon divergence").alt
