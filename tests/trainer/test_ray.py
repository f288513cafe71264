import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from trainer_fakes import FakeStream, tiny_run

from tests.local_ray import local_ray as started_ray
from trainer import read_metrics, train

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def local_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.2")
        with started_ray() as ray:
            yield ray.get_runtime_context().gcs_address


def controllers_torch():
    """Whether each Ray Train controller of this worker's node has torch in its memory."""
    raylet = os.getppid()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and "TrainController" in (process / "cmdline").read_text():
                yield "libtorch" in (process / "maps").read_text()


class FatalStream(FakeStream):
    """Kills its process before step 4, once in a run directory."""

    marker: Path

    def batch(self, step):
        if step == 5 and self.rank == 0:
            self.marker.with_name("controllers").write_text(json.dumps(list(controllers_torch())))
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
    assert json.loads((tmp_path / "controllers").read_text()) == [False], "the controller computes nothing"
    assert (result.step, result.reason) == (6, "finished")
    together, alone = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("ray", "alone"))
    assert [line["step"] for line in together] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=1e-4)


def test_an_elastic_group_trains_with_the_ranks_that_fit_and_saves_when_its_node_will_go(tmp_path, local_ray):
    """One of at most two ranks fits. The node is to be drained in an hour: a checkpoint is written at the notice.

    When the trainer hears of it is up to Ray: steps are slow until that checkpoint is there.
    """
    import ray
    from ray._raylet import GcsClient

    from trainer.actors import TrainJob, train_on_ray

    config = tiny_run(total_steps=400, keep_checkpoints=9)
    sizes, node, address = tmp_path / "sizes", ray.get_runtime_context().get_node_id(), local_ray
    checkpoints = tmp_path / "ray" / "checkpoints"

    def make_stream(context):
        sizes.write_text(str(context.world_size))
        return DrainedStream(config, rank=context.rank, world_size=context.world_size)

    class DrainedStream(FakeStream):
        def batch(self, step):
            if step == 4:
                reason, deadline_ms = 2, int((time.time() + 3600) * 1000)  # 2 is preemption
                accepted, why = GcsClient(address=address).drain_node(node, reason, "the test", deadline_ms)
                assert accepted, why
            if not any(checkpoints.glob("step-*")):
                time.sleep(0.1 if step < 300 else 1.0)
            return super().batch(step)

    job = TrainJob(config=config, run_dir=str(tmp_path / "ray"), make_stream=make_stream)
    result = train_on_ray(job, num_workers=(1, 2), resources_per_worker={"CPU": 1.5})
    assert sizes.read_text() == "1"
    assert (result.step, result.reason) == (400, "finished")
    saved = [path.name for path in sorted(checkpoints.glob("step-*"))]
    assert len(saved) == 2
    assert "step-00000004" < saved[0] < "step-00000400" == saved[1]
