"""The fault run: a real run under Ray, its shards on a server that misbehaves, a fault every few seconds.

1. Bundled digits as shards, three samples damaged after they were indexed; prototypes; the shard server.
2. `tempera resume` in a process of its own drives the run.
3. Faults from a shuffled bag, so that every kind comes before any comes twice; the seed fixes kinds and times.
4. The run is asked to stop, and must end by itself with a checkpoint.
5. The verdict.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from deploy.console import progress_bar, say
from deploy.runs.config import DataConfig, RunConfig, save_config
from deploy.runs.overrides import override
from deploy.runs.recipes import debug
from deploy.runs.rundir import RunDir, RunError
from deploy.studies.demo.data import prepare
from deploy.studies.prototypes.job import score
from loader import ShardIndex, build_index
from tests.faults.oracle import RECORDED
from tests.soak.faults import AUTHOR, FAULTS, NotInjected, Target
from tests.soak.leaks import SETTLE_S, holdings, left_in_shared_memory, look, settled
from tests.soak.processes import Processes
from tests.soak.record import Holdings, Injection, Record
from tests.soak.storage import ShardServer
from tests.soak.verdict import Outcome, judge

HOST = "127.0.0.1"
SETTINGS = (
    "train.total_steps=1000000",
    "train.global_batch=64",
    "train.checkpoint_every=40",
    "train.log_every=8",
    "fleet.loaders=2",
    "trainers.max_failures=1000000",
    RECORDED,
    "pictures=false",
)
POISONED = 3
START_S, STOP_S, SAMPLE_S = 600.0, 300.0, 2.0
"""Limits for machines that have other things to do."""
FEWEST_S, MOST_S = 5.0, 20.0


def soak(out: Path, *, minutes: float, seed: int, kinds: tuple[str, ...] = ()) -> Outcome:
    """Run under faults.

    Args:
        out: folder for everything; it must be new.
        minutes: length of the run, above 0.
        seed: of the faults and their times.
        kinds: only these faults; all by default.

    Raises:
        RunError: the folder is not empty, or the run did not start.
    """
    if out.exists() and any(out.iterdir()):
        raise RunError(f"--out must be a new folder; {out} holds something. Take another.")
    processes, record = Processes(), Record()
    chance = random.Random(seed)
    with ExitStack() as stack:
        run, server, config = _prepare(out, record, stack)
        target = Target(run=run, processes=processes, storage=server)
        with _driven(run, processes, record):
            _wait_for_batches(run, processes)
            record.before = holdings(run, processes)
            _inject_faults(target, record, minutes=minutes, chance=chance, kinds=kinds or tuple(FAULTS))
            record.after = _calm(target, config, record.before)
        time.sleep(SAMPLE_S)
        record.strays = len(processes.alive())
        record.shared_memory = left_in_shared_memory(record)
        return judge(run, config, record, acknowledged=target.acknowledged, seed=seed)


def _prepare(out: Path, record: Record, stack: ExitStack) -> tuple[RunDir, ShardServer, RunConfig]:
    """Shards, prototypes, server and configuration of the run."""
    data = prepare(out / "data", images=None, shards=())
    prototypes = out / "data" / "prototypes.parquet"
    score(data.index, prototypes, num_clusters=20)
    tars = sorted((out / "data" / "train").glob("*.tar"))
    server = stack.enter_context(ShardServer(tars[0].parent))
    served = out / "data" / "served.parquet"
    build_index([f"{server.url}/{tar.name}" for tar in tars], served, allow_hosts=(HOST,))
    record.poisoned = _poison(ShardIndex.load(data.index))
    config = override(debug(DataConfig(index=str(served.resolve()), prototypes=str(prototypes.resolve()))), SETTINGS)
    config = replace(config, name="soak", loader=replace(config.loader, allow_hosts=(HOST,)))
    run = RunDir(out / "run")
    run.path.mkdir()
    save_config(config, run.config)
    return run, server, config


def _poison(index: ShardIndex) -> frozenset[int]:
    """Flip a byte in the middle of some samples, not the first of a shard."""
    rows = np.linspace(0, len(index) - 1, POISONED + 2).astype(int)[1:-1]
    for row in rows:
        with Path(index.shard_urls[index.shard[row]]).open("r+b") as shard:
            place = int(index.offset[row]) + int(index.size[row]) // 2
            shard.seek(place)
            byte = shard.read(1)[0]
            shard.seek(place)
            shard.write(bytes([byte ^ 0xFF]))
    return frozenset(rows.tolist())


@contextmanager
def _driven(run: RunDir, processes: Processes, record: Record) -> Iterator[None]:
    """Drive the run in another process; at the end ask it to stop, and see that it does."""
    with (run.path / "driver.log").open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "resume", str(run.path)],
            stdout=output,
            stderr=output,
            env={name: value for name, value in processes.environment.items() if name != "RAY_ADDRESS"},
        )
    try:
        yield
    finally:
        run.stop_request.touch()
        try:
            record.exit_status = driver.wait(STOP_S)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()


def _wait_for_batches(run: RunDir, processes: Processes) -> None:
    deadline = time.monotonic() + START_S
    while not any(path.stat().st_size for path in (run.path / "oracle").glob("*.jsonl")):
        if time.monotonic() > deadline or not processes.alive():
            tail = (run.path / "driver.log").read_text()[-500:]
            raise RunError(f"the run did not start within {START_S:g} s; its last words: {tail}")
        time.sleep(0.5)


def _inject_faults(
    target: Target, record: Record, *, minutes: float, chance: random.Random, kinds: tuple[str, ...]
) -> None:
    began, seconds = time.monotonic(), minutes * 60
    bag: list[str] = []
    with progress_bar("fault run") as advance:
        due = began + chance.uniform(FEWEST_S, MOST_S)
        while (now := time.monotonic()) < began + seconds:
            advance(int(now - began), int(seconds))
            look(target.processes, target.run.endpoint(), record)
            if now >= due:
                bag = bag or chance.sample(kinds, len(kinds))
                _inject(target, record, bag.pop(), chance)
                due = now + chance.uniform(FEWEST_S, MOST_S)
            time.sleep(min(SAMPLE_S, max(0.0, due - time.monotonic())))
    target.storage.misbehaviour = ""
    time.sleep(MOST_S / 2)  # what was done last must be survived, too


def _calm(target: Target, config: RunConfig, before: Holdings) -> Holdings:
    """As many loaders as at the start; what the run holds when it has come to rest."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            with target.client() as client:
                client.scale(config.fleet.loaders, author=AUTHOR, reason="the faults are over")
            break
        except RunError:  # whoever should answer may be on its way back
            if time.monotonic() > deadline:
                raise
            time.sleep(SAMPLE_S)
    return settled(target.run, target.processes, before)


def _inject(target: Target, record: Record, kind: str, chance: random.Random) -> None:
    moment = time.time()
    try:
        what = FAULTS[kind](target, chance)
    except (NotInjected, RunError, ProcessLookupError, OSError) as error:
        say(f"  {kind}: not injected ({error})")
        return
    record.injections.append(Injection(time=moment, kind=kind, what=what))
    say(f"  {kind}: {what}")
