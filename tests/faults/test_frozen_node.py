"""A whole node that stands still, raylet and all, and comes back, as when a machine swaps; or is lost for good.

Ray's settings are its own: it needs 15 seconds and more to call such a node dead, and the run must not wait for that.
"""

# Ray reads its authentication settings when it is imported, so every import of it follows the fixture that sets them.

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.launch.cluster import ONE_MACHINE
from loader import BatchStream, LoaderConfig, ShardIndex
from tests.faults.consuming import CONFIG, Consumed, consume, in_process, windows
from tests.integration import cluster_nodes
from tests.integration.cluster_nodes import Nodes, cluster_in_namespaces, cluster_of_raylets, namespaces_work

FROZEN_S, GOAL_S = 20.0, 10.0
HEDGED_S = GOAL_S / 2
"""Well below the ten seconds after which a loader that does not answer is taken for lost."""
STEP_S = 0.05
LONG = replace(CONFIG, total_steps=640)
"""More than half a minute of training."""

pytestmark = [pytest.mark.faults, pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Three nodes for two loaders, with Ray's own patience for nodes that are silent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(ONE_MACHINE, raising=False)
        for name in [name for name in cluster_nodes.FAST if "health_check" in name]:
            patch.delitem(cluster_nodes.FAST, name)
        start = cluster_in_namespaces if namespaces_work() else cluster_of_raylets
        with start("loader", "loader", "loader") as nodes:
            import ray

            ray.init(address=nodes.gcs, log_to_driver=False)
            try:
                yield nodes
            finally:
                ray.shutdown()


def stands_still(pid: int) -> bool:
    """Whether a process is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def through_a_freeze(cluster: Nodes, index: ShardIndex) -> tuple[Consumed, float, float, dict[str, float | int]]:
    """What was consumed while a node with a loader froze; when it froze, and when it thawed."""
    from loader.actors import RayLoaders
    from loader.fleet.actors import start_fleet

    moments: list[float] = []

    with closing(start_fleet(index.path, LoaderConfig(), size=2, num_cpus=1)) as fleet:
        places = {one["node"] for one in fleet.status()["loaders"]}
        assert len(places) == 2, "each loader is on a node of its own"
        (node,) = [one for one in cluster.nodes if cluster.ids("loader")[one.address] == min(places)]

        def freeze() -> None:
            with node.frozen() as pids:
                moments.append(time.monotonic())
                time.sleep(FROZEN_S)
                assert all(map(stands_still, pids))
            moments.append(time.monotonic())

        thread = threading.Thread(target=freeze)
        stream = BatchStream(windows(len(index), LONG), RayLoaders(fleet), LONG)
        seen = consume(stream, lambda step: thread.start() if step == 40 else None, step_s=STEP_S)
        thread.join()
    began, ended = moments
    assert began + FROZEN_S <= ended, "the fault fired"
    return seen, began, ended, stream.stats()


def test_a_node_that_freezes_and_comes_back_changes_nothing(cluster, index, note):
    expected = in_process(index, LONG).digest
    seen, began, ended, stats = through_a_freeze(cluster, index)
    assert seen.moments[-1] > ended, "the run goes on after the node is back, and its late replies come"
    assert seen.digest == expected
    assert stats["hedged"] + stats["rerouted"] >= 1
    waited = seen.longest_wait(began)
    assert waited < HEDGED_S
    note(f"node frozen for {FROZEN_S:g} s, then back", recovery_s=[waited], goal=f"{GOAL_S:g} s")


def test_without_hedging_a_frozen_node_is_waited_for(cluster, index, monkeypatch):
    monkeypatch.setattr("loader.batches.assembly.Assembler._hedge", lambda self: None)
    monkeypatch.setattr("loader.batches.assembly.Assembler._suspects", lambda self: set())
    seen, began, _, _ = through_a_freeze(cluster, index)
    assert seen.longest_wait(began) > HEDGED_S


def test_a_node_that_is_lost_changes_nothing(cluster, index, note):
    """Last, for the node does not come back. Ray needs many seconds to call it dead."""
    from loader.actors import RayLoaders
    from loader.fleet.actors import start_fleet

    expected = in_process(index, LONG).digest
    lost: list[float] = []
    with closing(start_fleet(index.path, LoaderConfig(), size=2, num_cpus=1)) as fleet:
        at_work = min(one["node"] for one in fleet.status()["loaders"])
        (node,) = [one for one in cluster.nodes if cluster.ids("loader")[one.address] == at_work]

        def lose(step: int) -> None:
            if step == 40:
                lost.append(time.monotonic())
                node.kill()

        stream = BatchStream(windows(len(index), LONG), RayLoaders(fleet), LONG)
        seen = consume(stream, lose, step_s=STEP_S)
    assert node.process.poll() is not None, "the fault fired"
    assert seen.digest == expected
    assert stream.stats()["hedged"] + stream.stats()["rerouted"] >= 1
    waited = seen.longest_wait(lost[0])
    assert waited < GOAL_S
    note("node lost", recovery_s=[waited], goal=f"{GOAL_S:g} s")
