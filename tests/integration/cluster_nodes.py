"""Ray nodes on one machine for tests: in network namespaces with real addresses, or plain raylets without root.

A node in namespaces has its own address, process numbers, /dev/shm and Ray directory, so it reaches the others only
through the network, and killing its first process kills all of it, as when a machine loses power.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.runs import wait_for

RAY = str(Path(sys.executable).parent / "ray")
PATIENCE_S = 240.0
STORE_BYTES = 128 << 20
FAST = {
    # A dead node is noticed in a few seconds, not in fifteen; no processes are started ahead of need.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}


@dataclass
class Node:
    """One Ray node; `role` is its label."""

    role: str
    process: subprocess.Popen[bytes]
    address: str

    def kill(self) -> None:
        """As if the machine lost power."""
        self.process.kill()
        self.process.wait()

    @contextmanager
    def frozen(self) -> Iterator[list[int]]:
        """Every process of the node stands still, its raylet too; process ids."""
        stopped = [member.pid for member in _family(self.process)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield stopped
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@dataclass
class Nodes:
    """A head without CPUs, and labelled nodes."""

    dashboard: str
    temp: Path
    gcs: str
    head: str = ""
    nodes: list[Node] = field(default_factory=list)

    def of(self, role: str) -> list[Node]:
        """The nodes of a role."""
        return [node for node in self.nodes if node.role == role]

    def ids(self, role: str) -> dict[str, str]:
        """Node id by address of the living nodes with that label."""
        from ray.util.state import list_nodes

        nodes = list_nodes(self.dashboard, filters=[("state", "=", "ALIVE")])
        return {node.node_ip: node.node_id for node in nodes if (node.labels or {}).get("tempera-role") == role}

    def places(self, class_name: str) -> set[str]:
        """Ids of the nodes on which living actors of a class are."""
        from ray.util.state import list_actors

        actors = list_actors(self.dashboard, filters=[("state", "=", "ALIVE"), ("class_name", "=", class_name)])
        return {actor.node_id for actor in actors}


def namespaces_work() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    made = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], check=False, capture_output=True)
    return made.returncode == 0


_clusters = itertools.count()


@contextmanager
def cluster_in_namespaces(*roles: str) -> Iterator[Nodes]:
    """A head in this network, and a node in namespaces of its own for each role."""
    number, pid = next(_clusters), os.getpid() % 100_000  # the kernel lets go of names some time after the cluster
    tag = f"tq{pid}x{number}"
    subnet = f"10.{80 + (pid + number) % 100}.{pid // 100 % 250}"
    temp = Path(f"/tmp/{tag}")
    temp.mkdir()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, temp, ignore_errors=True)
        _ip("link", "add", tag, "type", "bridge")
        stack.callback(_ip, "link", "del", tag)
        _ip("addr", "add", f"{subnet}.1/24", "dev", tag)
        _ip("link", "set", tag, "up")
        port, dashboard = free_port(), free_port()
        head = _head(temp, address=f"{subnet}.1", port=port, dashboard=dashboard)
        stack.callback(_end_tree, head)
        cluster = Nodes(f"http://127.0.0.1:{dashboard}", temp, f"{subnet}.1:{port}", f"{subnet}.1")
        _wait_for(lambda: _answers(cluster), [head], temp / "head.log")
        for place, role in enumerate(roles):
            name, address = f"{tag}n{place}", f"{subnet}.{place + 2}"
            stack.callback(_ip, "netns", "del", name)
            _network(name, bridge=tag, address=address)
            inside = f"mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs {temp} && exec "
            words = [f"--address={subnet}.1:{port}", f"--node-ip-address={address}", "--num-cpus=1"]
            command = " ".join([RAY, "start", *words, f"--labels=tempera-role={role}", *COMMON])
            isolated = ["ip", "netns", "exec", name, "unshare", "--pid", "--mount", "--fork", "--kill-child"]
            process = _start([*isolated, "--mount-proc", "sh", "-c", inside + command], temp / f"{name}.log")
            node = Node(role, process, address)
            stack.callback(node.kill)
            cluster.nodes.append(node)
        logs = temp / f"{tag}n0.log"
        _wait_for(lambda: sum(len(cluster.ids(role)) for role in set(roles)) == len(roles), [head], logs)
        yield cluster


@contextmanager
def cluster_of_raylets(*roles: str) -> Iterator[Nodes]:
    """The same without root: raylets side by side, told apart by their addresses on loopback."""
    temp = Path(f"/tmp/tq{os.getpid()}")
    temp.mkdir()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, temp, ignore_errors=True)
        port, dashboard = free_port(), free_port()
        head = _head(temp, address="127.0.0.1", port=port, dashboard=dashboard)
        stack.callback(_end_tree, head)
        cluster = Nodes(f"http://127.0.0.1:{dashboard}", temp, f"127.0.0.1:{port}")
        _wait_for(lambda: _answers(cluster) and _head_address(cluster), [head], temp / "head.log")
        cluster.head = _head_address(cluster)
        for number, role in enumerate(roles):
            address = f"127.0.0.{number + 2}"
            words = [f"--address=127.0.0.1:{port}", f"--node-ip-address={address}", "--num-cpus=1"]
            words.append(f"--dashboard-agent-listen-port={free_port()}")
            log = temp / f"{number}.log"
            node = TreeNode(role, _start([RAY, "start", *words, f"--labels=tempera-role={role}"], log), address)
            stack.callback(node.kill)
            cluster.nodes.append(node)
            # Raylets that start at once in one folder can take the same socket's name: one after the other.
            _wait_for(lambda node=node: node.address in cluster.ids(node.role), [head, node.process], log)
        yield cluster


class TreeNode(Node):
    """A node whose processes have no namespace to die with."""

    def kill(self) -> None:
        """Kill every process of the node, and none that is not its own."""
        _end_tree(self.process)


COMMON = (
    "--block",
    f"--object-store-memory={STORE_BYTES}",
    "--disable-usage-stats",
    "--min-worker-port=0",
    "--max-worker-port=0",
)


def _head(temp: Path, *, address: str, port: int, dashboard: int) -> subprocess.Popen[bytes]:
    """Start a head without CPUs, on ports that no other Ray of this machine has."""
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)  # an earlier cluster's: Ray asks it rather than the address given
    words = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    words += ["--num-cpus=0", f"--temp-dir={temp}", f"--node-ip-address={address}"]
    words += [f"--{what}-port={free_port()}" for what in ("dashboard-agent-listen", "ray-client-server")]
    return _start([RAY, "start", *words], temp / "head.log")


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    command = command if command[0] != RAY else [*command, *COMMON]
    environment = {**os.environ, **FAST}
    environment.pop("RAY_ADDRESS", None)
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, env=environment, cwd=log.parent, start_new_session=True, **streams)


def _family(process: subprocess.Popen[bytes]) -> list[Any]:
    """A process and what it started."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    return []


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it started, by number."""
    import psutil

    for member in _family(process):
        with suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)
    process.wait()


def _network(name: str, *, bridge: str, address: str) -> None:
    _ip("netns", "add", name)
    _ip("link", "add", f"{name}a", "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", f"{name}a", "master", bridge, "up")
    _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")
    _ip("-n", name, "link", "set", "lo", "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _answers(cluster: Nodes) -> bool:
    try:
        cluster.ids("head")
    except Exception:
        return False
    return True


def _head_address(cluster: Nodes) -> str:
    """What the head calls itself: Ray takes the machine's own address for the loopback; empty before it answers."""
    from ray.util.state import list_nodes

    found = [str(node.node_ip) for node in list_nodes(cluster.dashboard) if node.is_head_node]
    return found[0] if found else ""


def _wait_for(condition: Any, processes: list[subprocess.Popen[bytes]], log: Path) -> None:
    wait_for(condition, "the node's start", *processes, patience_s=PATIENCE_S, log=log)
