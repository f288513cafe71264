"""`tempera score`: from an index to prototypes and their pictures, in every feature space, in one go or in several."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from deploy.cli import main
from deploy.launch.launch import launch_in_process
from deploy.runs.config import DataConfig
from deploy.runs.overrides import override
from deploy.runs.recipes import debug
from deploy.runs.rundir import RunDir, RunError
from deploy.studies.prototypes import features as described
from deploy.studies.prototypes.features import FeatureSpec, compute_features
from deploy.studies.prototypes.job import score
from deploy.studies.prototypes.report import size_by_temperature, write_prototype_page
from loader import ShardIndex, build_index, build_shards
from loader.shards.sources import digits as digits_of
from loader.sweep import evaluation_transform, sweep
from scoring import Prototypes
from tests.deploy.api_run import WINDOW_STEPS, alive, tiny
from tests.deploy.commands import answer
from tests.runs import wait_for
from trainer.evaluate.knn import embed_pools
from trainer.record.export import load_method


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """320 labelled images."""
    folder = tmp_path_factory.mktemp("few")
    build_index(build_shards(list(islice(digits_of().samples, 320)), folder / "shards"), folder / "index.parquet")
    return folder / "index.parquet"


def test_spaces_are_scored_and_compared(tmp_path: Path, index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    settings = {"hog": (), "sift": ("--normalise", "library"), "pixels": ("--clusters-from", "labels")}
    for space, more in settings.items():
        files.append(tmp_path / space / f"{space}.parquet")
        words = ("--features", space, "--clusters", 12, "--out", files[-1])
        facts = answer(capsys, "score", index, *words, *more)
        assert facts["clusters"] == (10 if space == "pixels" else 12)
        assert facts["kmeans_device"] == "cpu"
        assert {Path(path).name for path in facts["pictures"]} == {
            "prototypes.html", "prototypes.png", "distances.png", "temperature.png"
        }  # fmt: skip
        assert [path.name for path in files[-1].parent.iterdir() if path.is_dir()] == ["report"]
    facts = answer(capsys, "score", "--compare", *map(str, files), "--out", str(tmp_path / "overlap.png"))
    agreement = np.array(facts["rank_correlation"])
    np.testing.assert_allclose(np.diag(agreement), 1)
    assert 0.05 < np.array(facts["nearest_overlap"])[0, 1] < 1
    assert (tmp_path / "overlap.png").stat().st_size > 1000


def test_weights_of_a_file_are_used(tmp_path: Path, index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    save_file(timm.create_model(name, img_size=32).state_dict(), tmp_path / "w.safetensors")
    words = ("score", str(index), "--features", name, "--size", "32", "--clusters", "5", "--out", str(tmp_path / "p"))
    assert answer(capsys, *words, "--weights", str(tmp_path / "w.safetensors"))["clusters"] == 5
    assert main([*words, "--weights", str(tmp_path / "none")]) == 2
    assert "--weights must be a file" in capsys.readouterr().err
    assert main(["score", str(index), "--features", "hogg"]) == 2
    assert "does not know 'hogg'" in capsys.readouterr().err.replace("\n", " ")
    assert main(["score"]) == 2
    assert main(["score", str(index), "--kmeans", "gpu"]) == 2


def test_a_run_scores_with_its_own_encoder(
    tmp_path: Path, digits: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("train.total_steps=4", "train.checkpoint_every=4", "train.model.width=48", "train.model.depth=1")
    run = RunDir(tmp_path / "run")
    launch_in_process(override(debug(digits), (*small, "train.warmup_steps=1", "pictures=false")), run)
    facts = answer(capsys, "score", "--from-run", str(run.path), "--clusters", "7")
    assert facts["swapped_in"] is None  # nobody draws: the run is over
    found = Prototypes.load(run.path / "prototypes" / "step-00000004.parquet")
    assert (found.num_clusters, found.centroids.shape[1]) == (7, 48)
    assert found.fingerprint == ShardIndex.load(digits.index).fingerprint
    encoder = load_method(run.path)[1].encoder
    _, images, _ = next(sweep(Path(digits.index), evaluation_transform(32), ids=np.arange(3)))
    config = debug(digits).train
    expected = embed_pools(encoder, [images], mean=config.mean, std=config.std)["cls"]
    features = described.FeatureSpec(space="run", run=str(run.path)).build(tmp_path)(images)
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_a_live_run_draws_by_the_distances_of_its_own_encoder(
    tmp_path: Path, digits: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(digits, steps=10**6, settings=("train.checkpoint_every=4",))
    with alive(tmp_path / "run", config) as run:
        wait_for(lambda: list(run.checkpoints.glob("step-*")), "a checkpoint")
        facts = answer(capsys, "score", "--from-run", str(run.path), "--clusters", "5")
        window = facts["swapped_in"]["window"]
        wait_for(lambda: run.metric_lines()[-1]["step"] > WINDOW_STEPS * (window + 1), "the swap's window")
        entries = answer(capsys, "log", "--run", str(run.path))["entries"]
    (entry,) = [entry for entry in entries if entry["kind"] == "distances"]
    assert entry["window"] == window
    assert Path(entry["value"]).resolve() == Path(facts["prototypes"]).resolve()
    assert entry["reason"].startswith("scored by the run's own encoder at step ")


def test_a_job_that_stopped_goes_on_with_what_is_missing(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(described, "CHUNK_SAMPLES", 100)
    spec = FeatureSpec(space="sift")
    whole = compute_features(index, spec, tmp_path / "whole")
    made: list[int] = []
    make = described.ChunkMaker.make

    def stops(self: described.ChunkMaker, chunk: int) -> int:
        if chunk == 2:
            raise KeyboardInterrupt
        made.append(chunk)
        return make(self, chunk)

    monkeypatch.setattr(described.ChunkMaker, "make", stops)
    with pytest.raises(KeyboardInterrupt):
        compute_features(index, spec, tmp_path / "parts")
    monkeypatch.setattr(described.ChunkMaker, "make", lambda self, chunk: made.append(chunk) or make(self, chunk))
    done: list[tuple[int, int]] = []
    parts = compute_features(index, spec, tmp_path / "parts", advance=lambda *now: done.append(now))
    assert made == [0, 1, 2, 3]
    assert done == [(300, 320), (320, 320)]
    np.testing.assert_array_equal(parts[:], whole[:])
    with pytest.raises(ValueError, match="same space"):
        compute_features(index, replace(spec, space="hog"), tmp_path / "parts")


def test_workers_that_finish_no_chunk_end_the_job(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def wait(running: list[object], *, timeout: float) -> tuple[list[object], list[object]]:
        asked.append(timeout)
        return [], running

    maker = SimpleNamespace(make=SimpleNamespace(remote=lambda chunk: chunk))
    actor = SimpleNamespace(remote=lambda *args: maker)
    frozen = SimpleNamespace(
        cluster_resources=dict, remote=lambda kind: SimpleNamespace(options=lambda **needs: actor), wait=wait
    )
    monkeypatch.setitem(sys.modules, "ray", frozen)
    monkeypatch.setattr("deploy.launch.cluster.cluster", lambda directory, *, num_cpus: nullcontext())
    with pytest.raises(RunError, match=f"no chunk of features was finished within {described.STALL_S:.0f} s"):
        compute_features(index, FeatureSpec(), tmp_path / "features", workers=2)
    assert asked == [described.STALL_S]


@pytest.mark.ray
def test_workers_under_ray_compute_the_same(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(described, "CHUNK_SAMPLES", 120)
    here = compute_features(index, FeatureSpec(space="pixels"), tmp_path / "here")
    there = compute_features(index, FeatureSpec(space="pixels"), tmp_path / "there", workers=2)
    np.testing.assert_array_equal(here[:], there[:])


def test_a_sample_that_cannot_be_decoded_is_far_from_every_prototype(tmp_path: Path) -> None:
    samples = list(islice(digits_of().samples, 40))
    samples[7] = replace(samples[7], data=samples[7].data[: len(samples[7].data) // 2])
    build_index(build_shards(samples, tmp_path / "shards"), tmp_path / "index.parquet")
    found = score(tmp_path / "index.parquet", tmp_path / "p.parquet", num_clusters=3)
    assert len(found.bad) == 1
    assert found.prototypes.distance[7] == 1.0


def test_the_page_shows_every_cluster_and_escapes_what_the_data_says(
    tmp_path: Path, digits: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Path(digits.index)
    hostile = "\"><script>alert('x')</script>"
    load = ShardIndex.load(index)
    monkeypatch.setattr(ShardIndex, "keys", [hostile] * len(load), raising=False)
    prototypes = Prototypes.load(index.parent / "prototypes.parquet")
    write_prototype_page(tmp_path / "p.html", index, prototypes, title="<b>")
    page = (tmp_path / "p.html").read_text()
    assert page.count("<section") == prototypes.num_clusters == 20
    assert page.count("data:image/jpeg;base64,") == 20 * 16
    assert page.count("<script>") == 1
    assert "alert(&#x27;x&#x27;)" in page
    assert "&lt;b&gt;" in page
    assert not re.search(r"(src|href)=[\"']?http", page)


def test_effective_size_rises_with_temperature_to_its_limit(digits: DataConfig) -> None:
    for sizes in size_by_temperature(Prototypes.load(digits.prototypes or "")).values():
        assert sizes == sorted(sizes)
        assert 0.6 < sizes[-1] < 0.6323
