"""Checks of a cluster from inside it: every node's own findings, equal versions, clocks, the speed of the network.

1. Each node runs its own checks in a task that is bound to it and takes no CPU.
2. The answers give the roles and versions; a short exchange with each node gives its clock's offset.
3. The network is measured as loaders use it: a block of bytes from one node's object store to another node.
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

from deploy.launch.cluster import NAMESPACE, require_token, set_ray_defaults
from deploy.remote.doctor.checks import Finding, Level, examine, judge
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
    name: str
    """Address and role, for people."""
    role: str
    """head, loader, trainer, or empty."""


def examine_cluster(*, directory: Path, index: Path | None, allow_hosts: tuple[str, ...] = ()) -> list[Finding]:
    """Check the cluster that RAY_ADDRESS names; directory and index are paths on storage that all nodes share."""
    require_token()
    set_ray_defaults()
    import ray

    if not ray.is_initialized():
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    everything: Any = ray.nodes  # Ray gives it no types
    nodes = []
    for node in everything():
        if node["Alive"]:
            role = node.get("Labels", {}).get(ROLE_LABEL, "")
            name = f"{node['NodeManagerAddress']} {role}".strip()
            nodes.append(Node(node_id=node["NodeID"], name=name, role=role))
    # All nodes at a time; their answers are awaited below.
    running = [_on(node, _examine_here).remote(str(directory), index and str(index), allow_hosts) for node in nodes]
    answers = [_answer(reference) for reference in running]
    counts = {role: sum(node.role == role for node in nodes) for role in (LOADER, TRAINER)}
    found = f"{len(nodes)} nodes: {counts[LOADER]} for loaders, {counts[TRAINER]} for trainers"
    advice = f"loaders and ranks share nodes; `ray start --labels={ROLE_LABEL}=loader` (or trainer) keeps them apart"
    findings = [judge("roles", all(counts.values()), found, advice, otherwise="warning")]
    for node, answer in zip(nodes, answers, strict=True):
        findings += _node_findings(node, answer)
    # Clocks and network are only measured at nodes that answered: each further call would wait for its timeout.
    reached = [(node, answer) for node, answer in zip(nodes, answers, strict=True) if isinstance(answer, dict)]
    for name in ("python", "ray"):
        versions = sorted({answer[name] for _, answer in reached})
        advice = "nodes must run the same image: calls do not cross versions"
        findings.append(judge(f"{name} alike", len(versions) == 1, ", ".join(versions), advice))
    findings += [_check_clock(node) for node, _ in reached]
    return findings + list(_check_network([node for node, _ in reached]))


def _on(node: Node, task: Any) -> Any:
    """Return a function as a Ray task on one node; it reserves no CPU, so busy nodes and the head run it too."""
    import ray

    return ray.remote(task).options(num_cpus=0, max_retries=0, label_selector={"ray.io/node-id": node.node_id})


def _answer(reference: Any) -> Any:
    """Return a task's result, or the error that it ended in."""
    import ray

    try:
        return ray.get(reference, timeout=ANSWER_S)
    except (ray.exceptions.RayError, OSError) as error:
        return error


def _examine_here(directory: str, index: str | None, allow_hosts: tuple[str, ...]) -> dict[str, Any]:
    """Run this machine's checks, as a task on each node, with the versions to compare."""
    import ray

    found = examine(directory=Path(directory), index=Path(index) if index else None, allow_hosts=allow_hosts)
    return {"findings": found, "python": platform.python_version(), "ray": ray.__version__}


def _node_findings(node: Node, answer: Any) -> list[Finding]:
    """Return a node's findings; all that are ok become one line."""
    if not isinstance(answer, dict):
        advice = "see the node's raylet log; does its image have the packages that the job needs?"
        lines = str(answer).strip().splitlines()
        found = f"no answer: {lines[-1] if lines else type(answer).__name__}"
        return [Finding(check="node", level="error", found=found, advice=advice, node=node.name)]
    wrong = [replace(finding, node=node.name) for finding in answer["findings"] if finding.level != "ok"]
    passed = len(answer["findings"]) - len(wrong)
    return [Finding(check="node", level="ok", found=f"{passed} of its checks passed", node=node.name), *wrong]


def _check_clock(node: Node) -> Finding:
    """Measure the offset of a node's clock from this one's, by the exchange that took least time."""
    import ray

    ask = _on(node, _now)
    best, offset = float("inf"), 0.0
    for _ in range(ROUNDS):  # the first may have to start a worker there
        start, began = time.time(), time.perf_counter()
        there = ray.get(ask.remote(), timeout=ANSWER_S)
        took = time.perf_counter() - began
        if took < best:
            best, offset = took, there - (start + took / 2)
    # The answer may have been made at any moment of the exchange: half its length is unknown.
    apart = max(0.0, abs(offset) - best / 2)
    level: Level = "warning" if apart < FAR_S else "error"
    advice = "let the node follow a time server (chrony or systemd-timesyncd)"
    found = f"{offset * 1e3:+.1f} ms, known to {best * 500:.1f} ms"
    return replace(judge("clock", apart < NEAR_S, found, advice, otherwise=level), node=node.name)


def _now() -> float:  # Ray takes no built-in function
    return time.time()


def _check_network(nodes: list[Node]) -> Iterator[Finding]:
    """Measure bytes per second from loader nodes to trainer nodes, or between any two where there are no roles."""
    sources = [node for node in nodes if node.role == LOADER] or nodes
    targets = [node for node in nodes if node.role == TRAINER] or nodes
    pairs = [(source, target) for target in targets for source in sources if source.node_id != target.node_id]
    if len(pairs) > MOST_PAIRS:  # every n-th: on a large cluster all pairs would take minutes
        pairs = pairs[:: -(-len(pairs) // MOST_PAIRS)]
    for source, target in pairs:
        speed = _speed(source, target)
        where = f"{source.name} -> {target.name}"
        if isinstance(speed, Exception):
            advice = "open the nodes' ports to each other, in both directions"
            found = f"no data came: {str(speed).splitlines()[0]}"
            yield Finding(check="network", level="error", found=found, advice=advice, node=where)
            continue
        advice = "more than this needs a faster network, or loaders on the trainers' nodes"
        found = f"{speed / 1e6:,.0f} MB/s, which carries {speed / IMAGE_BYTES:,.0f} images/s of 224 pixels"
        finding = judge("network", speed >= SLOW_BYTES_PER_S, found, advice, otherwise="warning")
        yield replace(finding, node=where)


def _speed(source: Node, target: Node) -> float | Exception:
    """Return bytes per second from one node to another, the better of two: the first opens the connections."""
    best = 0.0
    for _ in range(2):
        block = _on(source, lambda: np.ones(BLOCK_BYTES, np.uint8)).remote()
        # In a list, Ray passes the reference itself; as an argument it would fetch the block before the clock starts.
        took = _answer(_on(target, _fetch).remote([block]))
        if isinstance(took, Exception):
            return took
        best = max(best, BLOCK_BYTES / took)
    return best


def _fetch(reference: list[Any]) -> float:
    """Return the seconds until another node's block is here; the wait for its creation is not timed."""
    import ray

    ray.wait(reference, fetch_local=False, timeout=ANSWER_S)
    start = time.perf_counter()
    ray.get(reference[0], timeout=ANSWER_S)
    return time.perf_counter() - start
