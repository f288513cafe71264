"""Run configurations: whole in JSON, changed by dotted fields, refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.runs.config import DataConfig, RunConfig, load_config, save_config
from deploy.runs.overrides import combination, override
from deploy.runs.recipes import RUNS
from loader import FleetConfig, LoaderConfig
from loader.fleet.spec import spec_of
from trainer.method_config import MTO_PRESETS

DATA = DataConfig(index="index.parquet", prototypes="prototypes.parquet")


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_named_run_survives_json(tmp_path: Path, name: str) -> None:
    config = RUNS[name](DATA)
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config


def test_the_official_recipe_has_its_learning_rate_and_steps() -> None:
    train = RUNS["mae_b_800"](DATA).train
    assert train.peak_lr == pytest.approx(2.4e-3)
    assert train.total_steps == 800 * 312
    assert train.warmup_steps == 40 * 312


def test_an_unknown_field_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    save_config(RUNS["debug"](DATA), path)
    value = json.loads(path.read_text())
    value["curriculum"]["polcy"] = value["curriculum"].pop("policy")
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match="Did you mean 'policy'"):
        load_config(path)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_config(tmp_path / "config.json")


def test_override_changes_nested_fields_and_nothing_else() -> None:
    before = RUNS["debug"](DATA)
    after = override(before, ("train.total_steps=80", "curriculum.policy=hard", "train.model.norm_pix=false"))
    assert (after.train.total_steps, after.curriculum.policy, after.train.model.norm_pix) == (80, "hard", False)
    assert (
        override(after, ("train.total_steps=40", "curriculum.policy=prototypical", "train.model.norm_pix=true"))
        == before
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.total_step=3", "Did you mean 'total_steps'"),
        ("trian.total_steps=3", "Did you mean 'train'"),
        ("train.total_steps", "must be field=value"),
        ("name.x=3", "it is a single value"),
        ("curriculum.schedule=cosin", "Did you mean 'cosine'"),
        ("train.total_steps=0", "total_steps must be 1 or more; got 0"),
        ("train.method=simmin", "Did you mean 'simmim'"),
        ("curriculum.policy=harder", "policy must be one of"),
        ("train.model.image_size=33", r"multiple of patch_size \(4\); got 33. Try 32"),
        ("train.model.mask_ratio=0.999", "leaves 0 visible"),
        ("trainers.min_workers=2", r"min_workers must be in 0\.\.workers \(1\); got 2"),
    ],
)
def test_a_wrong_override_is_one_clear_line(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(RUNS["debug"](DATA), (setting,))


def test_names_combine_into_a_run() -> None:
    names = combination(method="simmim", masking="block", curriculum="pass*prototypical", mto="paper")
    config = override(RUNS["debug"](DATA), names)
    model = config.train.model
    assert (config.train.method, model.masking, config.curriculum.policy) == ("simmim", "block", "pass*prototypical")
    assert (model.mto, model.pass_.enabled, model.pass_.score) == (MTO_PRESETS["paper"], True, "pass")
    with pytest.raises(ValueError, match="Did you mean 'block'"):
        combination(method=None, masking="blok", curriculum=None, mto=None)
    assert combination(method=None, masking=None, curriculum=None, mto=None) == []


def test_an_elastic_group_needs_a_batch_that_every_size_shares() -> None:
    settings = ("trainers.workers=4", "trainers.min_workers=3")
    with pytest.raises(ValueError, match=r"workers \(3 to 4\); got 32\. Try 24 or 36"):
        override(RUNS["debug"](DATA), settings)
    assert override(RUNS["debug"](DATA), (*settings, "train.global_batch=36")).trainers.range == (3, 4)


def test_a_batch_that_ranks_cannot_share_names_those_that_they_can() -> None:
    with pytest.raises(ValueError, match=r"divisible by trainers\.workers \(3\); got 32\. Try 30 or 33"):
        override(RUNS["debug"](DATA), ("trainers.workers=3",))


def test_a_name_that_could_leave_the_run_directory_is_refused() -> None:
    with pytest.raises(ValueError, match="name must be letters"):
        RunConfig(name="../x", data=DATA, train=RUNS["debug"](DATA).train)


def test_the_pass_recipe_costs_thirty_seven_percent_of_the_full_run() -> None:
    """METHODS section 7: 22,980 steps of 4,096 images instead of 62,400."""
    train = RUNS["pass_mae_b_200"](DATA).train
    assert train.total_steps == 22_980
    assert RUNS["mae_b_200"](DATA).train.total_steps == 62_400
    assert (train.model.pass_.enabled, train.model.pass_.keep, train.model.pass_.score) == (True, 0.3, "pass")


def test_the_simmim_recipe_scales_its_rates_by_batch() -> None:
    config = RUNS["simmim_b_800"](DATA)
    assert config.train.peak_lr == pytest.approx(4e-4)
    assert config.train.warmup_lr == pytest.approx(2e-6)
    assert config.data.transform.scale == (0.67, 1.0)
    assert (config.train.schedule, config.train.milestones, config.train.clip_norm) == ("multistep", (0.875,), 5.0)


def test_a_mixed_fleet_puts_its_first_loaders_on_gpus_and_shares_them(tmp_path: Path) -> None:
    fleet = FleetConfig(gpu_loaders=2, gpus_per_loader=0.25, cpus_per_loader=1.5)
    specs = fleet.specs(LoaderConfig(cache_bytes=1 << 20))
    assert [spec_of(f"loader-{number}", specs) for number in range(5)] == [0, 0, 1, 1, 1]
    assert [(spec.config.decoder, spec.num_gpus, spec.num_cpus) for spec in specs] == [
        ("dali", 0.25, 1.5),
        ("cpu", 0.0, 1.5),
    ]
    assert specs[0].config.device_id == 0


def test_determinism_refuses_a_mixed_fleet_and_says_why() -> None:
    mixed = ("fleet.gpu_loaders=1", "fleet.gpus_per_loader=0.5")
    override(RUNS["tiny"](DATA), mixed)
    with pytest.raises(ValueError, match=r"differ by rounding.*Set fleet.gpu_loaders to 0"):
        override(RUNS["tiny"](DATA), (*mixed, "train.deterministic=true"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fleet.max_loaders=2", "fleet.min_loaders=3"), r"min_loaders must be in 1\.\.max_loaders \(2\); got 3"),
        (("fleet.gpu_loaders=1",), "fleet.gpus_per_loader must be above 0"),
    ],
)
def test_fleets_that_cannot_be_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(RUNS["tiny"](DATA), words)


def test_a_fleet_scales_by_itself_only_when_it_has_a_most() -> None:
    assert FleetConfig().policy is None
    policy = FleetConfig(min_loaders=2, max_loaders=9).policy
    assert policy is not None
    assert (policy.min_size, policy.max_size, policy.wait_share) == (2, 9, 0.05)
