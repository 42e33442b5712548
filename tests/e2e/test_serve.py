"""`sparsekd serve`: both servers, the form in a real browser, cancellation, and every way to end it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.server.servers import answers, free_port
from flows.workspaces.commands import git
from flows.workspaces.workspace import experiments, left_behind
from tasks.repro import reproduce
from tasks.state import read_json
from tests.databases import copy_mlflow_database
from tests.miniature import STAGES, Miniature, kill, make_miniature, started, wait_until
from tests.prefect_api import ask

pytestmark = pytest.mark.slow

SERVE = """
import sys
from flows.commands.serve import serve
from sparsekd.errors import SparseKDError
try:
    serve(cron=sys.argv[3] or None, prefect_port=int(sys.argv[1]), mlflow_port=int(sys.argv[2]))
except SparseKDError as error:
    sys.exit(f"error: {error}")
"""
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@dataclass
class Served:
    """A running `sparsekd serve`."""

    checkout: Miniature
    process: subprocess.Popen[str]
    prefect: str
    mlflow: str

    def ask(self, path: str, body: Any = None) -> Any:
        """GET, or POST with a `body`."""
        return ask(f"{self.prefect}/api", path, body)

    def deployment(self, name: str = "current") -> Any:
        return self.ask(f"deployments/name/compress/{name}")

    def run(self, **parameters: Any) -> str:
        """Start a run as `prefect deployment run` does; its id."""
        found = self.deployment()
        body = {"parameters": found["parameters"] | parameters, "state": {"type": "SCHEDULED"}}
        return str(self.ask(f"deployments/{found['id']}/create_flow_run", body)["id"])

    def latest_run(self) -> str:
        """The id of the run that was asked for last."""
        wanted = {
            "flow_runs": {"tags": {"all_": ["sparsekd"]}, "state": {"name": {"not_any_": ["Late"]}}},
            "limit": 200,
        }
        found = [run for run in self.ask("flow_runs/filter", wanted) if not run["auto_scheduled"]]
        return str(max(found, key=lambda run: str(run["created"]))["id"])

    def wait_for_state(self, flow_run_id: str, *names: str) -> Any:
        """Wait for the run to be in one of these states; the run."""

        def state() -> str:
            return str(self.ask(f"flow_runs/{flow_run_id}")["state_name"])

        wait_until(lambda: state() in names, f"{names}, not {state()}", 90)
        return self.ask(f"flow_runs/{flow_run_id}")


def serve(checkout: Miniature, cron: str = "") -> Any:
    return started(checkout, SERVE, str(free_port()), str(free_port()), cron)


def ready(checkout: Miniature, process: subprocess.Popen[str]) -> Served:
    """Read what `serve` prints until it says how to end it."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            break
    text = "".join(lines)
    urls = [line.split()[1] for line in lines if "http://" in line]
    assert len(urls) == 2, text
    return Served(checkout, process, *urls)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One `sparsekd serve` for all tests that leave it running."""
    checkout = make_miniature(tmp_path_factory.mktemp("served") / "check out")
    copy_mlflow_database(checkout.root)
    for name in STAGES:
        reproduce(checkout.root, checkout.graph[name])
    with serve(checkout, "0 3 * * *") as process:
        found = ready(checkout, process)
        yield found
        os.kill(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert "Traceback" not in output, output
        wait_until(lambda: not checkout.processes(), "everything to end", seconds=3)


def test_both_pages_answer_on_this_machine_only(served: Served) -> None:
    assert served.prefect.startswith("http://127.0.0.1:")
    assert answers(served.prefect)
    assert answers(served.mlflow)
    assert "<title>MLflow</title>" in _get(served.mlflow)
    [api] = [line for line in _get(f"{served.prefect}/ui-settings").split(",") if '"api_url"' in line]
    assert served.prefect in api, "on another port the page must be told where its API is"
    assert (served.checkout.root / "mlflow" / "mlflow.db").exists()


def test_forms_come_from_the_configuration(served: Served) -> None:
    schema = served.deployment()["parameter_openapi_schema"]
    width = schema["definitions"]["Prune"]["properties"]["width"]
    assert width["anyOf"] == [{"exclusiveMinimum": 0, "type": "number"}, {"type": "null"}]
    assert width["description"].startswith("New intermediate_size")
    assert schema["definitions"]["Runtime"]["properties"]["device"]["enum"] == ["auto", "cpu", "cuda"]
    assert served.deployment()["parameters"]["prune"]["statistics_tokens"] == 1024, "as params.yaml has it"
    [schedule] = served.deployment()["schedules"]
    assert schedule["schedule"]["cron"] == "0 3 * * *"
    smoke = served.deployment("smoke")
    assert smoke["parameters"]["calibrate"] != served.deployment()["parameters"]["calibrate"]
    assert smoke["schedules"] == []


def test_the_form_follows_params_yaml(served: Served) -> None:
    def shown() -> int:
        return int(served.deployment()["parameters"]["prune"]["statistics_tokens"])

    served.checkout.edit("statistics_tokens: 1024", "statistics_tokens: 1000")
    wait_until(lambda: shown() == 1000, "the form to follow", 20)
    served.checkout.edit("statistics_tokens: 1000", "statistics_tokens: 1024")
    wait_until(lambda: shown() == 1024, "the form to follow", 20)


def test_a_run_with_one_value_leaves_the_others(served: Served) -> None:
    before = (served.checkout.root / "params.yaml").read_text()
    run = served.wait_for_state(served.run(prune={"width": 0.5}), "Completed", "Failed", "Crashed")
    assert run["state_name"] == "Completed", run["state"]["message"]
    assert served.checkout.kept(run["name"], "pruned") == "prune 0.5\n", "experiment and flow run have one name"
    kept = git(served.checkout.root, "show", f"{experiments(served.checkout.root)[run['name']].overlay}:params.yaml")
    assert "# kept comment" in kept
    assert "statistics_tokens: 1024" in kept
    assert (served.checkout.root / "params.yaml").read_text() == before
    assert served.checkout.value("pruned") == "prune 0.75\n", "the checkout is as it was"


def test_bad_values_fail_in_a_sentence_and_change_nothing(served: Served) -> None:
    before = (served.checkout.root / "params.yaml").read_text()
    run = served.wait_for_state(served.run(calibrate={"tokens": 32, "sequence_length": 64}), "Failed", "Completed")
    assert run["state"]["message"].startswith("calibrate.tokens is 32; it must hold at least one sequence")
    with pytest.raises(urllib.error.HTTPError) as refused:
        served.run(prune={"width": -1})
    assert "prune.width is -1; it must be greater than 0." in refused.value.read().decode()
    whole = served.deployment()["parameters"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        served.run(prune=whole["prune"] | {"total_reduction": 0.2})
    said = f"prune.width is {whole['prune']['width']} and prune.total_reduction is 0.2; only one can say"
    assert said in refused.value.read().decode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        served.run(calibrate=whole["calibrate"] | {"tokens": 32, "sequence_length": 64})
    assert "calibrate.tokens is 32; it must hold at least one sequence" in refused.value.read().decode()
    assert (served.checkout.root / "params.yaml").read_text() == before


def test_cancelling_ends_the_stages(served: Served) -> None:
    hold = served.checkout.control("hold", "prune")
    run = served.run(prune={"width": 0.625})
    served.checkout.held("prune")
    served.ask(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": False})
    served.wait_for_state(run, "Cancelled")
    wait_until(lambda: not any("mini.work" in line for line in served.checkout.processes()), "the stage to end", 5)
    (served.checkout.root / "control" / "held-prune").unlink()
    wait_until(lambda: not left_behind(served.checkout.root), "its workspace to go", 10)
    hold.unlink()


def test_a_server_that_dies_is_started_again_and_the_run_goes_on(served: Served) -> None:
    """Of the values whose run was cancelled, where tests run in order."""
    hold = served.checkout.control("hold", "prune")
    run = served.run(prune={"width": 0.625})
    served.checkout.held("prune")
    port = served.prefect.rpartition(":")[2]
    [server] = [
        process
        for process in psutil.process_iter(["cmdline"])
        if (command := process.info["cmdline"] or []) and {"flows.server.prefect_server", "start", port} <= set(command)
        if not any("guard" in part for part in command)
    ]
    server.kill()
    wait_until(lambda: not answers(f"{served.prefect}/api/health"), "the server to be gone", 10)
    wait_until(lambda: answers(f"{served.prefect}/api/health"), "it to be started again", 30)
    hold.unlink()
    ended = served.wait_for_state(run, "Completed", "Failed", "Crashed")
    assert (ended["state_name"], ended["run_count"]) == ("Completed", 1), ended["state"]["message"]
    assert served.checkout.kept(ended["name"], "pruned") == "prune 0.625\n"


def test_of_three_missed_times_one_run_computes(served: Served) -> None:
    """What the server finds when it comes back: the runs of three nights, all due."""
    found, now = served.deployment(), datetime.now(UTC)
    nights = {"start_time": (now - timedelta(days=3)).isoformat(), "end_time": now.isoformat(), "min_runs": 3}
    served.ask(f"deployments/{found['id']}/schedule", nights)
    wanted = {
        "deployments": {"id": {"any_": [found["id"]]}},
        "flow_runs": {"expected_start_time": {"before_": nights["end_time"]}},
    }
    due = [run["id"] for run in served.ask("flow_runs/filter", wanted) if run["auto_scheduled"]]
    assert len(due) == 3
    ended = [served.wait_for_state(run, "Completed", "Skipped", "Failed", "Crashed") for run in due]
    ended.sort(key=lambda run: str(run["expected_start_time"]))
    assert [run["state_name"] for run in ended] == ["Skipped", "Skipped", "Completed"], [r["state"] for r in ended]
    assert ended[0]["state"]["type"] == "COMPLETED"
    assert ended[0]["state"]["message"].startswith("Skipped, late: the run of 0")


@pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)")
def test_the_form_in_a_browser(served: Served, tmp_path: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "no-proxy-server", "window-size=1400,2200"):
        options.add_argument(f"--{argument}")
    options.add_argument("--disable-background-networking")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    driver = webdriver.Chrome(options, Service(DRIVER))
    try:
        driver.get(f"{served.prefect}/deployments/deployment/{served.deployment()['id']}/run")
        wait = WebDriverWait(driver, 240)
        path = "//label[starts-with(normalize-space(.),'Width')]/following::input"
        field = wait.until(lambda d: d.find_element(By.XPATH, path))
        assert float(field.get_attribute("value")) > 0
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys("-1", Keys.TAB)
        driver.find_element(By.CSS_SELECTOR, "button[type=submit]").click()
        wait.until(lambda d: "prune.width is -1; it must be greater than 0." in d.page_source)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys("0.375", Keys.TAB)
        driver.save_screenshot(str(tmp_path / "form.png"))
        driver.find_element(By.CSS_SELECTOR, "button[type=submit]").click()
        wait.until(lambda d: not d.current_url.endswith("/run"))
        run = served.wait_for_state(served.latest_run(), "Completed", "Failed", "Crashed")
        assert served.checkout.kept(run["name"], "pruned") == "prune 0.375\n"
    finally:
        driver.save_screenshot(os.environ.get("SPARSEKD_SCREENSHOT", str(tmp_path / "end.png")))
        driver.quit()


def test_a_command_line_run_uses_the_server(served: Served) -> None:
    from tests.e2e.test_flow import LAUNCH

    with started(served.checkout, LAUNCH) as process:
        output, _ = process.communicate()
    assert output.startswith("outcome"), output
    run = served.ask(f"flow_runs/{read_json(served.checkout.root / '.sparsekd' / 'run.json')['flow_run_id']}")
    assert run["deployment_id"] is None
    assert run["state_name"] == "Completed"


def test_a_port_in_use_and_a_second_serve_are_refused(served: Served) -> None:
    with started(served.checkout, SERVE, str(free_port()), str(free_port()), "") as process:
        output, _ = process.communicate()
    assert output == f"error: `sparsekd serve` already works in this checkout, at {served.prefect}.\n"


def test_a_port_in_use_and_kill_9_after_which_the_run_goes_on(tmp_path: Path, served: Served) -> None:
    checkout = make_miniature(tmp_path / "checkout")
    copy_mlflow_database(checkout.root)
    taken = served.prefect.rpartition(":")[2]
    with started(checkout, SERVE, taken, str(free_port()), "") as process:
        output, _ = process.communicate()
    assert output.startswith(f"error: Port {taken} on 127.0.0.1 cannot be had for the Prefect server")
    checkout.control("hold", "calibrate")
    with serve(checkout) as process:
        run = ready(checkout, process).run()
        checkout.held("calibrate")
        kill(process)
        wait_until(lambda: not checkout.processes(), "servers, flow and stage to end", seconds=4)
    (checkout.root / "control" / "hold-calibrate").unlink()
    with serve(checkout) as process:
        ended = ready(checkout, process).wait_for_state(run, "Completed", "Failed")
        assert (ended["state_name"], ended["run_count"]) == ("Completed", 2), ended["state"]["message"]
        assert not left_behind(checkout.root)


def _get(url: str) -> str:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as response:
        return str(response.read().decode())
