import os
import signal
from pathlib import Path

import pytest
from trainer_fakes import FakeStream, tiny_run

from trainer import read_metrics, train

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def local_ray(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class FatalStream(FakeStream):
    """Kills its process before step 4, once in a run directory."""

    marker: Path

    def batch(self, step):
        if step == 4 and self.rank == 1 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(step)


def test_two_ray_workers_train_the_run_of_one_process_though_one_is_killed(tmp_path, local_ray):
    from trainer.actors import TrainJob, train_on_ray

    config = tiny_run(total_steps=6, checkpoint_every=2)
    marker = tmp_path / "killed"

    def make_stream(context):
        stream = FatalStream(config, rank=context.rank, world_size=context.world_size)
        stream.marker = marker
        return stream

    job = TrainJob(config=config, run_dir=str(tmp_path / "ray"), make_stream=make_stream)
    result = train_on_ray(job, num_workers=2, resources_per_worker={"CPU": 0.5}, max_failures=1)
    train(config, FakeStream(config), run_dir=tmp_path / "alone")
    assert marker.exists()
    assert (result.step, result.reason) == (6, "finished")
    together, alone = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("ray", "alone"))
    assert [line["step"] for line in together] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=1e-4)
