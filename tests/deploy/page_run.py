"""A real run in this process for the tests of the page: training, selection, loaders that scale, and the API.

The fleet is the one that Ray's actor wraps; here it launches plain LoaderWorkers, so that a click can add one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deploy.api.backend import RunBackend
from deploy.api.server import serving
from deploy.launch.rank import RankParts
from deploy.runs.config import DataConfig, RunConfig, prototype_distances, save_config, selection_config
from deploy.runs.recipes import debug
from deploy.runs.rundir import RunDir
from deploy.studies.prototypes.job import score
from loader import (
    FleetConfig,
    ImageSample,
    ImageSource,
    LoaderConfig,
    LoaderWorker,
    LocalLoaders,
    ShardIndex,
    build_index,
    build_shards,
)
from loader.errors import LoaderLost
from loader.fleet.supervisor import Fleet
from scoring import RunLog, Selection
from tests.samples import encoded
from trainer import Context, RunHooks, train

SCRIPT = "<img src=x onerror=hacked()>"
"""Markup in every sample's key, which must be shown and not run."""
NUM_SAMPLES = 160
TOTAL_STEPS = 1_000_000
TICK_S = 0.05
STEP_S = 0.02
"""Rest after each step: the browser needs the processor too."""


@dataclass(frozen=True)
class LiveRun:
    """A run that trains while the tests look at it."""

    url: str
    config: RunConfig
    run: RunDir
    backend: RunBackend
    selection: Selection
    fleet: Fleet

    @property
    def token(self) -> str:
        return self.run.api_token.read_text()

    @property
    def page(self) -> str:
        """The address that a person opens."""
        return f"{self.url}/#token={self.token}"


class LocalProcess:
    """A loader in this process, as a fleet sees it."""

    def __init__(self, index: str, config: LoaderConfig) -> None:
        self.handle, self.why = LoaderWorker(index, config), ""

    def poll(self) -> str:
        return "ready"

    @property
    def info(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "node": "here", **self.handle.stats()}

    def drain(self) -> None:
        """Requests under way finish: its threads end when the process does."""

    def kill(self) -> None:
        self.handle.close()


class FleetPool(LocalLoaders):
    """The loaders of a fleet of this process."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self._threads = fleet, ThreadPoolExecutor(2)

    def members(self) -> tuple[str, ...]:
        return tuple(self._fleet.members())

    def submit(self, member: str, spec: Any) -> Hashable:
        worker = self._fleet.members().get(member)
        if worker is None:
            raise LoaderLost(f"{member} has left")
        return self._threads.submit(worker.load, spec)

    def explain(self, members: Sequence[str]) -> dict[str, str]:
        return {}


def hostile_data(folder: Path) -> DataConfig:
    """Images whose keys are markup; the bytes of one are changed after indexing, so that its checksum is wrong."""
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_SAMPLES, 4, 4, 3), np.uint8)
    images = [Image.fromarray(image).resize((32, 32)) for image in pixels]
    samples = [ImageSample(f"{SCRIPT}{number}", encoded(image), number % 2) for number, image in enumerate(images)]
    built = build_shards(ImageSource(samples, ("<b>cat</b>", "dog")), folder)
    index_path, prototypes = folder / "index.parquet", folder / "prototypes.parquet"
    build_index(built, index_path)
    found = score(index_path, prototypes, num_clusters=6)
    index = ShardIndex.load(index_path)
    bad = int(np.argsort(found.prototypes.distance)[NUM_SAMPLES // 2])
    _flip_a_byte(Path(built[0]), int(index.offset[bad] + index.size[bad] // 2))
    return DataConfig(index=str(index_path), prototypes=str(prototypes))


def page_config(data: DataConfig) -> RunConfig:
    """A tiny MAE that goes on for as long as the tests take."""
    config = debug(data)
    steps = replace(config.train, total_steps=TOTAL_STEPS, checkpoint_every=TOTAL_STEPS, keep_checkpoints=1)
    return replace(config, name="page", train=steps, fleet=FleetConfig(loaders=2), pictures=False)


@contextmanager
def live_run(folder: Path) -> Iterator[LiveRun]:
    """Train, serve, and stop both when the block ends."""
    config, run = page_config(hostile_data(folder / "data")), RunDir(folder / "run")
    run.path.mkdir()
    save_config(config, run.config)
    index = ShardIndex.load(config.data.index)
    loader = LoaderConfig(threads=1, cache_bytes=1 << 18)
    part = selection_config(config, num_samples=len(index), fingerprint=index.fingerprint)
    fleet, over = Fleet(lambda _: LocalProcess(config.data.index, loader), size=2, clock=time.time), threading.Event()
    with closing(RunLog(run.log)) as log, closing(fleet):
        selection = Selection(prototype_distances(config), part, runlog=log)
        backend = RunBackend(selection=selection, fleet=fleet)
        with (
            serving(config, run, backend) as url,
            _ticking(fleet, over),
            _training(config, run, selection, fleet, over),
        ):
            yield LiveRun(url, config, run, backend, selection, fleet)


@contextmanager
def _ticking(fleet: Fleet, over: threading.Event) -> Iterator[None]:
    def tick() -> None:
        while not over.wait(TICK_S):
            fleet.tick()

    for _ in range(2):  # launched, then found ready: a stream wants loaders from its start
        fleet.tick()
    thread = threading.Thread(target=tick)
    thread.start()
    yield
    thread.join()


@contextmanager
def _training(
    config: RunConfig, run: RunDir, selection: Selection, fleet: Fleet, over: threading.Event
) -> Iterator[None]:
    context, pool = Context(), FleetPool(fleet)
    rank = RankParts(config=config, run=run, reach_selection=lambda: selection, reach_loaders=lambda: pool)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            train(
                config.train,
                rank.stream(context),
                run_dir=run.path,
                selection=selection,
                context=context,
                hooks=RunHooks(should_stop=lambda: over.wait(STEP_S), should_pause=run.pause_request.exists),
            )
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        run.pause_request.unlink(missing_ok=True)
        thread.join(200)
    assert not failures, failures
    assert not thread.is_alive()


def _flip_a_byte(path: Path, at: int) -> None:
    stamp = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
