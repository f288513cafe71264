"""Selection under Ray: one named actor a run, and the client through which everybody talks to it.

The service is `Selection` and nothing more: it restarts without limit and recovers from the log. A window is put into
the object store once and its reference handed out. The client gives every call a deadline and asks again while the
service is away; that is safe because windows are idempotent, scores carry (producer, sequence), and controls and events
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
from typing import Any, TypeVar, cast

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
SERVED = ("report_scores", "control", "record", "times_drawn", "scores", "log", "snapshot")
CALL_TIMEOUT_S = 10.0
RETRY_PAUSE_S = 0.2

log = logging.getLogger(__name__)

Message = TypeVar("Message", Control, Event)
Result = TypeVar("Result")


class SelectionService:
    """The actor's class: a recovered `Selection` whose windows travel by reference.

    The run is opened by the first call and not by the constructor, so that the caller gets a typed error.
    """

    def __init__(self, run: RunSource) -> None:
        self._run = run
        self._opened: Selection | None = None
        self._shared: OrderedDict[int, ray.ObjectRef[Window]] = OrderedDict()
        self._opening, self._sharing = threading.Lock(), threading.Lock()

    def require(self, run: RunSource) -> None:
        """Open the run if it is not; RunMismatch if the caller means another one."""
        if run != self._run:
            raise RunMismatch(
                f"one selection service serves one run; the one of this name serves {self._run.runlog} and not "
                f"{run.runlog} as configured. Stop it, or give this run a name of its own."
            )
        self._selection()

    def window(self, index: int, effective_size: float | None) -> list[ray.ObjectRef[Window]]:
        """Reference to a window, in a list so that Ray hands over the reference and not the value."""
        shared = self._shared.get(index)
        if shared is None:
            window = self._selection().window(index, effective_size=effective_size)
            with self._sharing:
                shared = self._shared.get(index) or ray.put(window)
                self._shared[index] = shared
                while len(self._shared) > SHARED_WINDOWS:
                    self._shared.popitem(last=False)
        return [shared]

    def call(self, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """One of the other methods of `Selection` that the client offers."""
        assert method in SERVED, "the client asks for nothing else"
        return getattr(self._selection(), method)(*arguments, **named)

    def state(self) -> dict[str, Any]:
        """See `Selection.state`; adds the process that serves it."""
        state = self._selection().state()
        return {**state, "pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}

    def view(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A view of `scoring.views` by name."""
        return self._selection().view(name, **arguments)

    def _selection(self) -> Selection:
        """The run, opened by the first call."""
        with self._opening:
            if self._opened is None:
                self._opened = self._run.open()
            return self._opened


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSource:
    """Where a service finds its run."""

    prototypes: str | None
    """File of `Prototypes.save`; None for policies without distances."""
    config: SelectionConfig
    """Configuration of the run."""
    runlog: str
    """Path of run.sqlite."""

    def open(self) -> Selection:
        """Recover the run."""
        distance = None if self.prototypes is None else Prototypes.load(self.prototypes).distance
        runlog = RunLog(self.runlog)
        try:
            return Selection(distance, self.config, runlog=runlog)
        except BaseException:
            runlog.close()
            raise


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
    source = None if prototypes is None else str(Path(prototypes).absolute())
    actor = ray.remote(SelectionService).options(
        name=name,
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=SERVICE_THREADS,
        num_cpus=0,
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},  # nodes of loaders come and go
    )
    run = RunSource(prototypes=source, config=config, runlog=str(Path(runlog).absolute()))
    client = SelectionClient(name=name, namespace=namespace, timeout_s=timeout_s, handle=actor.remote(run))
    client.require(run)
    return client


class SelectionClient:
    """What trainers, the CLI and the dashboard hold: the methods of `Selection`, over Ray. Picklable."""

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
            handle: the actor's handle if it is at hand.
        """
        self.name, self.namespace, self.timeout_s, self._handle = name, namespace, timeout_s, handle

    def window(self, index: int, *, effective_size: float | None = None) -> Window:
        """See `Selection.window`."""

        def fetch(service: Any, timeout_s: float) -> Window:
            (reference,) = ray.get(service.window.remote(index, effective_size), timeout=timeout_s)
            return cast(Window, ray.get(reference, timeout=timeout_s))

        return cast(Window, self._retried(fetch))

    def report_scores(
        self, ids: ArrayLike, values: ArrayLike, *, kind: str = "bss", step: int, producer: str, sequence: int
    ) -> ScoreAck:
        """See `Selection.report_scores`."""
        report = {"kind": kind, "step": step, "producer": producer, "sequence": sequence}
        return cast(ScoreAck, self._ask("report_scores", ids, values, **report))

    def control(self, control: Control) -> ControlReply:
        """See `Selection.control`; a control without an identity gets one, so that asking again applies it once."""
        return cast(ControlReply, self._ask("control", _identified(control)))

    def record(self, event: Event) -> None:
        """See `Selection.record`."""
        self._ask("record", _identified(event))

    def state(self) -> dict[str, Any]:
        """See `Selection.state`; with the service's "pid" and "node"."""
        return cast("dict[str, Any]", self._call("state"))

    def times_drawn(self) -> NDArray[Any]:
        """See `Selection.times_drawn`."""
        return cast("NDArray[Any]", self._ask("times_drawn"))

    def log(self, limit: int | None = None, **bounds: Any) -> list[LogEntry]:
        """See `Selection.log`."""
        return cast("list[LogEntry]", self._ask("log", limit, **bounds))

    def require(self, run: RunSource) -> None:
        """Wait until the service has recovered; RunMismatch if it serves another run than this one."""
        self._call("require", run)

    def view(self, name: str, **arguments: Any) -> dict[str, Any]:
        """See `scoring.views`; paths are on the service's node."""
        return cast("dict[str, Any]", self._call("view", name, arguments))

    def summary(self, *, top: int = 10) -> dict[str, Any]:
        """See `scoring.inspect.table_summary`."""
        return self.view("summary", top=top)

    def export(self, path: str | Path) -> int:
        """See `scoring.inspect.export_table`."""
        return int(self.view("export", path=str(path))["rows"])

    def stop(self) -> None:
        """End the service for good; what it acknowledged stays in the log. Nothing happens if it is gone."""
        try:
            ray.kill(ray.get_actor(self.name, namespace=self.namespace), no_restart=True)
        except ValueError:
            log.info("the selection service %r is already gone", self.name)

    def __reduce__(self) -> tuple[Callable[..., SelectionClient], tuple[str, str | None, float]]:
        return _client, (self.name, self.namespace, self.timeout_s)

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        return self._call("call", method, arguments, named)

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        def ask(service: Any, timeout_s: float) -> Any:
            return ray.get(getattr(service, method).remote(*arguments, **named), timeout=timeout_s)

        return self._retried(ask)

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
                raise error.cause from error
            except (RayError, ValueError) as error:  # ValueError: no actor of that name yet
                if time.monotonic() + RETRY_PAUSE_S > deadline:
                    raise SelectionUnavailable(
                        f"the selection service {self.name!r} must answer within {self.timeout_s:g} s; it did not "
                        f"({type(error).__name__}). See its log, or start the run again with `tempera resume`."
                    ) from error
            time.sleep(RETRY_PAUSE_S)
            self._handle = None


def _client(name: str, namespace: str | None, timeout_s: float) -> SelectionClient:
    return SelectionClient(name=name, namespace=namespace, timeout_s=timeout_s)


def _identified(message: Message) -> Message:
    """The message with an identity, so that the service can tell a repeated call from a repeated wish."""
    return message if message.request else dataclasses.replace(message, request=uuid.uuid4().hex)
