"""Checks of a cluster from inside it: every node's own findings, versions alike, clocks together, the network's speed.

Each node is asked by a task that is bound to it and takes no CPU. The network is measured as loaders use it: a block
of bytes from one node's object store to another node.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.launch.cluster import NAMESPACE, quiet, require_token
from deploy.remote.doctor.findings import Finding, Level
from deploy.remote.jobs.ray_jobs import LOADER, ROLE_LABEL, TRAINER

BLOCK_BYTES = 32 << 20
IMAGE_BYTES = 3 * 224 * 224
"""A decoded image as it travels."""
ANSWER_S = 120.0
MOST_PAIRS = 12
ROUNDS = 5
NEAR_S, FAR_S = 0.1, 2.0
"""Clocks further apart than the first make logs hard to read, than the second make tokens and TLS fail."""
SLOW_BYTES_PER_S = 100e6
"""About a Gbit/s: 650 images/s of 224 pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A living node."""

    node_id: str
    """Ray's."""
    name: str
    """Address and role, for people."""
    role: str
    """head, loader, trainer or nothing."""


def examine_cluster(*, directory: Path, index: Path | None, allow_hosts: tuple[str, ...] = ()) -> list[Finding]:
    """Check the cluster that RAY_ADDRESS names.

    Args:
        directory: where runs would be written, on storage that all nodes share.
        index: a sample index to read on every node, or None.
        allow_hosts: hosts of its shards that may have private addresses.
    """
    require_token()
    quiet()
    import ray

    if not ray.is_initialized():
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    nodes = _living()
    findings = [_roles(nodes)]
    asked = {
        node.node_id: _on(node, _examine_here).remote(str(directory), index and str(index), allow_hosts)
        for node in nodes
    }
    answers = {node.node_id: _answer(asked[node.node_id]) for node in nodes}
    for node in nodes:
        findings += _of_node(node, answers[node.node_id])
    reached = [node for node in nodes if isinstance(answers[node.node_id], dict)]
    findings += _versions([answers[node.node_id] for node in reached])
    findings += [_clock(node) for node in reached]
    return findings + list(_network(reached))


def _living() -> list[Node]:
    import ray

    nodes = []
    everything: Any = ray.nodes  # Ray gives it no types
    for node in everything():
        if node["Alive"]:
            role = node.get("Labels", {}).get(ROLE_LABEL, "")
            name = f"{node['NodeManagerAddress']} {role}".strip()
            nodes.append(Node(node_id=node["NodeID"], name=name, role=role))
    return nodes


def _on(node: Node, task: Any) -> Any:
    """A function as a task on a node."""
    import ray

    return ray.remote(task).options(num_cpus=0, max_retries=0, label_selector={"ray.io/node-id": node.node_id})


def _answer(reference: Any) -> Any:
    """What a task returned, or the error that it ended in."""
    import ray

    try:
        return ray.get(reference, timeout=ANSWER_S)
    except (ray.exceptions.RayError, OSError) as error:
        return error


def _examine_here(directory: str, index: str | None, allow_hosts: tuple[str, ...]) -> dict[str, Any]:
    """Runs on each node."""
    import ray

    from deploy.remote.doctor.checks import examine

    found = examine(directory=Path(directory), index=Path(index) if index else None, allow_hosts=allow_hosts)
    return {"findings": found, "python": platform.python_version(), "ray": ray.__version__}


def _of_node(node: Node, answer: Any) -> list[Finding]:
    """A node's findings; what is well is one line."""
    if not isinstance(answer, dict):
        advice = "see the node's raylet log; does its image have the packages that the job needs?"
        said = str(answer).strip().splitlines()
        found = f"no answer: {said[-1] if said else type(answer).__name__}"
        return [Finding(check="node", level="error", found=found, advice=advice, node=node.name)]
    wrong = [replace(finding, node=node.name) for finding in answer["findings"] if finding.level != "ok"]
    well = len(answer["findings"]) - len(wrong)
    return [Finding(check="node", level="ok", found=f"{well} of its checks are well", node=node.name), *wrong]


def _roles(nodes: list[Node]) -> Finding:
    counts = {role: sum(node.role == role for node in nodes) for role in (LOADER, TRAINER)}
    found = f"{len(nodes)} nodes: {counts[LOADER]} for loaders, {counts[TRAINER]} for trainers"
    if all(counts.values()):
        return Finding(check="roles", level="ok", found=found)
    advice = f"loaders and ranks share nodes; `ray start --labels={ROLE_LABEL}=loader` (or trainer) keeps them apart"
    return Finding(check="roles", level="warning", found=found, advice=advice)


def _versions(answers: list[dict[str, Any]]) -> list[Finding]:
    findings = []
    for name in ("python", "ray"):
        versions = sorted({answer[name] for answer in answers})
        level: Level = "ok" if len(versions) == 1 else "error"
        advice = "" if level == "ok" else "nodes must run the same image: calls do not cross versions"
        findings.append(Finding(check=f"{name} alike", level=level, found=", ".join(versions), advice=advice))
    return findings


def _clock(node: Node) -> Finding:
    """Offset of a node's clock from this one's, from the exchange that took least time."""
    import ray

    ask = _on(node, _now)
    best, offset = float("inf"), 0.0
    for _ in range(ROUNDS):
        start, began = time.time(), time.perf_counter()
        there = ray.get(ask.remote(), timeout=ANSWER_S)
        took = time.perf_counter() - began
        if took < best:
            best, offset = took, there - (start + took / 2)
    apart = max(0.0, abs(offset) - best / 2)
    level: Level = "ok" if apart < NEAR_S else "warning" if apart < FAR_S else "error"
    advice = "" if level == "ok" else "let the node follow a time server (chrony or systemd-timesyncd)"
    found = f"{offset * 1e3:+.1f} ms, known to {best * 500:.1f} ms"
    return Finding(check="clock", level=level, found=found, advice=advice, node=node.name)


def _now() -> float:
    return time.time()


def _network(nodes: list[Node]) -> Iterator[Finding]:
    """Bytes per second from loader nodes to trainer nodes, or between any two where roles are not told."""
    sources = [node for node in nodes if node.role == LOADER] or nodes
    targets = [node for node in nodes if node.role == TRAINER] or nodes
    pairs = [(source, target) for target in targets for source in sources if source.node_id != target.node_id]
    if len(pairs) > MOST_PAIRS:
        pairs = pairs[:: -(-len(pairs) // MOST_PAIRS)]
    for source, target in pairs:
        speed = _speed(source, target)
        where = f"{source.name} -> {target.name}"
        if isinstance(speed, Exception):
            advice = "open the nodes' ports to each other, in both directions"
            found = f"no data came: {str(speed).splitlines()[0]}"
            yield Finding(check="network", level="error", found=found, advice=advice, node=where)
            continue
        slow = speed < SLOW_BYTES_PER_S
        advice = "" if not slow else "more than this needs a faster network, or loaders on the trainers' nodes"
        found = f"{speed / 1e6:,.0f} MB/s, which carries {speed / IMAGE_BYTES:,.0f} images/s of 224 pixels"
        yield Finding(check="network", level="warning" if slow else "ok", found=found, advice=advice, node=where)


def _speed(source: Node, target: Node) -> float | Exception:
    best = 0.0
    for _ in range(2):  # the first opens the connections
        block = _on(source, _block).remote()
        took = _answer(_on(target, _fetch).remote([block]))
        if isinstance(took, Exception):
            return took
        best = max(best, BLOCK_BYTES / took)
    return best


def _block() -> NDArray[np.uint8]:
    return np.ones(BLOCK_BYTES, np.uint8)


def _fetch(reference: list[Any]) -> float:
    """Seconds until a block from another node is here; it is made before the clock starts."""
    import ray

    ray.wait(reference, fetch_local=False, timeout=ANSWER_S)
    start = time.perf_counter()
    ray.get(reference[0], timeout=ANSWER_S)
    return time.perf_counter() - start
