"""The report is one self-contained page, and the pictures are real PNG files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.launch.launch import launch_in_process
from deploy.report import plots
from deploy.report.figures import figure_sections
from deploy.report.report import Section, write_report
from deploy.runs.config import DataConfig
from deploy.runs.rundir import RunDir
from tests.deploy.api_run import tiny


def test_report_is_self_contained_and_escapes_what_it_shows(tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    plots.curves(picture, series={"a": ([0, 1], [0.5, 0.25])}, x="step", y="loss")
    section = Section(
        title="Curves", columns=("arm", "accuracy"), rows=[("<script>", 0.5)], pictures={picture: "loss & step"}
    )
    page = write_report(tmp_path, title="Run <1>", lead="lead", sections=[section], data={"accuracy": 0.5}).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "data:image/png;base64," in page
    assert json.loads((tmp_path / "report.json").read_text()) == {"accuracy": 0.5}


@pytest.mark.parametrize("clusters", [1, 3])
def test_prototypes_picture_has_a_row_for_each_cluster(tmp_path: Path, clusters: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    plots.prototypes(tmp_path / "p.png", rows=[(str(number), images[: 5 - number]) for number in range(clusters)])
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.height > 60 * clusters


def test_effective_size_and_histogram_pictures_are_written(tmp_path: Path) -> None:
    plots.effective_size(
        tmp_path / "s.png",
        steps=[0, 8, 16],
        used=[0.2, 0.45, 0.3],
        scheduled=[0.2, 0.25, 0.3],
        temperature=[0.07, 0.2, 0.1],
    )
    plots.times_drawn(tmp_path / "t.png", counts=np.array([0, 1, 1, 5]), label="run")
    plots.times_drawn(tmp_path / "many.png", counts=np.arange(1000), label="run")
    for name in ("s", "t", "many"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 400


@pytest.mark.parametrize(("policy", "drawn"), [("prototypical", True), ("uniform", False)])
def test_a_run_has_a_curve_of_its_effective_size_where_a_temperature_was_in_force(
    tmp_path: Path, digits: DataConfig, policy: str, drawn: bool
) -> None:
    config, run = (
        tiny(digits, steps=40, settings=(f"curriculum.policy={policy}", "train.warmup_steps=1")),
        RunDir(tmp_path / "run"),
    )
    launch_in_process(config, run)
    assert drawn == any(section.title == "What the model saw" for section in figure_sections(run, config))
