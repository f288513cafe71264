"""Loaders on Ray: one actor a loader, one named actor that keeps them alive, and the pool that streams use.

The only file here that imports ray; logic lives in `worker`, `fleet` and `batches`. Every wait has a timeout.
"""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from loader.batch import BatchSpec, Pixels
from loader.batches.ring import RingAddress, RingUser, Slot
from loader.batches.slots import SlotKeeper, is_alive
from loader.config import LoaderConfig
from loader.decode.memory import keep_freed_memory
from loader.errors import LoaderLost
from loader.fleet.client import CALL_TIMEOUT_S, FleetClient, FleetMethod, first_line
from loader.fleet.keeper import Fleet, State, wait_until_ready
from loader.fleet.kinds import LoaderKind, kind_of
from loader.fleet.scaling import ScalePolicy
from loader.fleet.wishes import TemporaryWishFile, WishFile
from loader.pool import Handle
from loader.worker import LoaderWorker

log = logging.getLogger(__name__)

FLEET_NAME: Final = "loader-fleet"
_TICK_S, _START_TIMEOUT_S = 0.25, 120.0
_WATCH_S: Final = 1.0  # A question that is always open: its answer comes so late, but a death ends it at once.
_SILENCE_S: Final = 10.0  # A loader that is silent for so long is replaced: it hangs, or its node froze.
_JOIN_TIMEOUT_S: Final = 60.0  # of a new stream's first question: the fleet may start loaders on a crowded processor
_REFRESH_S, _EXPLAIN_S = 0.5, 2.0
_IN_SLOT: Final = np.zeros((0, 3, 0, 0), np.uint8)
_LOADER_GROUPS: Final = {"load": 2, "control": 1, "watch": 1}
"""Requests a loader works on at a time, by kind: checks must be answered while it decodes."""
_remote: Any = ray.remote  # Applied late, and untyped: its annotations do not know all options.


class LoaderActor:
    """A LoaderWorker in its own process. Two requests at a time: one is sent while the next is decoded."""

    def __init__(self, config: LoaderConfig) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._worker = LoaderWorker(config)
        self._rings = RingUser()

    @ray.method(concurrency_group="load")
    def load(self, spec: BatchSpec, slot: Slot | None = None) -> Pixels:
        """Return the pixels of a spec; given a slot of a ring that still has an owner, write them there."""
        out = None if slot is None else self._rings.images(slot, len(spec), spec.transform.size)
        if out is None:
            return self._worker.load(spec)
        return replace(self._worker.load(spec, out=out), images=_IN_SLOT)

    @ray.method(concurrency_group="control")
    def attach(self, address: RingAddress) -> int:
        """Map a stream's ring. Returns this process's id, or 0 when the ring cannot be reached from here."""
        return os.getpid() if self._rings.attach(address) else 0

    @ray.method(concurrency_group="control")
    def check(self, after_s: float = 0.0) -> dict[str, Any]:
        """Return pid, node and stats after some seconds: that it answers says that it lives."""
        time.sleep(after_s)
        self._rings.drop_orphans()
        node = ray.get_runtime_context().get_node_id()
        return {"pid": os.getpid(), "node": node, "waits_for": self._worker.waits_for(), **self._worker.stats()}


class RayProcess:
    """A launched LoaderActor, as the fleet sees it."""

    def __init__(self, actor: Any) -> None:
        self.handle = actor
        self._answer: ray.ObjectRef[Any] = actor.check.remote()
        self._heard_s: float = time.monotonic()
        self._info: dict[str, Any] = {}
        self._why: str = ""

    def poll(self) -> State:
        """Return how it is, without waiting."""
        if self._why:
            return "lost"
        if _is_done(self._answer):
            return self._answered()
        limit_s = _SILENCE_S if self._info else _START_TIMEOUT_S
        if time.monotonic() - self._heard_s > limit_s:
            self._why = f"no answer for {limit_s:.0f} s"
            return "lost"
        return "ready" if self._info else "starting"

    def info(self) -> dict[str, Any]:
        """Return pid, node and stats as of the last answer."""
        return self._info

    def why(self) -> str:
        """Return why it was lost."""
        return self._why or "unknown"

    def drain(self) -> None:
        """Let it finish its requests and end."""
        self.handle.__ray_terminate__.remote()

    def kill(self) -> None:
        """End it now."""
        ray.kill(self.handle)

    def _answered(self) -> State:
        try:
            self._info = ray.get(self._answer, timeout=CALL_TIMEOUT_S)
            self._heard_s = time.monotonic()
        except RayError as error:
            silent_s = time.monotonic() - self._heard_s
            if silent_s > _SILENCE_S or not isinstance(error, ActorUnavailableError):  # that is the network's fault
                self._why = first_line(error)
                return "lost"
        self._answer = self.handle.check.options(concurrency_group="watch").remote(after_s=_WATCH_S)
        return "ready" if self._info else "starting"


class LoaderFleet:
    """The named actor that owns the loaders. Restarted by Ray if it dies; then it starts as many as it had."""

    def __init__(self, kinds: Sequence[LoaderKind], size: int, policy: ScalePolicy | None, wishes: WishFile) -> None:
        actors = [_remote(max_restarts=0, concurrency_groups=_LOADER_GROUPS, **k.options)(LoaderActor) for k in kinds]

        def launch(name: str) -> RayProcess:
            return RayProcess(actors[kind_of(name, kinds)].remote(kinds[kind_of(name, kinds)].config))

        self._fleet = Fleet(launch, size=size, clock=time.time, policy=policy, wishes=wishes)
        self._stopped = threading.Event()
        threading.Thread(target=self._supervise, name="fleet", daemon=True).start()

    def call(self, method: FleetMethod, *args: object, **options: object) -> Any:
        """Call a method of the fleet; `FleetClient` has them all, with types."""
        return getattr(self._fleet, method)(*args, **options)

    def close(self) -> None:
        """End every loader and stop replacing them."""
        self._stopped.set()
        self._fleet.close()

    def _supervise(self) -> None:
        while not self._stopped.wait(_TICK_S):
            self._fleet.tick()


def start_fleet(
    kinds: LoaderConfig | Sequence[LoaderKind],
    *,
    size: int,
    name: str = FLEET_NAME,
    num_cpus: float = 1.0,
    policy: ScalePolicy | None = None,
    memory: str | Path | None = None,
    ready_timeout_s: float = _START_TIMEOUT_S,
) -> FleetClient:
    """Start a fleet and wait until its loaders are ready.

    Args:
        kinds: What the loaders are; a config alone stands for loaders that are all alike.
        size: Loaders to start with.
        name: Name of the fleet's actor in the current namespace.
        num_cpus: CPUs that Ray reserves for each loader when `kinds` is a config; 0 reserves none.
        policy: Lets the fleet scale by itself on what `FleetClient.observe` tells it; None leaves the size to people.
        memory: File on this node that keeps the size, should the fleet's process die; None takes a temporary one.
        ready_timeout_s: How long to wait.

    Raises:
        LoaderLost: If they are not ready in time; the message says why the last one died.
    """
    if isinstance(kinds, LoaderConfig):
        kinds = [LoaderKind(config=kinds, num_cpus=num_cpus)]
    wishes = WishFile(memory) if memory else TemporaryWishFile()
    wishes.forget()
    # It stays with this process's node: those of loaders come and go. A name alone would not keep it alive.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    actor = _remote(name=name, max_restarts=-1, max_concurrency=8, num_cpus=0, label_selector=here)(LoaderFleet)
    fleet = FleetClient(ActorPort(actor.remote(kinds, size, policy, wishes), wishes))
    try:
        fleet.members(timeout_s=ready_timeout_s)  # its process is up
        wait_until_ready(fleet.status, size=size, timeout_s=ready_timeout_s)
    except LoaderLost:
        fleet.close()
        raise
    return fleet


@contextmanager
def local_fleet(config: LoaderConfig, *, size: int) -> Iterator[FleetClient]:
    """Run a fleet on this machine, in the Ray that is running here or else in one of its own, and end it afterwards."""
    with ExitStack() as stack:
        if not ray.is_initialized():
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
            stack.callback(ray.shutdown)
        fleet = start_fleet(config, size=size, name=f"{FLEET_NAME}-{os.getpid()}-{time.monotonic_ns()}", num_cpus=0)
        stack.callback(fleet.close)
        yield fleet


def connect_fleet(name: str = FLEET_NAME) -> FleetClient:
    """Return the running fleet of that name; LoaderLost if there is none."""
    try:
        return FleetClient(ActorPort(ray.get_actor(name)))
    except ValueError as error:
        raise LoaderLost(f"no loader fleet named {name!r} is running in this namespace") from error


class ActorPort:
    """The way to a fleet that is an actor. Can be sent to other Ray processes."""

    def __init__(self, actor: Any, wishes: WishFile | None = None) -> None:
        self.actor, self._wishes = actor, wishes

    def ask(self, method: FleetMethod, *args: object, timeout_s: float, **options: object) -> Any:
        """Call a method of the fleet and return its answer."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return ray.get(self.actor.call.remote(method, *args, **options), timeout=deadline - time.monotonic())
            except RayTaskError as error:
                raise error.cause from error
            except RayError as error:
                if not isinstance(error, ActorUnavailableError) or time.monotonic() + _TICK_S > deadline:
                    raise LoaderLost(f"the loader fleet did not answer {method}: {first_line(error)}") from error
            time.sleep(_TICK_S)  # the network failed: asking twice does no harm

    def tell(self, method: FleetMethod, *args: object) -> None:
        """Call a method of the fleet without waiting."""
        self.actor.call.remote(method, *args)

    def close(self) -> None:
        """End every loader, then the fleet."""
        with suppress(RayError):
            ray.get(self.actor.close.remote(), timeout=CALL_TIMEOUT_S)
        ray.kill(self.actor)
        if self._wishes is not None:
            self._wishes.close()


@dataclass(eq=False, slots=True)
class _Request:
    reference: ray.ObjectRef[Any]
    member: str
    actor: ActorHandle[Any]
    spec: BatchSpec
    slot: Slot | None
    answered: bool = False
    lost: bool = False


class RayLoaders:
    """A LoaderPool over a fleet, for one stream at a time.

    Loaders on this node write pixels into a ring of shared memory; from others, or when the ring is full, pixels come
    through the object store. Membership is asked in the background, so no call here waits for the fleet.

    Args:
        fleet: The loaders.
        ring_bytes: Size of the ring; 0 uses the object store for everything.
    """

    def __init__(self, fleet: FleetClient, *, ring_bytes: int = 320 << 20) -> None:
        assert isinstance(fleet.port, ActorPort)
        self._fleet, self._actor = fleet, fleet.port.actor
        self._members: dict[str, ActorHandle[Any]] = fleet.members(timeout_s=_JOIN_TIMEOUT_S)
        self._gone: set[ActorHandle[Any]] = set()
        self._question: ray.ObjectRef[Any] | None = None
        self._asked_s = time.monotonic()
        self._slots = SlotKeeper(ring_bytes)
        self._pids: dict[ActorHandle[Any], int] = {}
        self._attaching: dict[ActorHandle[Any], ray.ObjectRef[Any]] = {}

    def members(self) -> tuple[str, ...]:
        """Return the loaders that are thought to be alive."""
        return tuple(self._members)

    def submit(self, member: str, spec: BatchSpec) -> Handle:
        """Send a spec to a loader."""
        actor = self._members.get(member)
        if actor is None:
            raise LoaderLost(f"{member} has left the fleet")
        slot = self._slot(actor, spec)
        return _Request(actor.load.remote(spec, slot), member, actor, spec, slot)

    def wait(self, handles: Sequence[Any], timeout_s: float) -> list[Handle]:
        """Return the requests that are done, waiting at most `timeout_s` for the first."""
        requests = {request.reference: request for request in handles}
        done, waiting = ray.wait(list(requests), num_returns=1, timeout=timeout_s)
        if done and waiting:
            done += ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]
        return [requests[reference] for reference in done]

    def result(self, handle: Any) -> Pixels:
        """Return the pixels of a request that is done. Read-only: they lie in shared memory."""
        request: _Request = handle
        try:
            pixels: Pixels = ray.get(request.reference, timeout=CALL_TIMEOUT_S)
        except RayTaskError as error:
            request.answered = True
            self.release(request)
            raise error.cause from error
        except RayError as error:
            request.lost = True
            self.release(request)
            if not isinstance(error, ActorUnavailableError):
                self._drop(request)
            raise LoaderLost(f"{request.member} was lost: {first_line(error)}") from error
        request.answered = True
        if request.slot is None or len(pixels.images):
            return pixels
        size = request.spec.transform.size
        return replace(pixels, images=self._slots.images(request.slot, len(request.spec), size))

    def release(self, handle: Any) -> None:
        """Free the slot of a request that is not looked at any more; if unanswered, once its loader cannot write."""
        request: _Request = handle
        slot, request.slot = request.slot, None
        if slot is None:
            return
        if request.answered:
            self._slots.free(slot)
        elif request.lost:
            pid = self._pids[request.actor]
            self._slots.free_once(slot, lambda: not is_alive(pid))
        else:
            self._slots.free_once(slot, lambda: _is_done(request.reference))

    def refresh(self) -> None:
        """Learn who is alive, without waiting: send a question, or take in its answer."""
        if self._question is None:
            if time.monotonic() - self._asked_s >= _REFRESH_S:
                self._question, self._asked_s = self._actor.call.remote("members"), time.monotonic()
            return
        if not _is_done(self._question):
            return
        question, self._question = self._question, None
        try:
            answer: dict[str, ActorHandle[Any]] = ray.get(question, timeout=CALL_TIMEOUT_S)
        except RayError as error:
            log.warning("the loader fleet did not name its members: %s", first_line(error))
            return
        self._members = {name: actor for name, actor in answer.items() if actor not in self._gone}

    def observe(self, wait_share: float) -> None:
        """Tell the fleet how long the trainer waits, without waiting for it."""
        self._fleet.observe(wait_share)

    def explain(self, members: Sequence[str]) -> dict[str, str]:
        """Return what each member waits for; all are asked at once, and have a moment."""
        told = dict.fromkeys(members, "an answer from its process")
        asked: dict[Any, str] = {self._members[m].check.remote(): m for m in members if m in self._members}
        for reference in ray.wait(list(asked), num_returns=len(asked), timeout=_EXPLAIN_S)[0] if asked else ():
            with suppress(RayError):
                told[asked[reference]] = ray.get(reference, timeout=CALL_TIMEOUT_S)["waits_for"]
        return told

    def _slot(self, actor: ActorHandle[Any], spec: BatchSpec) -> Slot | None:
        """Return a slot if the loader has mapped the ring and there is room."""
        address = self._slots.address
        if address is None or not self._reaches_ring(actor, address):
            return None
        return self._slots.allocate(3 * spec.transform.size**2 * len(spec))

    def _reaches_ring(self, actor: ActorHandle[Any], address: RingAddress) -> bool:
        """Return whether a loader is known to have mapped the ring; ask it once, in the background."""
        if actor not in self._pids and actor not in self._attaching:
            self._attaching[actor] = actor.attach.remote(address)
        question = self._attaching.get(actor)
        if question is not None and _is_done(question):
            del self._attaching[actor]
            try:
                self._pids[actor] = ray.get(question, timeout=CALL_TIMEOUT_S)
            except RayError:
                self._pids[actor] = 0
        return self._pids.get(actor, 0) > 0

    def _drop(self, request: _Request) -> None:
        """Pass the dead loader over until the fleet names its replacement, which is another actor."""
        self._gone.add(request.actor)
        if self._members.get(request.member) == request.actor:
            del self._members[request.member]


def _is_done(reference: ray.ObjectRef[Any]) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])
