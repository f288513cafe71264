"""The command line: real data through real commands; what a user can fix is one line and exit status 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from deploy.cli import main
from deploy.runs.config import DataConfig
from tests.deploy.commands import answer, refusal


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for label, color in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        (root / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40 + number, 30), color).save(root / label / f"{number}.jpg")
    return root


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("demo", "shards", "score", "train", "resume", "status", "watch", "set"))
    assert all(name in shown for name in ("release", "scale", "log", "eval"))


def test_build_index_verify_info_agree(capsys: pytest.CaptureFixture[str], class_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    built = answer(capsys, "shards", "build", class_folders, "--out", out)
    assert (built["samples"], built["classes"], built["shards"]) == (6, 2, 1)
    assert built["mean_height"] == 30
    assert answer(capsys, "shards", "info", out / "index.parquet") == built
    assert answer(capsys, "shards", "verify", out / "index.parquet", "--full")["fingerprint"] == built["fingerprint"]


def test_a_changed_shard_is_stale_and_the_message_names_the_mend(
    capsys: pytest.CaptureFixture[str], class_folders: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    answer(capsys, "shards", "build", class_folders, "--out", out)
    shard = next(out.glob("*.tar"))
    shard.write_bytes(shard.read_bytes() + b"\0" * 512)
    assert "tempera shards index" in refusal(capsys, "shards", "verify", out / "index.parquet")


def test_score_writes_prototypes_and_their_picture(
    capsys: pytest.CaptureFixture[str], digits: DataConfig, tmp_path: Path
) -> None:
    scored = answer(capsys, "score", digits.index, "--out", tmp_path / "prototypes.parquet", "--clusters", 10)
    assert scored["clusters"] == 10
    assert Path(scored["prototypes"]).is_file()
    pictures = [Path(picture) for picture in scored["pictures"]]
    assert {picture.suffix for picture in pictures} == {".html", ".png"}
    for picture in pictures:
        if picture.suffix == ".html":
            assert "<script" in picture.read_text()
        else:
            with Image.open(picture) as image:
                assert image.format == "PNG"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bulid"], "bulid"),
        (["shards", "build", "x", "--out", "y", "--samples-per-shrad", "3"], "--samples-per-shard"),
        (["set", "effective-size", "much", "--run", "x"], "much"),
        (["shards", "info", "nowhere.parquet"], "no sample index"),
        (["train", "mae_b_8000", "--index", "x.parquet"], "Did you mean 'mae_b_800'"),
        (["train", "debug", "--index", "nowhere.parquet", "--out", "OUT"], "no sample index"),
        (["status", "--run", "nowhere"], "config.json is missing"),
        (["log", "--run", "nowhere"], "config.json is missing"),
        (["resume", "nowhere"], "config.json is missing"),
        (["demo", "--images", "nowhere", "--out", "OUT"], "nowhere"),
        (["demo", "--shards", "nowhere.tar", "--out", "OUT"], "nowhere.tar"),
        (["demo", "--images", "a", "--shards", "b.tar", "--out", "OUT"], "give one of them"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    out = tmp_path / "out"
    assert message in refusal(capsys, *(str(out) if word == "OUT" else word for word in words))
    assert not (out / "config.json").exists()
    assert not list(out.glob("data"))


def test_an_empty_folder_and_a_file_that_is_no_image_are_named(
    capsys: pytest.CaptureFixture[str], class_folders: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in refusal(capsys, "shards", "build", empty, "--out", tmp_path / "a")
    (class_folders / "red" / "9.jpg").write_text("not an image")
    assert "9.jpg" in refusal(capsys, "demo", "--images", class_folders, "--out", tmp_path / "b")
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").iterdir())
    assert not (tmp_path / "b").exists()


def test_controls_of_a_run_that_is_not_alive_say_how_to_continue_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "tempera resume" in refusal(capsys, "set", "effective-size", "0.3", "--run", tmp_path)
    assert "tempera resume" in refusal(capsys, "scale", "3", "--run", tmp_path)
    assert "nothing to stop" in refusal(capsys, "stop", "--run", tmp_path)


def test_doctor_finds_this_machine_fit_and_a_missing_index_unfit(
    capsys: pytest.CaptureFixture[str], digits: DataConfig, tmp_path: Path
) -> None:
    findings = answer(capsys, "doctor", "--out", tmp_path, "--index", digits.index)["findings"]
    checks = {finding["check"] for finding in findings}
    assert checks >= {"python", "torch", "ray", "faiss", "shared memory", "disk", "index"}
    moved = tmp_path / "index.parquet"
    shutil.copy(digits.index, moved)
    assert main(["doctor", "--index", str(moved)]) == 1
