"""The adaptive schedule from the trainer's numbers to the log, and the rest of what a run asks of its selection."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cli import main
from deploy.launch.evaluation import MetricReports
from deploy.launch.launch import launch_in_process
from deploy.runs.config import DataConfig, RunConfig, selection_config
from deploy.runs.overrides import override
from deploy.runs.recipes import debug, tiny_adaptive
from deploy.runs.rundir import RunDir
from scoring import Event, read_entries

NEVER_A_GAIN = ("curriculum.schedule=adaptive", "curriculum.growth.min_gain=100", "curriculum.growth.patience=1")


def test_a_flat_loss_broadens_the_draw_and_a_resume_adds_nothing_twice(tmp_path: Path, config: RunConfig) -> None:
    run, config = RunDir(tmp_path / "run"), override(config, ("train.total_steps=24", *NEVER_A_GAIN))
    stopped = launch_in_process(config, run, should_stop=lambda: len(run.metric_lines()) >= 10)
    assert stopped.reason == "stopped"
    assert launch_in_process(config, run).step == 24
    entries = read_entries(run.log)
    metrics = [entry for entry in entries if entry.kind == "metric"]
    assert len({entry.request for entry in metrics}) == len(metrics)
    assert {entry.request for entry in metrics} <= {f"metric loss {step}" for step in range(4, 25, 4)}
    assert len(metrics) >= 5
    sizes = [entry for entry in entries if entry.kind == "schedule"]
    assert {entry.author for entry in sizes} == {"adaptive"}
    rule = config.curriculum.adaptive
    assert rule is not None
    for entry in sizes:
        seen = [float(metric.value or 0.0) for metric in metrics if metric.window <= entry.window]
        assert entry.value == rule.effective_size(seen, start=config.curriculum.start, end=config.curriculum.end)
    assert sizes[-1].value > sizes[0].value >= 0.2
    assert main(["replay", str(run.path)]) == 0


def test_the_mean_of_a_windows_losses_is_sent_with_its_last_step() -> None:
    sent: list[Event] = []
    reports = MetricReports(sent.append, metric="loss", window_steps=8)
    for step in range(3, 28, 3):  # a resumed run that logs every third step
        reports.on_step(step, {"loss": float(step)})
    reports._thread.shutdown()
    assert [(event.value, event.request) for event in sent] == [
        (6.0, "metric loss 9"),
        (15.0, "metric loss 18"),
        (22.5, "metric loss 24"),
    ]


def test_an_accuracy_is_followed_through_the_evaluations() -> None:
    sent: list[Event] = []

    def record(event: Event) -> None:
        sent.append(event)
        raise OSError("gone")  # a service that is away does not end training

    reports = MetricReports(record, metric="nn_cls", window_steps=8)
    evaluate = reports.after(lambda step, method: {"nn_cls": 0.5, "nn_mean": 0.25})
    assert evaluate(40, None) == {"nn_cls": 0.5, "nn_mean": 0.25}
    reports._thread.shutdown()
    assert [(event.message, event.value, event.kind) for event in sent] == [("nn_cls", 0.5, "metric")]


def test_a_run_sets_the_policies_constants(digits: DataConfig) -> None:
    settings = ("curriculum.options.importance_power=2", "curriculum.options.importance_floor=0.05")
    part = selection_config(override(debug(digits), settings), num_samples=1437, fingerprint="ab")
    options = part.policy_options
    assert (options.importance_power, options.importance_floor) == (2, 0.05)
    assert options.importance_kind == "bss"  # under which the trainer reports each sample's loss
    assert tiny_adaptive(digits).curriculum.adaptive is not None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("curriculum.growth.metric=nn_clss", "Did you mean 'nn_cls'"),
        ("curriculum.growth.patience=0", "patience 1 or more"),
        ("curriculum.growth.metric=nn_cls", "needs evaluate_every above 0"),
        ("curriculum.options.importance_floor=0", "importance_floor must be a share"),
    ],
)
def test_a_wrong_curriculum_is_one_clear_line(digits: DataConfig, setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(debug(digits), ("curriculum.schedule=adaptive", setting))
