"""Metrics, alert rules, the Grafana dashboard and the trackers, each against the tool that reads it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from deploy.observe.follow import Follower, following
from deploy.observe.grafana import dashboard
from deploy.observe.metrics import BY_NAME, METRICS, readings
from deploy.observe.monitor import ALERTS, write_monitoring
from deploy.observe.prometheus import metrics_text
from deploy.observe.trackers import TensorBoard, build_trackers, flat
from deploy.runs.rundir import RunDir
from tests.deploy.observe_fakes import events, scalars, state
from tests.programs import needs, program
from trainer.record.metrics import MetricsLog

PROMTOOL = program("promtool")
needs_promtool = needs("promtool")
UNITS = ("ratio", "seconds", "steps", "samples", "loaders", "total", "second")
WITHOUT_UNIT = ("tempera_loss", "tempera_softmax_temperature", "tempera_paused", "tempera_held_by_hand")


def promtool(*arguments: str, text: bytes = b"") -> str:
    """Run promtool; its output, when it is content."""
    done = subprocess.run([str(PROMTOOL), *arguments], input=text, capture_output=True, timeout=240, check=False)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    return output


def values() -> dict[tuple[str, ...], float]:
    return {(metric.name, *labels.values()): value for metric, labels, value in readings(state())}


def test_every_metric_of_a_state_has_its_value() -> None:
    found = values()
    assert found["tempera_progress_steps", "tiny"] == 70
    assert found["tempera_data_wait_ratio", "tiny"] == 0.03
    assert found["tempera_drawn_ahead_steps", "tiny"] == 96 - 70
    assert found["tempera_drawn_samples_total", "tiny"] == 1500
    assert found["tempera_ready_loaders", "tiny"] == 1
    assert found["tempera_loader_restarts_total", "tiny", "loader-1"] == 2
    assert found["tempera_control_latency_seconds", "tiny", "99"] == 2.5
    assert found["tempera_scored_samples", "tiny", "bss"] == 640
    assert found["tempera_held_by_hand", "tiny"] == 1
    assert {name for name, *_ in found} == set(BY_NAME)


def test_what_is_not_known_is_left_out_and_not_zero() -> None:
    quiet = state(progress={"step": None, "total_steps": 480, "eta_s": None, "images_per_s": None, "loss": None})
    names = {metric.name for metric, _, _ in readings(quiet)}
    assert "tempera_loss" not in names
    assert "tempera_drawn_ahead_steps" not in names
    assert ("tempera_loader_cache_hit_ratio", "tiny", "loader-1") not in values()


def test_a_policy_without_temperature_has_no_schedule_to_be_off() -> None:
    uniform = state(selection=state()["selection"] | {"temperature": None})
    assert "tempera_scheduled_effective_size_ratio" not in {metric.name for metric, _, _ in readings(uniform)}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_name_says_what_it_counts(metric: Any) -> None:
    assert re.fullmatch(r"tempera_[a-z_]+", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert metric.name.rpartition("_")[2] in UNITS or metric.name in WITHOUT_UNIT


@needs_promtool
def test_promtool_is_content_with_the_text() -> None:
    text = metrics_text(state())
    assert b'tempera_loader_images_total{loader="loader-0",run="tiny"} 9000.0' in text
    assert promtool("check", "metrics", text=text) == ""


@needs_promtool
def test_the_written_configuration_and_rules_pass_promtool(tmp_path: Path) -> None:
    token, targets = tmp_path / "api-token", tmp_path / "ray.json"
    token.write_text("secret")
    targets.write_text("[]")
    for name, options in {"api": {"url": "http://127.0.0.1:9", "token_file": token}, "ray": {}}.items():
        written = write_monitoring(tmp_path / name, ray_targets=targets, **options)
        output = promtool("check", "config", str(written[0]))
        assert "8 rules found" in output
    assert "secret" not in (tmp_path / "api" / "prometheus.yml").read_text()


def test_rules_and_panels_name_only_metrics_that_exist() -> None:
    texts = [ALERTS.read_text(), json.dumps(dashboard())]
    for text in texts:
        named = set(re.findall(r"\btempera_[a-z_]+", text.replace("tempera_run", "")))
        assert named
        assert named <= set(BY_NAME)


def test_every_metric_of_one_run_is_on_the_dashboard_or_in_a_rule() -> None:
    shown = json.dumps(dashboard()) + ALERTS.read_text()
    assert [name for name in BY_NAME if name not in shown] == []


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


FIRES = {
    "TemperaTrainerStarving": {"tempera_data_wait_ratio": "0.3x60", "tempera_paused": "0x60"},
    "TemperaTrainerStalled": {
        "tempera_progress_steps": "70x60",
        "tempera_paused": "0x60",
        "tempera_remaining_seconds": "41x60",
    },
    "TemperaLoadersRestarting": {'tempera_loader_restarts_total:loader="loader-0"': "0+1x60"},
    "TemperaLoadersMissing": {"tempera_ready_loaders": "1x60", "tempera_desired_loaders": "4x60"},
    "TemperaBadSampleShare": {"tempera_bad_samples_total": "0+10x60", "tempera_drawn_samples_total": "0+1000x60"},
    "TemperaStaleWeights": {"tempera_drawn_ahead_steps": "90x60", "tempera_control_bound_steps": "33x60"},
    "TemperaEffectiveSizeOffSchedule": {
        "tempera_effective_size_ratio": "0.35x60",
        "tempera_scheduled_effective_size_ratio": "0.25x60",
        "tempera_held_by_hand": "0x60",
    },
    "TemperaHeldByHand": {"tempera_held_by_hand": "1x3000"},
}
HEALTHY = {
    "tempera_data_wait_ratio": "0.03x60",
    "tempera_paused": "0x60",
    "tempera_progress_steps": "0+60x60",
    "tempera_remaining_seconds": "41x60",
    'tempera_loader_restarts_total:loader="loader-0"': "1x60",
    "tempera_ready_loaders": "4x60",
    "tempera_desired_loaders": "4x60",
    "tempera_bad_samples_total": "0+1x60",
    "tempera_drawn_samples_total": "0+1000x60",
    "tempera_drawn_ahead_steps": "30x60",
    "tempera_control_bound_steps": "33x60",
    "tempera_effective_size_ratio": "0.35x60",
    "tempera_scheduled_effective_size_ratio": "0.25x60",
    "tempera_held_by_hand": "1x60",
}


def series(lines: dict[str, str]) -> list[dict[str, str]]:
    """Series as promtool writes them: `0+1x60` is a value a minute."""
    result = []
    for key, numbers in lines.items():
        name, _, label = key.partition(":")
        steady = numbers if "+" in numbers else numbers.replace("x", "+0x")
        result.append({"series": f'{name}{{run="tiny"{"," + label if label else ""}}}', "values": steady})
    return result


@needs_promtool
def test_each_alert_fires_on_its_fault_and_none_on_a_healthy_run(tmp_path: Path) -> None:
    shutil.copyfile(ALERTS, tmp_path / ALERTS.name)
    assert set(FIRES) == {rule["alert"] for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]}
    tests = []
    for alert, lines in FIRES.items():
        minutes = 2900 if alert == "TemperaHeldByHand" else 40
        query = f'count(ALERTS{{alertname="{alert}",alertstate="firing",run="tiny"}})'
        tests.append(
            {
                "interval": "1m",
                "input_series": series(lines),
                "promql_expr_test": [
                    {"expr": query, "eval_time": f"{minutes}m", "exp_samples": [{"labels": "{}", "value": 1}]}
                ],
            }
        )
    none = [{"expr": 'count(ALERTS{alertstate="firing"})', "eval_time": "40m", "exp_samples": []}]
    tests.append({"interval": "1m", "input_series": series(HEALTHY), "promql_expr_test": none})
    content = {"rule_files": [ALERTS.name], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(content))
    assert "SUCCESS" in promtool("test", "rules", str(tmp_path / "tests.yml"))


def write_lines(run: RunDir, steps: range) -> None:
    metrics = MetricsLog(run.metrics, clock=lambda: 1000.0)
    for step in steps:
        metrics.write(step, {"loss": 1.0 / step, "images_per_s": 800.0, "paused": False, "nn_cls": None})


def test_tensorboard_files_hold_the_metrics_and_pictures_of_a_run(tmp_path: Path) -> None:
    run, folder = RunDir(tmp_path), tmp_path / "tensorboard"
    write_lines(run, range(1, 4))
    run.report.mkdir()
    Image.new("RGB", (8, 6), "red").save(run.report / "step-000003-masks.png")
    with following(run, [TensorBoard(folder)], poll_s=0.02):
        pass
    found = scalars(folder)
    assert found["loss/loss", 2] == 0.5
    assert found["speed/images_per_s", 3] == 800.0
    assert {tag for tag, _ in found} == {"loss/loss", "speed/images_per_s"}
    (picture,) = [value for event in events(folder) for value in event.summary.value if value.HasField("image")]
    assert (picture.tag, picture.image.width, picture.image.height) == ("report/masks", 8, 6)


def test_a_resumed_run_has_each_step_once_in_its_event_files(tmp_path: Path) -> None:
    run, folder = RunDir(tmp_path), tmp_path / "tensorboard"
    board = TensorBoard(folder)
    follower = Follower(run, [board])
    write_lines(run, range(1, 6))
    follower.poll()
    MetricsLog(run.metrics).rewind(3)
    write_lines(run, range(3, 5))
    follower.poll()
    board.close()
    losses = [event.step for event in events(folder) for value in event.summary.value if value.tag == "loss/loss"]
    assert losses == [1, 2, 3, 4]


def test_lines_are_handed_over_once_and_a_torn_one_when_it_is_whole(tmp_path: Path) -> None:
    run, tracker = RunDir(tmp_path), Recording()
    follower = Follower(run, [tracker])
    write_lines(run, range(1, 3))
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "ti')
    follower.poll()
    follower.poll()
    assert [step for step, _ in tracker.rows] == [1, 2]
    with run.metrics.open("a") as file:
        file.write('me": 1.0, "loss": 0.25}\n')
    follower.poll()
    assert tracker.rows[-1] == (3, {"loss/loss": 0.25})


def test_a_tracker_that_is_not_installed_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError, match=r"needs the package mlflow, which is not installed .*tempera-mim\[mlflow\]"):
        build_trackers(tmp_path, ("mlflow",), name="tiny", config={})
    with pytest.raises(ValueError, match="must be one of mlflow, wandb; got 'comet'"):
        build_trackers(tmp_path, ("comet",), name="tiny", config={})


MLFLOW = """
calls = []
MlflowException = OSError
for name in ("set_experiment", "start_run", "log_params", "log_metrics", "log_artifact", "end_run"):
    globals()[name] = lambda *values, name=name, **named: calls.append((name, values, named))
"""


def test_mlflow_gets_each_step_once_even_when_the_run_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.py").write_text(MLFLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    _, tracker = build_trackers(tmp_path, ("mlflow",), name="tiny", config={"train": {"seed": 3}})
    for steps in ((1, 2), (1, 2, 3)):
        tracker.restart()
        for step in steps:
            tracker.scalars(step, 0.0, {"loss/loss": 1.0})
    tracker.close()
    calls = sys.modules.pop("mlflow").calls
    assert ("log_params", ({"train.seed": "3"},), {}) in calls
    assert [named["step"] for name, _, named in calls if name == "log_metrics"] == [1, 2, 3]
    assert calls[-1][0] == "end_run"


def test_nested_settings_become_names_with_dots() -> None:
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


@dataclass
class Recording:
    """A tracker that remembers."""

    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def restart(self) -> None:
        self.rows.clear()

    def scalars(self, step: int, time_s: float, values: Any) -> None:
        self.rows.append((step, dict(values)))

    def picture(self, name: str, step: int, path: Path) -> None: ...

    def close(self) -> None: ...
