import importlib
import sys
from pathlib import Path

import pytest
import torch
from trainer_fakes import FakeStream, tiny_run

from trainer import METHODS, Method, RunHooks, load_method, read_metrics, train
from trainer.methods.base import PixelMethod, SelectingMethod
from trainer.methods.mae import Mae

EXAMPLE = Path(__file__).parent / "example_method.py"


@pytest.fixture(autouse=True)
def _registered():
    importlib.import_module("example_method")
    yield
    METHODS.pop("mean_colour")
    sys.modules.pop("example_method")


def test_a_method_of_one_class_trains_resumes_and_gives_its_encoder(tmp_path):
    config = tiny_run(method="mean_colour", total_steps=20)
    stream = FakeStream(config)
    train(config, stream, run_dir=tmp_path, hooks=RunHooks(should_stop=lambda: stream.next_step == 9))
    train(config, FakeStream(config), run_dir=tmp_path)
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert len(losses) == 20
    assert losses[-1] < 0.9 * losses[0]
    assert load_method(tmp_path)[1].encoder.features(torch.rand(1, 3, 16, 16)).shape == (1, 17, 32)


def test_the_example_is_at_most_forty_lines_and_the_readme_shows_it_as_it_is():
    text = EXAMPLE.read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 40
    assert text in (Path(__file__).parents[2] / "trainer" / "README.md").read_text()


def test_a_method_that_lacks_a_part_is_refused_when_it_is_built():
    class NoForward(Method):
        pass

    class NoDifficulty(PixelMethod):
        forward = reconstruct = predict = to_pixels = Mae.forward

    assert NoDifficulty(tiny_run().model).config == tiny_run().model
    with pytest.raises(TypeError, match="forward"):
        NoForward(tiny_run().model)
    with pytest.raises(TypeError, match=r"difficulty.*difficulty_mask"):
        type("Half", (NoDifficulty, SelectingMethod), {})(tiny_run().model)
