"""`tempera eval`: each evaluation as a person runs it, on a run of the digits and on a timm model from a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from deploy.launch.launch import launch_in_process
from deploy.runs.config import DataConfig
from deploy.runs.overrides import override
from deploy.runs.recipes import debug
from deploy.runs.rundir import RunDir
from tests.deploy.commands import answer, refusal
from trainer import build_method, model_size

MODEL = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: DataConfig) -> RunDir:
    small = ("train.model.width=48", "train.model.depth=2", "train.model.heads=3", "train.model.decoder_depth=1")
    steps = ("train.total_steps=16", "train.window_steps=4", "train.epoch_steps=4", "evaluate_every=4")
    run = RunDir(tmp_path_factory.mktemp("evaluated") / "run")
    launch_in_process(override(debug(digits), (*small, *steps, "pictures=false")), run)
    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(MODEL, num_classes=0).state_dict(), path)
    return path


def test_neighbours_of_a_run_and_of_a_timm_model(
    run: RunDir, weights: Path, digits: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = answer(capsys, "eval", "knn", "--run", run.path, "--most", 200)
    assert (ours["images"], ours["tested"]) == (200, 200)
    assert min(ours[name] for name in ("nn_cls", "nn_mean", "weighted", "clmae", "nn_pixels")) > 0.2
    assert ours["clmae_any_of_5"] >= ours["clmae"]
    assert json.loads(Path(ours["file"]).read_text()) == ours
    assert Path(ours["file"]) == run.report / "knn.json"
    model = ("--timm", MODEL, "--weights", weights, "--image-size", 32, "--out", tmp_path)
    data = ("--index", digits.index, "--test-index", digits.test_index, "--most", 100)
    theirs = answer(capsys, "eval", "knn", *model, *data, "--no-pixels", "--backend", "faiss")
    same = answer(capsys, "eval", "knn", *model, *data, "--no-pixels")
    assert {key: value for key, value in theirs.items() if key != "file"}.items() <= same.items()
    assert 0.2 < same["nn_cls"] < 1


def test_neighbours_and_few_shots_of_an_official_checkpoint(
    digits: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    method = build_method("mae", model_size("tiny"))
    encoder = {name.removeprefix("encoder."): v for name, v in method.state_dict().items() if "encoder." in name}
    torch.save({"model": encoder, "args": argparse.Namespace(epochs=800)}, tmp_path / "mae_pretrain.pth")
    checkpoint = ("--official", "mae", "--size", "tiny", "--weights", tmp_path / "mae_pretrain.pth", "--out", tmp_path)
    data = ("--index", digits.index, "--test-index", digits.test_index, "--most", 100)
    found = answer(capsys, "eval", "knn", *checkpoint, *data, "--no-pixels")
    assert found["encoder"] == "mae_pretrain.pth (official mae)"
    assert 0.2 < found["nn_cls"] < 1
    shots = answer(capsys, "eval", "fewshot", *checkpoint, *data, "--shots", 4, "--draws", 1, "--pool", "mean")["shots"]
    assert shots[0]["acc1"] > 0.2
    assert "--official needs --weights FILE" in refusal(capsys, "eval", "knn", "--official", "mae", *data)
    assert "differs in" in refusal(capsys, "eval", "knn", *checkpoint, *data, "--size", "cifar")
    assert "exclude each other" in refusal(capsys, "eval", "knn", *checkpoint, *data, "--timm", MODEL)


def test_a_probe_few_shots_and_fine_tuning_of_a_run(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--run", run.path, "--most", 200, "--out", tmp_path)
    probe = answer(
        capsys, "eval", "linear", *common, "--recipe", "cached", "--set", "epochs=20", "batch=50", "base_lr=200"
    )
    assert probe["acc1"] > 0.2
    assert len(probe["curve"]) == 20
    shots = answer(capsys, "eval", "fewshot", *common, "--shots", 1, 4, "--draws", 2)["shots"]
    assert [row["shots"] for row in shots] == [1, 4]
    assert 0.1 < shots[0]["acc1"] <= shots[0]["acc5"] <= 1
    tuned = answer(capsys, "eval", "finetune", *common, "--set", "epochs=2", "batch=40", "base_lr=0.001", "lr_batch=0")
    assert tuned["recipe"] == "mae"
    assert [line["epoch"] for line in tuned["curve"]] == [1, 2]
    assert {path.name for path in tmp_path.glob("*.json")} == {"linear.json", "fewshot.json", "finetune.json"}


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright square on each of four dark images, in COCO's format and in ADE20K's."""
    root = tmp_path_factory.mktemp("squares")
    box = {"bbox": [16, 24, 32, 32], "area": 1024, "segmentation": [[16, 24, 48, 24, 48, 56, 16, 56]]}
    for split in ("training", "validation"):
        images, labels = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(4):
            picture, label = Image.new("RGB", (64, 64), (20, 20, 10 * number)), Image.new("L", (64, 64), 1)
            picture.paste((240, 240, 200), (16, 24, 48, 56))
            label.paste(2, (16, 24, 48, 56))
            picture.save(images / f"{number}.jpg")
            label.save(labels / f"{number}.png")
        coco = {
            "images": [{"id": n + 1, "file_name": f"{n}.jpg", "width": 64, "height": 64} for n in range(4)],
            "annotations": [{"id": n + 1, "image_id": n + 1, "category_id": 1, "iscrowd": 0, **box} for n in range(4)],
            "categories": [{"id": 1, "name": "square"}],
        }
        (root / f"{split}.json").write_text(json.dumps(coco))
    return root


def test_detection_and_segmentation_of_a_run_and_of_a_timm_model(
    run: RunDir, weights: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ("--train-annotations", squares / "training.json", "--train-images", squares / "images" / "training")
    test = ("--test-annotations", squares / "validation.json", "--test-images", squares / "images" / "validation")
    small = ("epochs=1", "batch=4", "image_size=64", "width=16", "box_width=32", "regions=16", "proposals=50")
    found = answer(
        capsys, "eval", "detection", "--run", run.path, "--out", tmp_path, *train, *test, "--set", *small, "window=4"
    )
    assert found["epochs"] == 1
    assert 0 <= found["ap_box"] <= found["ap50_box"] <= 1
    model = ("--timm", MODEL, "--weights", weights, "--image-size", 32, "--out", tmp_path)
    few = ("steps=2", "batch=2", "crop=64", "stride=64", "width=16", "base=[64,64]", "test_every=2", "warmup_steps=1")
    found = answer(capsys, "eval", "segmentation", *model, "--data", squares, "--set", *few)
    assert found["classes"] == 2
    assert 0 <= found["miou"] <= found["macc"] <= 1
    assert {path.name for path in tmp_path.glob("*.json")} == {"detection.json", "segmentation.json"}


def test_rauc_compares_two_runs_curves(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    curve = [line["nn_cls"] for line in run.metric_lines() if "nn_cls" in line]
    assert len(curve) == 4
    if sum(curve[1:]) > 3 * curve[0]:
        found = answer(capsys, "eval", "rauc", run.path, run.path)
        assert found["rauc"] == pytest.approx(1)
        assert found["epochs"] == [1, 2, 3, 4]
    assert "has no 'nn_best' in metrics.jsonl" in refusal(
        capsys, "eval", "rauc", run.path, run.path, "--metric", "nn_best"
    )
    assert "start must be a measured epoch (1, 2, 3, 4); got 1.5" in refusal(
        capsys, "eval", "rauc", run.path, run.path, "--start", "1.5"
    )


def test_what_cannot_be_evaluated_is_one_line(
    run: RunDir, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "needs --timm NAME" in refusal(capsys, "eval", "linear", "--run", run.path, "--weights", weights)
    model = ("--timm", MODEL, "--weights", weights, "--image-size", 32, "--out", tmp_path)
    assert f"{MODEL} needs --index FILE" in refusal(capsys, "eval", "linear", *model)
    assert "Did you mean 'bootmae'" in refusal(capsys, "eval", "linear", "--run", run.path, "--recipe", "botmae")
    assert "Did you mean 'epochs'" in refusal(capsys, "eval", "finetune", "--run", run.path, "--set", "epoch=3")
    assert "images/training/*.jpg" in refusal(capsys, "eval", "segmentation", "--run", run.path, "--data", tmp_path)
    nothing = tmp_path / "none.json"
    files = ("--train-annotations", nothing, "--train-images", tmp_path)
    held_out = ("--test-annotations", nothing, "--test-images", tmp_path)
    assert "must be a COCO instances file" in refusal(capsys, "eval", "detection", "--run", run.path, *files, *held_out)
