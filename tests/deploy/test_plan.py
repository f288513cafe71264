"""The plan of a run: counts that follow from the configuration, speeds that were measured, and what is not known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.cli import main
from deploy.launch.measure import count_parameters
from deploy.launch.plan import make_plan, plan_view
from deploy.runs.config import DataConfig
from deploy.runs.overrides import override
from deploy.runs.recipes import RUNS
from trainer import METHODS


def test_a_dry_run_measures_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], digits: DataConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["train", "debug", "--index", digits.index, "--out", str(out), "--dry-run", "--json"]
    assert main([*words, "--set", "fleet.loaders=3", "train.checkpoint_every=15"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert plan["steps"] == {
        "steps": 40,
        "windows": 5,
        "global_batch": 32,
        "images": 1280,
        "samples": 1437,
        "epochs": pytest.approx(1280 / 1437),
        "checkpoints": 2,
    }
    speed = plan["speed"]
    assert speed["source"] == "probe"
    assert speed["expected_images_per_s"] == min(speed["needed_images_per_s"], speed["available_images_per_s"])
    assert speed["hours"] == pytest.approx(1280 / speed["expected_images_per_s"] / 3600)
    assert 20 < speed["available_images_per_s"] < 1e6
    assert plan["memory"]["selection_bytes"] == 1437 * 16
    assert plan["memory"]["activations_bytes_per_rank"] > 32 * 64 * 128 * 4  # more than one token map of the batch
    assert plan["pass"] is None


def test_parameters_are_counted_without_memory_for_them() -> None:
    config = RUNS["debug"](DataConfig(index="x")).train
    method = METHODS[config.method](config.model)
    assert count_parameters(config) == sum(part.numel() for part in method.parameters() if part.requires_grad)


def test_the_rounds_of_a_pass_recipe_are_counted_as_the_paper_does() -> None:
    """METHODS section 7: nine selections of all samples in 200 epochs that cost 74."""
    config = RUNS["pass_mae_b_200"](DataConfig(index="nowhere.parquet"))
    plan = make_plan(config, probe=False)
    assert (plan["pass"]["rounds"], plan["pass"]["epochs"]) == (9, 200)
    assert plan["pass"]["cost_in_full_epochs"] == pytest.approx(74)
    assert plan["pass"]["share_of_a_full_run"] == pytest.approx(0.37)


def test_what_is_not_known_here_is_said() -> None:
    config = RUNS["mae_b_800"](DataConfig(index="nowhere.parquet"))
    plan = make_plan(config, probe=False)
    assert plan["steps"]["epochs"] is None
    assert plan["speed"]["expected_images_per_s"] is None
    assert plan["speed"]["source"] == "not measured"
    assert "is not on this machine" in plan["notes"][0]
    plan_view(plan)


def test_too_few_loaders_are_named_with_how_many_would_do(digits: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.launch import measure
    from deploy.launch import plan as build

    trained = measure.TrainerProbe(images_per_s=1000.0, scored_per_s=0.0, activation_bytes=1, device="cpu")
    monkeypatch.setattr(measure, "probe_trainer", lambda *_, **__: trained)
    monkeypatch.setattr(measure, "probe_loader", lambda *_, **__: 150.0)
    config = override(RUNS["debug"](digits), ("fleet.loaders=2", "trainers.workers=2"))
    made = build.make_plan(config)
    assert (made["speed"]["needed_images_per_s"], made["speed"]["available_images_per_s"]) == (2000.0, 300.0)
    assert any("--set fleet.loaders=14" in note for note in made["notes"])
