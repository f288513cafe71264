import os
import pickle
import signal
from contextlib import closing

import numpy as np
import pytest

os.environ.setdefault("RAY_AUTH_MODE", "token")

from scoring import Control, Event, Prototypes, RunMismatch, Selection, VersionConflict
from tests.local_ray import local_ray
from tests.scoring.configs import distances, selection_config


@pytest.fixture(scope="module")
def cluster():
    with local_ray(object_store_memory=100_000_000):
        yield


@pytest.fixture
def run(cluster, tmp_path):
    from scoring import actors

    file, centroids = tmp_path / "prototypes.parquet", np.zeros((1, 2), np.float32)
    found = {"distance": distances(500), "cluster": np.zeros(500, np.int32), "centroids": centroids}
    Prototypes(**found, davies_bouldin={1: 0.0}).save(file)
    started = []

    def start(**changes):
        config = selection_config(**{"seed": 3, "global_batch": 8, "window_steps": 2, **changes})
        name = f"selection-{tmp_path.name}"
        started.append(actors.start_selection(config, runlog=tmp_path / "run.sqlite", prototypes=file, name=name))
        return actors.SelectionClient(name=name)

    yield start
    for client in started:
        client.stop()


@pytest.mark.ray
def test_client_speaks_for_the_selection(run):
    client = run()
    client = pickle.loads(pickle.dumps(client))
    window = client.window(0, effective_size=0.3)
    assert window.effective_size == 0.3
    assert client.window(0).digest == window.digest
    assert client.report_scores([1, 2], [0.5, -1.0], step=0, producer="rank-0", sequence=0).rejected == {"negative": 1}
    assert client.control(Control(kind="effective_size", value=0.5, author="ann")).window == 1
    client.record(Event(kind="scale", author="ann", value=4))
    assert [entry.kind for entry in client.log()] == ["schedule", "effective_size", "scale"]
    assert client.times_drawn().sum() == 16
    with pytest.raises(VersionConflict):
        client.control(Control(kind="release", author="bob", expected_version=0))
    with pytest.raises(ValueError, match="effective_size must be in"):
        client.control(Control(kind="effective_size", value=2.0, author="bob"))


@pytest.mark.ray
def test_killed_service_returns_with_everything_it_acknowledged(run):
    client = run()
    before = [client.window(index, effective_size=0.3).digest for index in range(3)]
    client.control(Control(kind="effective_size", value=0.5, author="ann"))
    client.report_scores([7], [0.5], step=0, producer="rank-0", sequence=0)
    state = client.state()
    os.kill(state["pid"], signal.SIGKILL)
    assert [client.window(index).digest for index in range(3)] == before
    after = client.state()
    assert after["pid"] != state["pid"]
    for field in ("effective_size", "control_version", "next_window", "scored", "times_drawn"):
        assert after[field] == state[field]


@pytest.mark.ray
def test_wrong_run_is_a_typed_error(run, tmp_path):
    from scoring import RunLog

    other = selection_config(seed=4, global_batch=8, window_steps=2, policy="uniform", num_samples=9)
    with closing(RunLog(tmp_path / "run.sqlite")) as log:
        Selection(None, other, runlog=log)
    with pytest.raises(RunMismatch, match="must be the run's own"):
        run()
    with pytest.raises(RunMismatch, match="one selection service serves one run"):
        run(seed=9)


@pytest.mark.ray
def test_table_is_exported_by_the_service(run, tmp_path):
    assert run().view("export", path=str(tmp_path / "table.parquet")) == {"rows": 500}
    assert (tmp_path / "table.parquet").exists()


@pytest.mark.ray
def test_many_trainers_are_served_at_once(cluster, tmp_path):
    from tests.bench.selection_actors import PROCESSES, measure_requests

    figures = measure_requests(tmp_path, trainers=2 * PROCESSES, rounds=1, num_samples=2000)
    assert set(figures) == {"window_p99_ms_8_trainers", "window_p99_ms_8_trainers_best"}
    assert all(0 < value < 10_000 for value in figures.values())
