"""The fleet on Ray: one actor for each loader, one named actor that keeps them alive, and the client that reaches it.

`LoaderWorker` and `Fleet` do the work and know nothing of Ray. Every wait has a timeout. The fleet's own process never
imports torch: it only decides, and 300 MB would be lost, so `LoaderActor` imports what decodes in its constructor.
"""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from loader.config import LoaderConfig
from loader.errors import LoaderLost
from loader.fleet.scaling import ScalePolicy
from loader.fleet.spec import LoaderSpec, spec_of
from loader.fleet.supervisor import Fleet, FleetEvent, ScaleReply, State, wait_until_ready

if TYPE_CHECKING:
    from loader.batch import BatchSpec, Pixels
    from loader.batches.ring import RingAddress, Slot

FLEET_NAME: Final = "loader-fleet"
CALL_TIMEOUT_S: Final = 10.0
_RETRY_S, _START_TIMEOUT_S = 0.25, 120.0
_WATCH_S: Final = 1.0
"""A check is always under way, and answers after this time; a death ends it at once."""
_SILENCE_S: Final = 10.0
"""A loader silent for this long is replaced: it hangs, or its node froze."""
_IN_SLOT: Final = np.zeros((0, 3, 0, 0), np.uint8)
_LOADER_GROUPS: Final = {"load": 2, "control": 1, "watch": 1}
"""Calls that a loader works on at a time, by group: it must answer checks while it decodes."""
FleetMethod = Literal["scale", "observe", "members", "status", "events", "close"]
_remote: Any = ray.remote  # Applied late, and untyped: its annotations do not know all options.


class LoaderActor:
    """A LoaderWorker in its own process. Two requests at a time: one is sent while the next is decoded."""

    def __init__(self, index: str, config: LoaderConfig) -> None:
        # Here, not at the top: the fleet's process imports this module to launch loaders, and needs none of it.
        from loader.batches.ring import RingUser  # noqa: PLC0415
        from loader.decode import compiled  # noqa: PLC0415
        from loader.decode.memory import keep_freed_memory  # noqa: PLC0415
        from loader.worker import LoaderWorker  # noqa: PLC0415

        if compiled.resize is None:
            import torch  # noqa: PLC0415  # torch resizes then, and the loader has threads of its own

            torch.set_num_threads(1)
        keep_freed_memory()
        self._worker = LoaderWorker(index, config)
        self._rings = RingUser()

    @ray.method(concurrency_group="load")
    def load(self, spec: BatchSpec, slot: Slot | None = None) -> Pixels:
        """Return the pixels of a spec; given a slot of a ring that still has an owner, write them there.

        The reply's `images` are then empty, uint8[0, 3, 0, 0]: the caller reads them from the ring.

        Raises:
            StaleIndexError, StorageUnavailable: As of `LoaderWorker.load`.
            ValueError: A sample id is not in the index, or the slot does not fit its ring or the images.
        """
        out = None if slot is None else self._rings.images(slot, len(spec), spec.transform.size)
        if out is None:
            return self._worker.load(spec)
        return replace(self._worker.load(spec, out=out), images=_IN_SLOT)

    @ray.method(concurrency_group="control")
    def attach(self, address: RingAddress) -> int:
        """Map a stream's ring. Return this process's id, or 0 when the ring cannot be reached from here."""
        # The owner needs the id: while this process runs, it may still write into a slot that was given up.
        return os.getpid() if self._rings.attach(address) else 0

    @ray.method(concurrency_group="control")
    def check(self, after_s: float = 0.0) -> dict[str, Any]:
        """Return pid, node and stats after some seconds. The answer itself proves that the loader lives.

        Returns:
            "pid", "node" (Ray's id of it), "waits_for" (the shard of the oldest read under way, as text), and the
            totals of `LoaderWorker.stats`.
        """
        time.sleep(after_s)
        self._rings.drop_orphans()  # no other call comes regularly, and an idle loader must not hold a dead run's ring
        node = ray.get_runtime_context().get_node_id()
        return {"pid": os.getpid(), "node": node, "waits_for": self._worker.waits_for(), **self._worker.stats()}


class RayProcess:
    """A launched LoaderActor, as the fleet sees it."""

    def __init__(self, actor: Any) -> None:
        self.handle = actor
        self.info: dict[str, Any] = {}
        self.why: str = ""
        self._check: ray.ObjectRef[Any] = actor.check.remote()
        self._last_answer_s: float = time.monotonic()

    def poll(self) -> State:
        """Return its state, without waiting: take the answer of the check under way, and start the next one."""
        if self.why:
            return "lost"
        silent_s = time.monotonic() - self._last_answer_s
        if is_done(self._check):
            try:
                self.info = ray.get(self._check, timeout=CALL_TIMEOUT_S)
                self._last_answer_s = time.monotonic()
            except RayError as error:
                # An actor that is only unavailable may be behind a broken network: it is checked again.
                if silent_s > _SILENCE_S or not isinstance(error, ActorUnavailableError):
                    self.why = first_line(error)
                    return "lost"
            self._check = self.handle.check.options(concurrency_group="watch").remote(after_s=_WATCH_S)
        else:
            # Before its first answer it imports torch and reads the index, which takes long on a crowded machine.
            limit_s = _SILENCE_S if self.info else _START_TIMEOUT_S
            if silent_s > limit_s:
                self.why = f"no answer for {limit_s:.0f} s"
                return "lost"
        return "ready" if self.info else "starting"

    def drain(self) -> None:
        # Unlike `ray.kill`, this lets the requests that the loader has finish first.
        self.handle.__ray_terminate__.remote()

    def kill(self) -> None:
        ray.kill(self.handle)


class LoaderFleet:
    """The named actor that owns the loaders. Ray restarts it when it dies; it then starts as many as it had."""

    def __init__(
        self, index: str, specs: Sequence[LoaderSpec], size: int, policy: ScalePolicy | None, memory: Path | None
    ) -> None:
        # Once: each call pickles the class into Ray's store anew. No restarts: the fleet counts losses and says why.
        actor = _remote(max_restarts=0, concurrency_groups=_LOADER_GROUPS)(LoaderActor)

        def launch(name: str) -> RayProcess:
            spec = specs[spec_of(name, specs)]
            needs = {"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus, "label_selector": dict(spec.node_labels)}
            return RayProcess(actor.options(**needs).remote(index, spec.config))

        self._fleet = Fleet(launch, size=size, clock=time.time, policy=policy, memory=memory)
        threading.Thread(target=self._fleet.run, name="fleet", daemon=True).start()

    def call(self, method: FleetMethod, *args: object, **options: object) -> Any:
        """Call a method of `Fleet`."""
        return getattr(self._fleet, method)(*args, **options)


@dataclass(frozen=True, slots=True)
class FleetClient:
    """Calls to a running fleet. Can be sent to other Ray processes.

    Each method that returns an answer raises LoaderLost when the fleet does not give it in time.
    """

    actor: Any

    def scale(self, size: int, *, author: str, reason: str = "") -> ScaleReply:
        return self._call("scale", size, author=author, reason=reason)

    def members(self, *, timeout_s: float = CALL_TIMEOUT_S) -> dict[str, Any]:
        """Return the actors of the loaders that are ready, by name."""
        return self._call("members", timeout_s=timeout_s)

    def status(self) -> dict[str, Any]:
        return self._call("status")

    def events(self, after: int = 0) -> list[FleetEvent]:
        return self._call("events", after)

    def close(self) -> None:
        """End every loader, then the fleet."""
        with suppress(RayError):
            ray.get(self.actor.call.remote("close"), timeout=CALL_TIMEOUT_S)
        ray.kill(self.actor)

    def _call(self, method: FleetMethod, *args: object, timeout_s: float = CALL_TIMEOUT_S, **options: object) -> Any:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return ray.get(self.actor.call.remote(method, *args, **options), timeout=deadline - time.monotonic())
            except RayTaskError as error:
                raise error.cause from error  # what the fleet raised, such as ValueError: it did answer
            except RayError as error:
                if not isinstance(error, ActorUnavailableError) or time.monotonic() + _RETRY_S > deadline:
                    raise LoaderLost(f"the loader fleet did not answer {method}: {first_line(error)}") from error
            time.sleep(_RETRY_S)  # the network failed: every method may be called twice


def start_fleet(
    index: str | Path,
    specs: LoaderConfig | Sequence[LoaderSpec],
    *,
    size: int,
    name: str = FLEET_NAME,
    num_cpus: float = 1.0,
    policy: ScalePolicy | None = None,
    memory: str | Path | None = None,
) -> FleetClient:
    """Start a fleet and wait until its loaders are ready.

    Args:
        index: Path of the sample index, the same on every node.
        specs: What the loaders are; a config alone stands for loaders that are all alike.
        size: Loaders to start with, in 1..1024.
        name: Name of the fleet's actor in the current namespace.
        num_cpus: CPUs that Ray reserves for each loader when `specs` is a config; 0 reserves none.
        policy: Lets the fleet scale by the trainers' waits; None leaves the size to people.
        memory: File on this node that keeps the desired size should the fleet's process die; removed at the start.
            Without one a restarted fleet has `size` loaders again.

    Raises:
        LoaderLost: They are not ready in time; the message says why the last one died.
    """
    if isinstance(specs, LoaderConfig):
        specs = [LoaderSpec(config=specs, num_cpus=num_cpus)]
    # A new run starts with its own size; only a fleet that Ray restarts finds the file.
    memory = None if memory is None else Path(memory)
    if memory is not None:
        memory.unlink(missing_ok=True)
    # The actor stays on this process's node: nodes of loaders come and go, and the file of its size is here.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    actor = _remote(name=name, max_restarts=-1, max_concurrency=8, num_cpus=0, label_selector=here)(LoaderFleet)
    fleet = FleetClient(actor.remote(str(index), specs, size, policy, memory))
    try:
        fleet.members(timeout_s=_START_TIMEOUT_S)  # its process is up
        wait_until_ready(fleet.status, size=size, timeout_s=_START_TIMEOUT_S)
    except LoaderLost:
        fleet.close()
        raise
    return fleet


@contextmanager
def local_fleet(index: str | Path, config: LoaderConfig, *, size: int) -> Iterator[FleetClient]:
    """Run a fleet on this machine, in the Ray that runs here or else in a new one, and end it afterwards."""
    with ExitStack() as stack:
        if not ray.is_initialized():
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
            stack.callback(ray.shutdown)
        # A name of its own, and no CPUs reserved: the Ray that runs here may have another run's fleet, and full nodes.
        name = f"{FLEET_NAME}-{os.getpid()}-{time.monotonic_ns()}"
        fleet = start_fleet(index, config, size=size, name=name, num_cpus=0)
        stack.callback(fleet.close)
        yield fleet


def connect_fleet(name: str = FLEET_NAME) -> FleetClient:
    """Return the running fleet of that name.

    Raises:
        LoaderLost: There is none in this namespace.
    """
    try:
        return FleetClient(ray.get_actor(name))
    except ValueError as error:
        raise LoaderLost(f"no loader fleet named {name!r} is running in this namespace") from error


def is_done(reference: ray.ObjectRef[Any]) -> bool:
    """Return whether an answer has arrived, or is known never to arrive."""
    return bool(ray.wait([reference], timeout=0)[0])


def first_line(error: Exception) -> str:
    """Return the line of an error that says what happened: the last one when it quotes a traceback."""
    lines = str(error).strip().splitlines() or ["no details"]
    quoted = "Traceback" in str(error) or ".__init__()" in lines[0]
    return f"{type(error).__name__}: {lines[-1 if quoted else 0].strip()}"
