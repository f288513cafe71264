import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from trainer_fakes import FakeSelection, FakeStream, tiny, tiny_run

import trainer.step as step_module
from trainer import NonFiniteLossError, RunHooks, load_checkpoint, load_method, read_metrics, train
from trainer.loop import build_state
from trainer.step import train_step


def run(config, run_dir, stream=None, *, selection=None, resume=True, **hooks):
    stream = stream or FakeStream(config)
    return train(config, stream, run_dir=run_dir, selection=selection, resume=resume, hooks=RunHooks(**hooks))


def losses(run_dir):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in read_metrics(run_dir / "metrics.jsonl")]


def weights(run_dir):
    return load_checkpoint(run_dir).tensors


def assert_same_tensors(left, right):
    assert left.keys() == right.keys()
    for file in left:
        assert left[file].keys() == right[file].keys()
        for name, value in left[file].items():
            assert torch.equal(value, right[file][name]), name


def test_two_runs_agree_bit_for_bit_and_the_loss_falls(tmp_path):
    config = tiny_run(total_steps=30)
    result = run(config, tmp_path / "a")
    run(config, tmp_path / "b")
    assert result.step == 30
    assert result.reason == "finished"
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a")[-1][1] < 0.97 * losses(tmp_path / "a")[0][1]
    assert_same_tensors(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("stop_at", [1, 3, 4, 7])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, stop_at):
    config = tiny_run(checkpoint_every=2, ema_decay=0.9)
    run(config, tmp_path / "whole")
    stream = FakeStream(config)
    stopped = run(config, tmp_path / "parts", stream, should_stop=lambda: stream.next_step == stop_at)
    assert stopped.reason == "stopped"
    assert stopped.step == stop_at
    finished = run(config, tmp_path / "parts")
    assert finished.reason == "finished"
    assert finished.step == 8
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert_same_tensors(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_a_crash_after_a_checkpoint_repeats_the_steps_without_double_lines(tmp_path):
    config = tiny_run(checkpoint_every=3)
    run(config, tmp_path / "whole")

    def crash(step, metrics):
        if step == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(config, tmp_path / "parts", on_step=crash)
    assert [line["step"] for line in read_metrics(tmp_path / "parts" / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    run(config, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_accumulation_gives_the_same_masks_and_nearly_the_same_loss(tmp_path):
    run(tiny_run(), tmp_path / "one")
    run(tiny_run(accumulation_steps=4), tmp_path / "four")
    one, four = losses(tmp_path / "one"), losses(tmp_path / "four")
    assert np.allclose([line[1:] for line in one], [line[1:] for line in four], rtol=1e-4)


def test_sigterm_writes_a_checkpoint_and_returns(tmp_path):
    config = tiny_run(total_steps=10_000)

    def interrupt(step, metrics):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    result = run(config, tmp_path, on_step=interrupt)
    assert (result.reason, result.step) == ("stopped", 3)
    assert load_checkpoint(tmp_path).state["stream"] == {"step": 3}
    assert signal.getsignal(signal.SIGTERM) is before


def test_training_works_in_a_thread_where_signals_cannot_be_set(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tiny_run(), tmp_path)))
    thread.start()
    thread.join(60)
    assert results[0].reason == "finished"


def test_scores_of_every_window_reach_the_selection_in_order(tmp_path):
    config, selection = tiny_run(total_steps=10), FakeSelection()
    run(config, tmp_path, selection=selection)
    assert [report[5] for report in selection.reports] == [4, 8, 10]
    ids = np.concatenate([report[0] for report in selection.reports])
    values = np.concatenate([report[1] for report in selection.reports])
    stream = FakeStream(config)
    assert ids.tolist() == np.concatenate([stream.batch(step).sample_ids for step in range(10)]).tolist()
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    means = values.reshape(10, 8).mean(1)
    assert np.allclose(means, [line[1] for line in losses(tmp_path)], rtol=1e-5)
    assert {(r[2], r[4]) for r in selection.reports} == {("bss", "trainer-0")}


def test_a_slow_or_absent_selection_does_not_hold_the_steps(tmp_path):
    config = tiny_run(total_steps=8, window_steps=2)
    selection = FakeSelection(gate=threading.Event())
    reported_at_the_last_step = []

    def release(step, metrics):
        if step == 8:
            reported_at_the_last_step.append(len(selection.reports))
            selection.gate.set()

    run(config, tmp_path / "held up", selection=selection, on_step=release)
    assert reported_at_the_last_step == [0]
    assert len(selection.reports) == 4
    assert run(config, tmp_path / "absent", selection=FakeSelection(fail=True)).reason == "finished"


def test_a_non_finite_loss_stops_before_the_update_and_names_the_sample(tmp_path):
    config = tiny_run(std=(0.229, 0.224, 0.225))
    state = build_state(config)
    good = FakeStream(config)
    train_step(state, good.batch(0).images)
    before = {name: value.clone() for name, value in state.method.state_dict().items()}
    with torch.no_grad():
        state.method.decoder.pred.bias[0] = float("inf")
    train_step(state, good.batch(1).images)
    after = state.method.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name != "decoder.pred.bias")


def test_the_error_of_a_non_finite_loss_lists_the_sample_ids(tmp_path, monkeypatch):
    config = tiny_run()
    stream = FakeStream(config)
    real = step_module.normalise

    def spoil(images, config):
        images = real(images, config)
        if stream.next_step == 3:
            images[5] = float("nan")
        return images

    monkeypatch.setattr(step_module, "normalise", spoil)
    bad = int(stream.batch(2).sample_ids[5])
    with pytest.raises(NonFiniteLossError, match=rf"step 2 gave NaN or infinity, sample ids {bad}\b.*resume") as caught:
        run(config, tmp_path, stream)
    saved = json.loads(Path(caught.value.path).read_text())
    assert saved["bad_sample_ids"] == [bad]
    assert len(saved["losses"]) >= 7
    assert [line[0] for line in losses(tmp_path)] == [1, 2]


def test_evaluation_runs_on_schedule_and_at_the_end_without_changing_the_run(tmp_path):
    calls = []

    def evaluate(step, method):
        assert not method.training
        calls.append(step)
        torch.rand(7)
        return {"nn_accuracy": step / 10}

    run(tiny_run(), tmp_path / "plain")
    run(tiny_run(), tmp_path / "evaluated", evaluate_every=3, on_evaluate=evaluate)
    assert calls == [3, 6, 8]
    lines = read_metrics(tmp_path / "evaluated" / "metrics.jsonl")
    assert [line["nn_accuracy"] for line in lines if "nn_accuracy" in line] == [0.3, 0.6, 0.8]
    assert_same_tensors(weights(tmp_path / "plain"), weights(tmp_path / "evaluated"))


def test_a_finished_run_stays_finished(tmp_path):
    run(tiny_run(), tmp_path)
    before = load_checkpoint(tmp_path).state
    again = run(tiny_run(), tmp_path)
    assert (again.step, again.reason) == (8, "finished")
    assert load_checkpoint(tmp_path).state == before


def test_the_trained_encoder_loads_from_the_run_directory(tmp_path):
    run(tiny_run(ema_decay=0.5), tmp_path)
    encoder = load_method(tmp_path)[1].encoder
    images = torch.rand(2, 3, 16, 16)
    assert encoder.features(images).shape == (2, 17, 32)
    assert not encoder.training
    assert not torch.equal(encoder.features(images), load_method(tmp_path, averaged=True)[1].encoder.features(images))


def test_bad_runs_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"method must be one of .*got 'maee'\. Did you mean 'mae'\?"):
        run(tiny_run(method="maee"), tmp_path)
    with pytest.raises(ValueError, match=r"world_size \* accumulation_steps \(1 \* 3\); got 8\. Try 6 or 9"):
        run(tiny_run(accumulation_steps=3), tmp_path)
    with pytest.raises(ValueError, match="device 'cuda' needs an NVIDIA GPU"):
        run(tiny_run(device="cuda"), tmp_path)
    config = tiny_run()
    with pytest.raises(ValueError, match=r"must be for the next step \(0\); the stream gave step 2"):
        run(config, tmp_path, FakeStream(config, next_step=2))
    with pytest.raises(ValueError, match=r"uint8\[8, 3, 16, 16\].*got \[8, 3, 32, 32\]"):
        run(config, tmp_path, FakeStream(tiny_run(model=tiny(image_size=32))))


def test_a_stream_that_ends_early_is_an_error(tmp_path):
    short = FakeStream(tiny_run(total_steps=5))
    with pytest.raises(ValueError, match=r"must give total_steps \(8\) batches; it ended at step 5"):
        run(tiny_run(), tmp_path, short)


def test_another_run_in_the_directory_is_refused(tmp_path):
    run(tiny_run(), tmp_path)
    with pytest.raises(ValueError, match="a new run needs an empty run directory"):
        run(tiny_run(), tmp_path, resume=False)
    with pytest.raises(ValueError, match=r"differs in seed \(was 0, now 1\)"):
        run(tiny_run(seed=1), tmp_path)
    with pytest.raises(ValueError, match="differs in model"):
        run(tiny_run(model=tiny(depth=1)), tmp_path)
