"""Where a hostile input is given to the product: one function a place, with the verdict as its answer."""

from __future__ import annotations

import http.server
import json
import logging
import shutil
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy.remote.manifests.ray_up import load_description
from deploy.runs.config import load_config
from loader import BatchSpec, LoaderConfig, LoaderWorker, ShardIndex, Transform, build_index
from loader.storage.connections import Connections
from loader.storage.https import HttpShard
from loader.storage.shard_files import open_shard
from scoring import Control, Prototypes, RunLog, Selection
from scoring.features import encoders as scoring_encoders
from scoring.features.store import FeatureStore
from scoring.log.snapshots import read_snapshot
from tests.hostile import indexes, tars
from tests.hostile.images import jpeg
from tests.scoring.configs import selection_config
from trainer.record.checkpoint import load_checkpoint
from trainer.record.official import load_official, read_weights

Verdict = tuple[str, str]
EFFECTIVE_SIZE = 0.5


class Workplace:
    """A folder to work in, and what several places need."""

    def __init__(self, corpus: Path) -> None:
        logging.disable(logging.CRITICAL)
        self.corpus = corpus
        self.folder = Path(tempfile.mkdtemp(prefix="judge-", dir=corpus))
        self.redirect_to = ""

    def empty(self) -> Path:
        """A fresh folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return self.folder

    def sound(self) -> Iterator[tuple[str, bytes]]:
        """An input for each place that takes time to get going."""
        yield "shard", tars.sound()
        yield "sample", jpeg()
        yield "sample", jpeg("CMYK")
        yield "index", indexes.index()
        yield "prototypes", indexes.prototypes()
        yield "scores", b"{}"

    @cached_property
    def selection(self) -> Selection:
        """A selection over eight samples."""
        config = selection_config(seed=1, global_batch=2, window_steps=1, fingerprint="aa", start=EFFECTIVE_SIZE)
        return Selection(np.linspace(0, 1, 8, dtype=np.float32), config)

    @cached_property
    def server(self) -> http.server.ThreadingHTTPServer:
        """A storage server that sends everybody elsewhere."""
        work = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(302)
                if work.redirect_to:
                    self.send_header("Location", work.redirect_to)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def close(self) -> None:
        """Leave nothing."""
        if "server" in self.__dict__:
            self.server.shutdown()
            self.server.server_close()
        if "selection" in self.__dict__:
            self.selection.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _bytes(given: bytes | Path) -> bytes:
    return given.read_bytes() if isinstance(given, Path) else given


def _placed(work: Workplace, given: bytes | Path, name: str) -> Path:
    """The input under a name of a fresh folder: linked, so that large ones are not copied."""
    path = work.empty() / name
    if isinstance(given, Path):
        path.hardlink_to(given)
    else:
        path.write_bytes(given)
    return path


def _loaded(index: ShardIndex) -> Verdict:
    """Every sample of an index, decoded."""
    ids = np.arange(len(index))
    spec = BatchSpec(sample_ids=ids, draws=ids, seed=0, transform=Transform(size=16))
    with LoaderWorker(index.path, LoaderConfig()) as worker:
        pixels = worker.load(spec)
    bad = [sample.row for sample in pixels.bad]
    assert not pixels.images[bad].any(), "a bad row is left zero"
    labels = ", ".join(f"label {label}" for label in index.label[:3])
    account = f"{len(ids)} samples, {len(bad)} bad, {labels}: {'; '.join(sample.reason for sample in pixels.bad)}"
    return ("substituted" if bad else "accepted"), account


def shard(work: Workplace, given: Any) -> Verdict:
    path = _placed(work, given, "x.tar")
    return _loaded(build_index([path], path.with_name("index.parquet")))


def index(work: Workplace, given: Any) -> Verdict:
    path = _placed(work, given, "index.parquet")
    path.with_name("sound.tar").write_bytes(tars.sound())
    loaded = ShardIndex.load(path)
    assert len(loaded.keys) == len(loaded)
    return _loaded(loaded)


def sample(work: Workplace, given: Any) -> Verdict:
    """An image between two sound ones, which must be untouched by it; drawn twice, whole and by region."""
    path = work.empty() / "x.tar"
    path.write_bytes(tars.member(b"0.jpg") + tars.member(b"1.jpg", _bytes(given)) + tars.member(b"2.jpg") + tars.END)
    built = build_index([path], path.with_name("index.parquet"))
    ids = np.array([0, 1, 2, 1, 0])
    spec = BatchSpec(sample_ids=ids, draws=np.arange(5), seed=0, transform=Transform(size=16))
    with LoaderWorker(built.path, LoaderConfig()) as worker:
        pixels = worker.load(spec)
    bad = {sample.sample_id: sample.reason for sample in pixels.bad}
    assert set(bad) <= {1}, "a neighbour suffers"
    assert len(pixels.bad) in (0, 2), "one input, two answers"
    assert all(pixels.images[row].any() for row in (0, 2, 4)), "a neighbour is lost"
    return ("substituted", bad[1]) if bad else ("accepted", "")


def prototypes(work: Workplace, given: Any) -> Verdict:
    loaded = Prototypes.load(_placed(work, given, "prototypes.parquet"))
    return "accepted", f"{len(loaded.distance)} samples"


def distances(work: Workplace, given: Any) -> Verdict:
    path = _placed(work, given, "prototypes.parquet")
    return _controlled(work, Control(kind="distances", value=str(path), author="ann"))


def _checkpoint(work: Workplace, tensors: bytes, state: bytes | None = None) -> Verdict:
    folder = work.empty() / "step-00000001"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(tensors)
    facts = {"bytes": len(tensors), "crc32": zlib.crc32(tensors)}
    text = json.dumps({"format": 1, "step": 1, "files": {"model.safetensors": facts}}).encode()
    (folder / "state.json").write_bytes(text if state is None else state)
    return "accepted", str(load_checkpoint(folder).state["step"])


def checkpoint_tensors(work: Workplace, given: Any) -> Verdict:
    return _checkpoint(work, _bytes(given))


def checkpoint_state(work: Workplace, given: Any) -> Verdict:
    return _checkpoint(work, b"", _bytes(given))


def official_weights(work: Workplace, given: Any) -> Verdict:
    suffix = given.suffix if isinstance(given, Path) else ".safetensors"
    load_official("mae", _placed(work, given, f"weights{suffix}"), width=48, depth=1, heads=3, decoder_depth=1)
    return "accepted", ""


def encoder_weights(work: Workplace, given: Any) -> Verdict:
    suffix = given.suffix if isinstance(given, Path) else ".pth"
    scoring_encoders.load_weights(torch.nn.Linear(2, 2), "linear", _placed(work, given, f"weights{suffix}"))
    return "accepted", ""


def evaluation_weights(work: Workplace, given: Any) -> Verdict:
    return "accepted", str(len(read_weights(_placed(work, given, "weights.safetensors"))))


def config(work: Workplace, given: Any) -> Verdict:
    return "accepted", load_config(_placed(work, given, "config.json")).name


def classes(work: Workplace, given: Any) -> Verdict:
    path = _placed(work, given, "classes.json")
    path.with_name("x.tar").write_bytes(tars.sound())
    return _loaded(build_index([path.with_name("x.tar")], path.with_name("index.parquet")))


def log(work: Workplace, given: Any) -> Verdict:
    with closing(RunLog(_placed(work, given, "run.sqlite"))) as opened:
        return "accepted", str(len(opened.entries()))


def snapshot(work: Workplace, given: Any) -> Verdict:
    return "accepted", str(read_snapshot(_placed(work, given, "run.sqlite.snapshot-000000000001"))[0])


def feature_chunk(work: Workplace, given: Any) -> Verdict:
    """A damaged chunk is one that is computed again."""
    path = _placed(work, given, "features-000000.safetensors")
    store = FeatureStore(path.parent, identity={}, num_samples=4, chunk_samples=4)
    assert store.missing() == [0]
    return "accepted", "missing"


def cluster(work: Workplace, given: Any) -> Verdict:
    return "accepted", str(load_description(_placed(work, given, "cluster.yaml")))


def url(work: Workplace, given: Any) -> Verdict:
    with Connections() as connections, closing(open_shard(json.loads(_bytes(given)), connections=connections)) as shard:
        return "accepted", str(shard.num_bytes)


def redirect(work: Workplace, given: Any) -> Verdict:
    work.redirect_to = json.loads(_bytes(given))
    address = f"http://127.0.0.1:{work.server.server_address[1]}/x.tar"
    with closing(HttpShard(address, connections=Connections(allow_hosts=("127.0.0.1",)), deadline_s=1.0)) as opened:
        return "accepted", str(opened.num_bytes)


def scores(work: Workplace, given: Any) -> Verdict:
    report = {"ids": [0, 1], "values": [0.5, 0.25], "step": 1, "producer": "rank-0", "sequence": 1}
    report |= json.loads(_bytes(given))
    for name in ("ids", "values"):
        if isinstance(report[name], dict):
            report[name] = np.broadcast_to(
                np.zeros(1, np.int64 if name == "ids" else np.float32), report[name]["zeros"]
            )
    before = work.selection.state()["scored"]
    try:
        ack = work.selection.report_scores(**report)
    except ValueError:
        assert work.selection.state()["scored"] == before, "refused, and yet something changed"
        raise
    said = "".join(f", {number} {reason}" for reason, number in ack.rejected.items())
    return "accepted", f"{ack.accepted} taken{said}"


def control(work: Workplace, given: Any) -> Verdict:
    return _controlled(work, Control(**{"author": "ann", **json.loads(_bytes(given))}))


def _controlled(work: Workplace, wish: Control) -> Verdict:
    before = work.selection.state()["control_version"]
    try:
        reply = work.selection.control(wish)
    except Exception:
        assert work.selection.state()["control_version"] == before, "refused, and yet something changed"
        raise
    window = work.selection.window(work.selection.next_window)
    assert np.isfinite(window.probability).all()
    return "accepted", str(reply.version)


FUNCTIONS = (
    shard, index, sample, prototypes, distances, checkpoint_tensors, checkpoint_state, official_weights,
    encoder_weights, evaluation_weights, config, classes, log, snapshot, feature_chunk, cluster, url, redirect,
    scores, control,
)  # fmt: skip
PLACES: dict[str, Callable[[Workplace, Any], Verdict]] = {
    place.__name__.replace("_", " "): place for place in FUNCTIONS
}
