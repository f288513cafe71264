import json
import threading

import pytest
import torch

from trainer import CheckpointError, Checkpoints, load_checkpoint
from trainer.record.checkpoint import checkpoint_paths


def save(checkpoints, step, metric=None, value=1.0):
    checkpoints.save(step, {"model": {"w": torch.full((4, 3), value)}}, {"metric": metric, "config": {}})
    checkpoints.wait()


def test_what_is_saved_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 7, value=2.5)
    found = load_checkpoint(tmp_path)
    assert found.state["step"] == 7
    assert torch.equal(found.tensors["model"]["w"], torch.full((4, 3), 2.5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000007"]
    checkpoints.close()


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, metric in enumerate([0.9, 0.3, 0.8, 0.7, 0.6]):
        save(checkpoints, step, metric)
    assert [path.name[-1] for path in checkpoint_paths(tmp_path)] == ["1", "3", "4"]


def test_the_step_does_not_wait_for_the_disk_and_sees_a_copy(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    write = checkpoints._write
    disk = threading.Event()
    monkeypatch.setattr(checkpoints, "_write", lambda *args: (disk.wait(60), write(*args))[1])
    weight = torch.zeros(8)
    checkpoints.save(1, {"model": {"w": weight}}, {})
    assert checkpoint_paths(tmp_path) == []
    weight.fill_(9.0)
    disk.set()
    assert not load_checkpoint(checkpoints.wait()).tensors["model"]["w"].any()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "torn json"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, damage, caplog):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    model, state = tmp_path / "step-00000002" / "model.safetensors", tmp_path / "step-00000002" / "state.json"
    raw = bytearray(model.read_bytes())
    if damage == "flip":
        raw[-1] ^= 1
        model.write_bytes(raw)
    elif damage == "truncate":
        model.write_bytes(raw[:-5])
    elif damage == "remove":
        model.unlink()
    else:
        state.write_text(state.read_text()[:40])
    assert checkpoints.latest().state["step"] == 1
    assert "checkpoint skipped" in caplog.text
    with pytest.raises(CheckpointError, match="must"):
        load_checkpoint(tmp_path)


def test_when_all_are_damaged_the_run_does_not_start_from_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    save(checkpoints, 1)
    (tmp_path / "step-00000001" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"at least one checkpoint must be intact; all 1"):
        checkpoints.latest()


def test_a_crash_while_writing_leaves_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    half = tmp_path / ".writing-step-00000002"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoints.latest().state["step"] == 1
    save(checkpoints, 2)
    assert not half.exists()


def test_a_full_disk_is_a_typed_error_and_keeps_the_one_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.record.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match=r"must fit on the disk.*No space left"):
        save(checkpoints, 2)
    assert checkpoints.latest().state["step"] == 1


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    save(Checkpoints(tmp_path), 1)
    path = tmp_path / "step-00000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match=r"must be of format 1; .* is of format 99"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"must hold a readable state\.json"):
        load_checkpoint(tmp_path / "nowhere")
