"""The demo, shortened, from end to end: every real part, and every promise that its log and report make."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

STEPS = 80

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_demo_trains_is_steered_and_reports(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "deploy.cli", "demo", "--out", str(out), "--steps", str(STEPS), "--json"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "data" / "train").exists():
        assert demo.poll() is None, demo.communicate()[1]
        time.sleep(0.05)
    second = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert second.returncode == 2
    assert f"pid {demo.pid}" in second.stderr
    answer, errors = demo.communicate(timeout=1200)
    assert demo.returncode == 0, errors
    facts = json.loads(answer)

    assert facts["samples"] == 1437
    assert 0.9 < facts["pixels_nn"] <= 1
    for arm in ("curriculum", "uniform"):
        assert 0.3 < facts["arms"][arm]["nn_mean"] <= 1
    done = [(entry["author"], entry["kind"]) for entry in facts["log"]]
    for expected in (("effective_size",), ("release",), ("scale",), ("kill",)):
        assert ("demo", *expected) in done
    assert ("fleet", "loader_lost") in done
    assert [entry["value"] for entry in facts["log"] if entry["kind"] == "scale"] == [4, 1]
    held = next(entry for entry in facts["log"] if entry["kind"] == "effective_size")
    assert 0 < held["window"] < STEPS // 8
    assert held["effective_size"] == pytest.approx(0.45)

    report = out / "report"
    for name in ("prototypes", "effective_size", "loss", "times_drawn", "nn_accuracy"):
        with Image.open(report / f"{name}.png") as picture:
            assert picture.width > 300
    assert json.loads((report / "report.json").read_text())["arms"] == facts["arms"]
    assert "data:image/png;base64," in (report / "report.html").read_text()
    assert not (out / "cluster.json").exists()
