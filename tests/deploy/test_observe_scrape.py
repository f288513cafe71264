"""The numbers of a real run: scraped by a real Prometheus, in its report, and exported by Ray."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from deploy.commands.dashboard import dashboard, monitor
from deploy.observe.metrics import BY_NAME
from deploy.observe.monitor import write_monitoring
from deploy.observe.prometheus import exported_to_ray
from deploy.report.figures import figures
from deploy.report.run import write_run_report
from deploy.runs.rundir import RunDir
from scoring import Control, Event
from tests.deploy.observe_fakes import state
from tests.deploy.page_run import LiveRun, live_run
from tests.local_ray import local_ray
from tests.programs import needs, program
from tests.runs import wait_for

PROMETHEUS = program("prometheus")


def fetched(url: str, token: str = "") -> bytes:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    with live_run(tmp_path_factory.mktemp("scraped")) as run:
        yield run


def test_metrics_need_the_token(live: LiveRun) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        fetched(f"{live.url}/metrics")
    assert b"tempera_progress_steps" in fetched(f"{live.url}/metrics", live.token)


def test_the_commands_name_the_page_and_keep_its_token_out_of_what_they_print(live: LiveRun, tmp_path: Path) -> None:
    answer = dashboard(live.run.path)
    assert answer is not None
    assert answer.data["url"] == live.url
    written = monitor(live.run.path, out=tmp_path).data["files"]
    assert [Path(file).name for file in written] == ["prometheus.yml", "alerts.yml", "grafana.json"]
    printed = [json.dumps(answer.data), str(answer.view), *(Path(file).read_text() for file in written)]
    assert not any(live.token in text for text in printed)


@needs("prometheus")
def test_prometheus_scrapes_a_real_run_with_the_written_configuration(live: LiveRun, tmp_path: Path) -> None:
    wait_for(lambda: live.run.metric_lines() and live.selection.next_window > 3, "training")
    written = write_monitoring(tmp_path, url=live.url, token_file=live.run.api_token, scrape_s=1)
    port = _free_port()
    arguments = [f"--config.file={written[0]}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    server = subprocess.Popen(
        [str(PROMETHEUS), *arguments, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "prometheus.log").open("w"),
    )
    root = f"http://127.0.0.1:{port}/api/v1"

    def ask(expression: str) -> list[dict[str, Any]]:
        answer = json.loads(fetched(f"{root}/query?{urlencode({'query': expression})}"))
        return list(answer["data"]["result"])

    try:
        wait_for(lambda: ask('tempera_progress_steps{run="page"}'), "a scrape")
        names = {series["metric"]["__name__"] for series in ask('{job="tempera"}')}
        expected = set(BY_NAME) - {"tempera_control_latency_seconds"}  # nobody has changed anything yet
        assert expected <= names
        assert float(ask("tempera_ready_loaders")[0]["value"][1]) == 2
        rules = json.loads(fetched(f"{root}/rules"))["data"]["groups"][0]["rules"]
        assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] == "err"] == []
    finally:
        server.terminate()
        server.wait(60)


def test_the_report_and_the_api_say_the_same(live: LiveRun) -> None:
    live.selection.control(Control(kind="effective_size", value=0.4, author="mira", reason="<b>wide</b>"))
    live.selection.record(Event(kind="control_latency", author="api", value=0.5))
    live.run.pause_request.touch()

    def state() -> dict[str, object]:
        return dict(json.loads(fetched(f"{live.url}/api/v1/state", live.token)))

    wait_for(lambda: state()["paused"], "a rest")
    said, found = state(), figures(live.run)
    assert {name: found[name] for name in ("loss", "images_per_s", "data_wait")} == {
        name: said["progress"][name] for name in ("loss", "images_per_s", "data_wait")
    }
    assert found["effective_size"] == said["selection"]["effective_size"] == pytest.approx(0.4, abs=1e-9)
    assert found["temperature"] == said["selection"]["temperature"]
    assert found["changes"] == said["control"]["version"] == 1
    assert found["bad_samples"] == said["bad_samples"]
    assert found["control_latency_p50_s"] == 0.5
    page = write_run_report(live.run, live.config).read_text()
    assert "&lt;b&gt;wide&lt;/b&gt;" in page
    assert "<b>wide" not in page
    assert "What the model saw" in page
    assert json.loads((live.run.report / "report.json").read_text())["changes"] == 1
    assert (live.run.report / "effective_size.png").stat().st_size > 5000


def test_a_run_without_a_log_has_figures_all_the_same(tmp_path: Path) -> None:
    assert figures(RunDir(tmp_path))["step"] is None
    assert figures(RunDir(tmp_path))["bad_samples"] == 0


@pytest.mark.ray
def test_ray_exports_the_same_metrics_under_its_prefix() -> None:
    with local_ray(num_cpus=1) as ray, exported_to_ray(state, every_s=0.5):
        port = ray.nodes()[0]["MetricsExportPort"]
        text = wait_for(lambda: _with_all(fetched(f"http://127.0.0.1:{port}/metrics").decode()), "an export")
    assert _value(text, "ray_tempera_progress_steps") == 70
    assert _value(text, "ray_tempera_drawn_samples_total") == 1500
    assert _value(text, "ray_tempera_loader_restarts_total", 'loader="loader-1"') == 2


def _with_all(text: str) -> str:
    return text if all(f"ray_{name}" in text for name in BY_NAME) else ""


def _value(text: str, name: str, label: str = "") -> float:
    lines = [
        line for line in text.splitlines() if line.startswith(f"{name}{{") and label in line and 'run="tiny"' in line
    ]
    assert len(lines) == 1, lines
    return float(re.split(r"\s+", lines[0])[-1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
