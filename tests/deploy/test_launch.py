"""Runs in one process: they train, resume where they stopped, and refuse to be mixed up."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.cli import main
from deploy.launch import launch
from deploy.launch.launch import launch_in_process
from deploy.observe.run_log import knob_history, log_entries
from deploy.runs.config import RunConfig
from deploy.runs.overrides import override
from deploy.runs.rundir import Endpoint, RunDir, RunError
from scoring import RunLog
from tests.runs import losses
from trainer import METHODS, Context


def test_a_resumed_run_has_the_loss_curve_of_an_uninterrupted_one(tmp_path: Path, config: RunConfig) -> None:
    whole, parts = RunDir(tmp_path / "whole"), RunDir(tmp_path / "parts")
    assert launch_in_process(config, whole).reason == "finished"
    stopped = launch_in_process(config, parts, should_stop=lambda: len(losses(parts)) >= 7)
    assert (stopped.reason, stopped.step) == ("stopped", 7)
    assert launch_in_process(config, parts).step == 16
    assert losses(parts) == losses(whole)


def test_the_log_holds_the_trainers_schedule_window_by_window(tmp_path: Path, config: RunConfig) -> None:
    run = RunDir(tmp_path / "run")
    launch_in_process(config, run)
    entries = log_entries(run, limit=100)
    assert [entry["window"] for entry in entries] == [1, 2, 3]
    assert {entry["author"] for entry in entries} == {"trainer"}
    knob = knob_history(run, initial=(0.2, 0.05), window_steps=4, total_steps=16)
    assert knob.steps == [0, 4, 8, 12]
    assert knob.effective_size == pytest.approx([0.2, 0.26004, 0.405, 0.54996], abs=1e-4)
    assert knob.temperature == sorted(knob.temperature)


def test_ranks_under_ray_see_what_is_asked_of_a_run_whose_folder_was_named_relatively(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train gives them a working directory of their own."""
    jobs = []
    monkeypatch.setattr("trainer.actors.train_on_ray", lambda job, **options: jobs.append(job))
    endpoint = Endpoint(address="", namespace="", token_path="", pid=0, dashboard="")
    ranks_place, persons_place = tmp_path / "rank", tmp_path / "person"
    ranks_place.mkdir()
    (persons_place / "run").mkdir(parents=True)
    monkeypatch.chdir(persons_place)
    launch._train_on_ray(config, RunDir(Path("run")), endpoint)
    RunDir(Path("run")).stop_request.touch()
    RunDir(Path("run")).pause_request.touch()
    monkeypatch.chdir(ranks_place)
    hooks = jobs[0].make_hooks(Context())
    assert hooks.should_stop()
    assert hooks.should_pause()
    assert Path(jobs[0].run_dir) == persons_place / "run"


def test_another_configuration_is_refused_and_the_run_kept(tmp_path: Path, config: RunConfig) -> None:
    run = RunDir(tmp_path / "run")
    launch_in_process(config, run)
    before = losses(run)
    with pytest.raises(RunError, match="holds another run"):
        launch_in_process(replace(config, evaluate_every=3), run)
    assert losses(run) == before


def test_a_finished_run_is_replayed_inspected_and_exported(
    tmp_path: Path, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    launch_in_process(config, run)
    capsys.readouterr()
    assert main(["replay", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"windows": 4, "draws": 16 * 32, "different": []}
    assert main(["inspect", "--run", str(run.path), "--export", str(tmp_path / "table.parquet"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["exported_rows"] == 1437
    assert 1 < facts["effective_sample_size"] < 1437
    assert main(["export", "--run", str(run.path), "--out", str(tmp_path / "timm"), "--json"]) == 0
    assert (tmp_path / "timm" / "encoder.safetensors").is_file()
    assert main(["eval", "knn", "--run", str(run.path), "--json"]) == 0
    assert 0.1 < json.loads(capsys.readouterr().out.splitlines()[-1])["nn_mean"] <= 1


def test_a_method_of_ones_own_is_loaded_by_name(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="extensions must be importable modules; 'no_such_module'"):
        override(config, ('extensions=["no_such_module"]',))
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "trainer"))
    own = override(config, ('extensions=["example_method"]', "train.method=mean_colour"))
    try:
        assert launch_in_process(own, RunDir(tmp_path / "run")).reason == "finished"
    finally:
        METHODS.pop("mean_colour")
        sys.modules.pop("example_method")


def test_nearest_neighbours_are_measured_while_it_trains(tmp_path: Path, config: RunConfig) -> None:
    run = RunDir(tmp_path / "run")
    launch_in_process(override(config, ("evaluate_every=8",)), run)
    measured = [line for line in run.metric_lines() if "nn_cls" in line]
    assert [line["step"] for line in measured] == [8, 16]
    assert all(0.1 < line["nn_mean"] <= 1 for line in measured)


def test_every_run_has_a_page_with_pictures_of_its_start_middle_and_end(tmp_path: Path, config: RunConfig) -> None:
    run = RunDir(tmp_path / "run")
    shown = ("pictures=true", "train.model.mto.enabled=true")
    launch_in_process(override(config, shown), run)
    names = {path.name for path in run.report.glob("*.png")}
    steps = ("00000000", "00000008", "00000016")
    assert names >= {f"step-{step}-{what}.png" for step in steps for what in ("reconstructions", "affinity")}
    assert {"loss.png", "heterogeneity.png"} <= names
    page = (run.report / "report.html").read_text()
    assert page.count("data:image/png") == len(names)
    assert "affinity after 16 steps" in page


def test_patch_aware_selection_keeps_the_top_share_after_its_round(tmp_path: Path, config: RunConfig) -> None:
    """One full epoch of 4 steps, then a round: from the next window on, draws come from the kept 10 % alone."""
    settings = ("enabled=true", "keep=0.1", "full_epochs=1", "period=4", "predictor_epochs=1", "predictor_depth=1")
    changes = [f"train.model.pass_.{setting}" for setting in settings]
    selecting = override(
        config,
        (*changes, "curriculum.policy=pass", "train.epoch_steps=4", "train.window_steps=1", "train.total_steps=12"),
    )
    run = RunDir(tmp_path / "run")
    launch_in_process(selecting, run)
    rounds = [entry for entry in log_entries(run, limit=100) if entry["kind"] == "round"]
    assert rounds
    assert {(entry["author"], entry["value"]) for entry in rounds} == {("sweep", "pass")}
    first, second = rounds[0]["window"], rounds[1]["window"]
    with closing(RunLog(run.log)) as log:
        drawn = [log.window(number) for number in range(first, second)]
    kept = np.unique(np.concatenate([window.sample_ids for window in drawn if window]))
    assert 0 < len(kept) <= 143  # floor(0.1 * 1437)
