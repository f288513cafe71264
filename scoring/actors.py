"""Selection under Ray: one named actor a run, and the client through which all other processes talk to it.

The service is `Selection` and nothing more: it restarts without limit and recovers from the log. A window is put into
the object store once and its reference handed out. The client gives every call a deadline and asks again while the
service is away. That is safe because windows are idempotent, scores carry (producer, sequence), and controls and events
carry an identity.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
from numpy.typing import ArrayLike, NDArray
from ray.exceptions import RayError, RayTaskError

from scoring.config import SelectionConfig
from scoring.errors import RunMismatch, SelectionUnavailable
from scoring.log.runlog import RunLog
from scoring.prototypes import Prototypes
from scoring.records import Control, ControlReply, Event, LogEntry, ScoreAck, Window
from scoring.selection import Selection

SERVICE_NAME = "selection"
SERVICE_THREADS = 16
SHARED_WINDOWS = 4
"""Windows kept in the object store."""
SERVED = ("report_scores", "control", "record", "view", "times_drawn", "log")
"""Methods of `Selection` that `SelectionService.call` calls."""
CALL_TIMEOUT_S = 10.0
RETRY_PAUSE_S = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSource:
    """Where a service finds its run."""

    prototypes: str | None
    """File of `Prototypes.save`; None for policies without distances."""
    config: SelectionConfig
    """Configuration of the run."""
    runlog: str
    """Path of run.sqlite."""


def start_selection(
    config: SelectionConfig,
    *,
    runlog: str | Path,
    prototypes: str | Path | None = None,
    name: str = SERVICE_NAME,
    namespace: str | None = None,
    timeout_s: float = 60.0,
) -> SelectionClient:
    """Start the service of a run, or find the one that runs, and wait until it has recovered.

    Args:
        config: configuration of the run.
        runlog: path of run.sqlite, on a disk that a restarted actor reaches too.
        prototypes: file of `Prototypes.save`; None for policies without distances.
        name: actor name within the Ray namespace.
        namespace: Ray namespace of the run; None for the caller's own.
        timeout_s: how long to wait for the first answer.

    Returns:
        A client. The service outlives it, and the process that started it: end it with `SelectionClient.stop`.

    Raises:
        SelectionUnavailable: if it does not come up in time.
        RunMismatch: if the log, or the service that runs, is of another run.
        ValueError: if the data and the configuration do not fit.
    """
    actor = ray.remote(SelectionService).options(
        name=name,
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=SERVICE_THREADS,
        num_cpus=0,
        # On the node that starts the run: nodes of loaders come and go, and the log is on this one's disk.
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    )
    source = None if prototypes is None else str(Path(prototypes).absolute())
    run = RunSource(prototypes=source, config=config, runlog=str(Path(runlog).absolute()))
    client = SelectionClient(name=name, namespace=namespace, timeout_s=timeout_s, handle=actor.remote(run))
    client.require(run)
    return client


class SelectionService:
    """The actor's class: a recovered `Selection` whose windows travel by reference.

    The first call opens the run, not the constructor, so that the caller gets a typed error.
    """

    def __init__(self, run: RunSource) -> None:
        self._run = run
        self._opened: Selection | None = None
        self._shared: OrderedDict[int, ray.ObjectRef[Window]] = OrderedDict()
        self._opening, self._sharing = threading.Lock(), threading.Lock()

    def require(self, run: RunSource) -> None:
        """Open the run if it is not open.

        Raises:
            RunMismatch: if the caller means another run, or the log is of another.
            LogInUse: if another process writes the log.
            CorruptLog, ValueError: as of `RunLog` and `Selection`.
        """
        if run != self._run:
            raise RunMismatch(
                f"one selection service serves one run; the one of this name serves {self._run.runlog} and not "
                f"{run.runlog} as configured. Stop it, or give this run a name of its own."
            )
        self._selection()

    def window(self, index: int, effective_size: float | None) -> list[ray.ObjectRef[Window]]:
        """Return a reference to a window, in a list so that Ray hands over the reference and not the value."""
        shared = self._shared.get(index)
        if shared is None:
            window = self._selection().window(index, effective_size=effective_size)
            with self._sharing:
                shared = self._shared.get(index) or ray.put(window)
                self._shared[index] = shared
                while len(self._shared) > SHARED_WINDOWS:
                    self._shared.popitem(last=False)
        return [shared]

    def state(self) -> dict[str, Any]:
        """Return `Selection.state` with the "pid" and "node" of this process."""
        place = {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}
        return {**self._selection().state(), **place}

    def call(self, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call one of the other methods of `Selection` that the client has."""
        assert method in SERVED, "the client has no other methods"
        return getattr(self._selection(), method)(*arguments, **named)

    def _selection(self) -> Selection:
        with self._opening:
            if self._opened is None:
                run = self._run
                distance = None if run.prototypes is None else Prototypes.load(run.prototypes).distance
                runlog = RunLog(run.runlog)
                try:
                    self._opened = Selection(distance, run.config, runlog=runlog)
                except BaseException:
                    runlog.close()  # or the next try would find it locked
                    raise
            return self._opened


class SelectionClient:
    """A `SelectionPort` over Ray, for trainers, the API and the command line. Picklable.

    A call raises what `Selection` raises, or SelectionUnavailable when no answer comes within `timeout_s`.
    """

    def __init__(
        self,
        *,
        name: str = SERVICE_NAME,
        namespace: str | None = None,
        timeout_s: float = 60.0,
        handle: Any = None,
    ) -> None:
        """Name the service.

        Args:
            name: actor name within the Ray namespace.
            namespace: Ray namespace of the run; None for the caller's own.
            timeout_s: how long a call may take in all, restarts of the service included.
            handle: the actor's handle, if it is known.
        """
        self.name, self.namespace, self.timeout_s, self._handle = name, namespace, timeout_s, handle

    def require(self, run: RunSource) -> None:
        """Wait until the service has recovered; RunMismatch if it serves another run than this one."""
        self._retried(lambda service, timeout_s: ray.get(service.require.remote(run), timeout=timeout_s))

    def window(self, index: int, *, effective_size: float | None = None) -> Window:
        """Return the draws of one window; see `Selection.window`.

        A window that the service could not hand over in time is drawn all the same: asked for again, it is equal.
        """

        def fetch(service: Any, timeout_s: float) -> Window:
            (reference,) = ray.get(service.window.remote(index, effective_size), timeout=timeout_s)
            return cast(Window, ray.get(reference, timeout=timeout_s))

        return cast(Window, self._retried(fetch))

    def report_scores(
        self, ids: ArrayLike, values: ArrayLike, *, kind: str = "bss", step: int, producer: str, sequence: int
    ) -> ScoreAck:
        """Merge scores of samples; see `Selection.report_scores`.

        Raises:
            SelectionUnavailable: if no answer came in time. The scores may be merged: send them again with the same
                producer and sequence, and they count once.
        """
        report = {"kind": kind, "step": step, "producer": producer, "sequence": sequence}
        return cast(ScoreAck, self._call("report_scores", ids, values, **report))

    def control(self, control: Control) -> ControlReply:
        """Change what is drawn; a control without an identity gets one, so that asking again applies it once.

        Raises:
            SelectionUnavailable: if no answer came in time. The control may be in force: `state` shows it.
        """
        if not control.request:
            control = dataclasses.replace(control, request=uuid.uuid4().hex)
        return cast(ControlReply, self._call("control", control))

    def record(self, event: Event) -> None:
        """Write an event into the log; one without an identity gets one."""
        # The identity is given once, before the first try: each try must carry the same.
        self._call("record", event if event.request else dataclasses.replace(event, request=uuid.uuid4().hex))

    def state(self) -> dict[str, Any]:
        """Return `Selection.state`, with the service's "pid" and "node"."""
        state = self._retried(lambda service, timeout_s: ray.get(service.state.remote(), timeout=timeout_s))
        return cast("dict[str, Any]", state)

    def view(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Return a view, see `Selection.view`; paths are on the service's node."""
        return cast("dict[str, Any]", self._call("view", name, **arguments))

    def times_drawn(self) -> NDArray[np.uint32]:
        """Return how often each sample was drawn, [N]."""
        return cast("NDArray[np.uint32]", self._call("times_drawn"))

    def log(self, limit: int | None = None, **bounds: Any) -> list[LogEntry]:
        """Return the last entries of the history; see `Selection.log`."""
        return cast("list[LogEntry]", self._call("log", limit, **bounds))

    def stop(self) -> None:
        """End the service for good, if it is there; everything it acknowledged stays in the log."""
        try:
            ray.kill(ray.get_actor(self.name, namespace=self.namespace), no_restart=True)
        except ValueError:
            log.info("the selection service %r is already gone", self.name)

    def __getstate__(self) -> dict[str, Any]:
        # Without the handle: where the client arrives it looks the actor up, which may have been started anew.
        return {**self.__dict__, "_handle": None}

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        return self._retried(lambda s, timeout_s: ray.get(s.call.remote(method, arguments, named), timeout=timeout_s))

    def _retried(self, ask: Callable[[Any, float], Any]) -> Any:
        """Ask until answered or out of time; errors of the service itself come through as they are."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            left = max(0.01, deadline - time.monotonic())
            try:
                if self._handle is None:
                    self._handle = ray.get_actor(self.name, namespace=self.namespace)
                return ask(self._handle, min(CALL_TIMEOUT_S, left))
            except RayTaskError as error:
                # The service answered, with an error of its own: asking again would not help.
                raise error.cause from error
            except (RayError, ValueError) as error:  # ValueError: no actor of that name yet
                if time.monotonic() + RETRY_PAUSE_S > deadline:
                    raise SelectionUnavailable(
                        f"the selection service {self.name!r} must answer within {self.timeout_s:g} s; it did not "
                        f"({type(error).__name__}). See its log, or start the run again with `tempera resume`."
                    ) from error
            time.sleep(RETRY_PAUSE_S)
            self._handle = None
