import os
import pickle
import signal

import numpy as np
import pytest

os.environ.setdefault("RAY_AUTH_MODE", "token")

from scoring import Control, Event, Prototypes, RunMismatch, SelectionConfig, VersionConflict


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    token = home / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        import ray  # noqa: PLC0415

        already = ray.is_initialized()
        if not already:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=100_000_000,
                log_to_driver=False,
            )
        yield
        if not already:
            ray.shutdown()


@pytest.fixture
def run(cluster, tmp_path):
    from scoring import actors  # noqa: PLC0415

    distance = np.random.default_rng(0).beta(3.4, 2.38, 500).astype(np.float32)
    Prototypes(
        distance=distance,
        cluster=np.zeros(500, np.int32),
        centroids=np.zeros((1, 2), np.float32),
        davies_bouldin={1: 0.0},
    ).save(tmp_path / "prototypes.parquet")

    started = []

    def start(**changes):
        config = SelectionConfig(**{"seed": 3, "global_batch": 8, "window_steps": 2, **changes})
        name = f"selection-{tmp_path.name}"
        client = actors.start_selection(
            config, runlog=tmp_path / "run.sqlite", prototypes=tmp_path / "prototypes.parquet", name=name
        )
        started.append(client)
        return client

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
    from scoring import RunLog, Selection  # noqa: PLC0415

    log = RunLog(tmp_path / "run.sqlite")
    Selection(
        None, SelectionConfig(seed=4, global_batch=8, window_steps=2, policy="uniform", num_samples=9), runlog=log
    )
    log.close()
    with pytest.raises(RunMismatch, match="must be the run's own"):
        run()
    with pytest.raises(RunMismatch, match="one selection service serves one run"):
        run(seed=9)
