"""The optional trackers against the services' own packages, with files where their servers would be."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deploy.observe.trackers import Tracker, build_trackers

CONFIG = {"train": {"seed": 3}}
WANDB_HEADER, WANDB_BLOCK = 7, 32768
STEPS = ((1, 2), (1, 2, 3))
"""A run, and the same run resumed: TensorBoard's files are made anew, a service must hear of each step once."""


def play(tracker: Tracker, folder: Path) -> None:
    for steps in STEPS:
        tracker.restart()
        for step in steps:
            tracker.scalars(step, 0.0, {"loss/loss": 1 / step, "data wait": 0.25})
    Image.new("RGB", (8, 8), "red").save(folder / "losses.png")
    tracker.picture("losses", 3, folder / "losses.png")
    tracker.close()


def test_mlflow_has_the_run_with_its_settings_steps_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra tempera-mim[mlflow] is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")
    _, tracker = build_trackers(tmp_path / "board", ("mlflow",), name="tiny", config=CONFIG)
    play(tracker, tmp_path)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tempera").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params) == ("tiny", "FINISHED", {"train.seed": "3"})
    history = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss/loss")]
    assert history == [(step, 1 / step) for step in (1, 2, 3)]
    assert run.data.metrics["data_wait"] == 0.25
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id, "report")] == ["report/losses.png"]


def test_an_mlflow_without_its_server_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra tempera-mim[mlflow] is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match="Set MLFLOW_TRACKING_URI to a server that answers"):
        build_trackers(tmp_path, ("mlflow",), name="tiny", config=CONFIG)


def test_wandb_has_the_run_with_its_settings_steps_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra tempera-mim[wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    _, tracker = build_trackers(tmp_path / "board", ("wandb",), name="tiny", config=CONFIG)
    play(tracker, tmp_path)
    (file,) = tmp_path.glob("wandb/offline-run-*-tiny/run-tiny.wandb")
    records = list(wandb_records(file.read_bytes()))
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name) == ("tempera", "tiny")
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["train"] == {"seed": 3}
    rows = [history_row(record.history) for record in records if record.WhichOneof("record_type") == "history"]
    assert [(row["_step"], row["loss/loss"]) for row in rows] == [(step, 1 / step) for step in (1, 2, 3)]
    assert rows[-1]["data wait"] == 0.25
    assert list(file.parent.glob("files/media/images/losses_3_*.png"))


def history_row(history: Any) -> dict[str, Any]:
    """One row of W&B's history by the names of its columns."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in history.item}


def wandb_records(data: bytes) -> Iterator[Any]:
    """The records of W&B's file of an offline run: protobuf messages in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    at, message = WANDB_HEADER, b""
    while at + 7 <= len(data):
        if WANDB_BLOCK - at % WANDB_BLOCK < 7:
            at += WANDB_BLOCK - at % WANDB_BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(message)
            message = b""
