"""The pool of a stream on Ray: requests to the actors of a fleet. Every wait has a timeout."""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from loader.batch import BatchSpec, Pixels
from loader.batches.ring import Ring, Slot
from loader.errors import LoaderLost
from loader.fleet.actors import CALL_TIMEOUT_S, FleetClient, first_line, is_done
from loader.pool import Handle

log = logging.getLogger(__name__)

_JOIN_TIMEOUT_S: Final = 60.0  # when a stream begins, the fleet may be starting loaders on a crowded processor
_REFRESH_S, _EXPLAIN_S = 0.5, 2.0


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
    through the object store, as all do when `ring_bytes` is 0. Membership is updated in the background, so no call here
    waits for the fleet.
    """

    def __init__(self, fleet: FleetClient, *, ring_bytes: int = 320 << 20) -> None:
        self._fleet = fleet
        self._members: dict[str, ActorHandle[Any]] = fleet.members(timeout_s=_JOIN_TIMEOUT_S)
        self._gone: set[ActorHandle[Any]] = set()
        """Actors that were found dead: the fleet may name them until it notices."""
        self._refreshing: ray.ObjectRef[Any] | None = None
        self._refreshed_s = time.monotonic()
        self._ring: Ring | None = None
        if ring_bytes:
            try:
                self._ring = Ring(ring_bytes)
            except (OSError, AttributeError) as error:
                log.warning("no shared memory (%s): all pixels go through the object store, which is slower", error)
        self._pids: dict[ActorHandle[Any], int] = {}
        """Process ids of the loaders that have mapped the ring; 0 for those that cannot reach it."""
        self._attaching: dict[ActorHandle[Any], ray.ObjectRef[Any]] = {}

    def members(self) -> tuple[str, ...]:
        """Return the loaders of the fleet's last answer that were not found dead; ask it again twice a second."""
        if self._refreshing is None:
            if time.monotonic() - self._refreshed_s >= _REFRESH_S:
                self._refreshing, self._refreshed_s = self._fleet.actor.call.remote("members"), time.monotonic()
        elif is_done(self._refreshing):
            refreshing, self._refreshing = self._refreshing, None
            try:
                answer: dict[str, ActorHandle[Any]] = ray.get(refreshing, timeout=CALL_TIMEOUT_S)
                self._members = {name: actor for name, actor in answer.items() if actor not in self._gone}
            except RayError as error:  # the members known so far may well be alive: the stream goes on with them
                log.warning("the loader fleet did not name its members: %s", first_line(error))
        return tuple(self._members)

    def submit(self, member: str, spec: BatchSpec) -> Handle:
        actor = self._members.get(member)
        if actor is None:
            raise LoaderLost(f"{member} has left the fleet")
        # A full ring is no reason to wait, and neither is a loader that is still mapping it: the object store serves.
        slot = None
        if self._ring is not None and self._reaches_ring(actor):
            slot = self._ring.allocate(3 * spec.transform.size**2 * len(spec))
        return _Request(actor.load.remote(spec, slot), member, actor, spec, slot)

    def wait(self, handles: Sequence[Any], timeout_s: float) -> list[Handle]:
        requests = {request.reference: request for request in handles}
        done, waiting = ray.wait(list(requests), num_returns=1, timeout=timeout_s)
        # Ray returns with the first one that is done; others may be done as well.
        if done and waiting:
            done += ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]
        return [requests[reference] for reference in done]

    def result(self, handle: Any) -> Pixels:
        """Return the pixels of a request that is done, or raise what its loader raised. Read-only: in shared memory."""
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
                # Pass the dead loader over until the fleet names its replacement, which is another actor.
                self._gone.add(request.actor)
                if self._members.get(request.member) == request.actor:
                    del self._members[request.member]
            raise LoaderLost(f"{request.member} was lost: {first_line(error)}") from error
        request.answered = True
        # An answer with images in spite of a slot: the loader did not have the ring any more.
        if request.slot is None or self._ring is None or len(pixels.images):
            return pixels
        size = request.spec.transform.size
        return replace(pixels, images=self._ring.images(request.slot, len(request.spec), size))

    def release(self, handle: Any) -> None:
        """Free the slot of a request whose pixels are not needed; if unanswered, once its loader cannot write."""
        request: _Request = handle
        slot, request.slot = request.slot, None
        if slot is None or self._ring is None:
            return
        if request.answered:
            self._ring.free(slot)
        elif request.lost:
            # Ray may report a loss while the process still runs, behind a broken network: only its end is proof.
            process = Path(f"/proc/{self._pids[request.actor]}")
            self._ring.free(slot, lambda: not process.exists())
        else:
            self._ring.free(slot, lambda: is_done(request.reference))

    def observe(self, wait_share: float) -> None:
        # The answer is not waited for: a fleet that misses a report of two seconds loses little.
        self._fleet.actor.call.remote("observe", wait_share)

    def explain(self, members: Sequence[str]) -> dict[str, str]:
        """Return what each member waits for; all are called at once and have two seconds."""
        reasons = dict.fromkeys(members, "an answer from its process")
        checks: dict[Any, str] = {self._members[m].check.remote(): m for m in members if m in self._members}
        for reference in ray.wait(list(checks), num_returns=len(checks), timeout=_EXPLAIN_S)[0] if checks else ():
            with suppress(RayError):
                reasons[checks[reference]] = ray.get(reference, timeout=CALL_TIMEOUT_S)["waits_for"]
        return reasons

    def _reaches_ring(self, actor: ActorHandle[Any]) -> bool:
        """Return whether a loader is known to have mapped the ring; `attach` is called once, in the background."""
        assert self._ring is not None
        if actor not in self._pids and actor not in self._attaching:
            self._attaching[actor] = actor.attach.remote(self._ring.address)
        attaching = self._attaching.get(actor)
        if attaching is not None and is_done(attaching):
            del self._attaching[actor]
            try:
                self._pids[actor] = ray.get(attaching, timeout=CALL_TIMEOUT_S)
            except RayError:
                self._pids[actor] = 0
        return self._pids.get(actor, 0) > 0
