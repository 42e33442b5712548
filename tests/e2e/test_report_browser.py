"""The page in a real browser: offline, wide and narrow, light and dark."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from sparsekd.report import Context, write_report
from sparsekd.report.comparison import write_comparison
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.summarise import summarise
from tests.made_up_prices import made_up_prices
from tests.made_up_run import EXCESS, MadeUpRun

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"),
]


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--no-proxy-server",
        "--disable-background-networking",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


def made_up(root, excess):
    return summarise(ReportInputs.read(MadeUpRun(root, excess=EXCESS | {"distilled": excess}).write()))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    root = tmp_path_factory.mktemp("comparison")
    results = {f"width {width}": made_up(root / str(width), 0.5 - width / 2) for width in (0.9, 0.75, 0.6)}
    return write_comparison(results, root / "out").as_uri()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    out = root / "out"
    out.mkdir()
    results = {f"width {width}": made_up(root / str(width), 0.5 - width / 2) for width in (0.9, 0.6)}
    context = Context(
        runs=results, prices=made_up_prices(), seconds={"fetch": None, "distill": 754.0}, commit="c0ffee0"
    )
    write_report(MadeUpRun(root / "data").write(), out, context=context)
    alone = root / "sent to a colleague"  # the file alone must do
    alone.mkdir()
    return (out / "index.html").rename(alone / "index.html").as_uri()


def show(browser, page, width=1280, scheme="light"):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page)


def test_opens_offline_without_errors_or_requests(browser, page):
    browser.get_log("performance")
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    show(browser, page)
    assert browser.title == "SmolLM2-135M-Instruct-width-0.75: what was kept"
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert page in urls  # the log does record requests
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_and_every_picture_shows(browser, page, width, scheme):
    show(browser, page, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide, there = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= there
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
        ".map(b => [b.left, b.right, b.width, b.height])"
    )
    assert len(boxes) == 11
    assert all(left >= 0 and right <= there and w > 250 and h > 80 for left, right, w, h in boxes)


def test_the_main_table_fits_a_phone(browser, page):
    show(browser, page, 390)
    table, room = browser.execute_script(
        "const t = document.querySelector('table.main'); return [t.scrollWidth, t.parentElement.clientWidth]"
    )
    assert table <= room


def test_pictures_follow_the_dark_theme(browser, page):
    def colours():
        return browser.execute_script(
            "return [getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('svg text')).fill]"
        )

    show(browser, page, scheme="light")
    light = colours()
    show(browser, page, scheme="dark")
    dark = colours()
    assert light[0] == "rgb(255, 255, 255)"
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_text_in_pictures_is_legible_on_a_phone(browser, page):
    show(browser, page, 390)
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(s => {"
        " const scale = s.getBoundingClientRect().width / s.viewBox.baseVal.width;"
        " const sizes = [...s.querySelectorAll('text')].map(t => parseFloat(getComputedStyle(t).fontSize));"
        " return Math.min(...sizes) * scale})"
    )
    assert min(sizes) >= 9.5


@pytest.mark.parametrize("width", [1280, 390])
def test_a_coloured_word_tells_by_keyboard_what_was_expected(browser, page, width):
    from selenium.webdriver.common.keys import Keys

    show(browser, page, width)
    browser.find_element("css selector", "details.passage summary").send_keys(Keys.TAB)
    word = browser.switch_to.active_element
    assert word.get_attribute("class").startswith("token")
    tips = [tip for tip in browser.find_elements("css selector", ".tip") if tip.is_displayed()]
    assert [tip.text for tip in tips] == [word.get_attribute("aria-label")]
    box = tips[0].rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    word.send_keys(Keys.TAB)
    assert not tips[0].is_displayed()


@pytest.fixture(scope="module")
def axe():
    package = find_spec("axe_playwright_python")  # for the script that it carries: selenium runs it
    if package is None:
        pytest.skip("needs axe-core: pip install -r requirements.lock")
    return (Path(package.origin).parent / "axe.min.js").read_text()


def barriers(browser, axe):
    """What axe finds in the page as it stands: rule, and the first element that breaks it."""
    browser.set_script_timeout(100)  # it takes 20 s and more on busy cores
    browser.execute_script(axe)
    return browser.execute_async_script(
        "const done = arguments[0];"
        "axe.run().then(r => done(r.violations.map(v => [v.id, v.nodes[0].html, v.nodes[0].failureSummary])))"
    )


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(browser, page, axe, width, scheme):
    show(browser, page, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert barriers(browser, axe) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_a_comparison_is_as_good_a_page(browser, comparison, axe, width):
    show(browser, comparison, width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide, there = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= there
    assert browser.find_elements("css selector", "th .sort")
    assert barriers(browser, axe) == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_axe_does_find_barriers(browser, page, axe):
    show(browser, page)
    browser.execute_script("document.querySelector('figure [role=img]').removeAttribute('aria-label')")
    browser.execute_script("document.querySelector('.intro').style.color = 'var(--grid)'")
    assert {rule for rule, *_ in barriers(browser, axe)} == {"role-img-alt", "color-contrast"}


def test_tables_sort_by_click_and_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    show(browser, page)
    table = "[aria-label^='Distilled: test tokens'] table"
    heading = browser.find_elements("css selector", f"{table} th .sort")[1]

    def shares():
        cells = browser.find_elements("css selector", f"{table} tbody tr td:nth-child(2)")
        return [float(cell.text.removesuffix(" %")) for cell in cells]

    measured = shares()
    assert measured != sorted(measured)
    # the page scrolls smoothly, and a click would come while it moves
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", heading)
    heading.click()
    assert shares() == sorted(measured)
    heading.send_keys(Keys.ENTER)
    assert shares() == sorted(measured, reverse=True)
    sorts = [th.get_attribute("aria-sort") for th in browser.find_elements("css selector", f"{table} thead th")]
    assert sorts == [None, "descending", None]


def test_no_other_script_runs(browser, page):
    show(browser, page)
    browser.execute_script(
        "const s = document.createElement('script'); s.text = 'window.run = 1'; document.body.append(s)"
    )
    assert browser.execute_script("return window.run") is None
