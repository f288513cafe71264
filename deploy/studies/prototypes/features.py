"""Features of an indexed data set, computed in chunks that can be spread over workers, stopped and gone on with.

1. `FeatureSpec` says which feature space; its identity and the data set's fingerprint name the store on disk.
2. Each chunk that is missing is decoded through a LoaderWorker with the evaluation crop, described, and written whole.
3. Chunks are done in this process, or by workers under Ray, one to a GPU where the cluster has some.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deploy.console import Advance
from loader import BatchSpec, LoaderConfig, LoaderWorker, ShardIndex
from loader.sweep import evaluation_transform
from scoring.features.images import FEATURES, FeatureSpace
from scoring.features.store import FeatureStore

CHUNK_SAMPLES = 4096
DECODED_AT_ONCE = 256
CODEBOOK_IMAGES = 2048
IN_FLIGHT = 2
"""Chunks that wait at each worker."""
RESTARTS = 3
"""Of a worker, and of a chunk, before the job gives up."""
CODEBOOK = "words.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSpec:
    """A feature space."""

    space: str = "pixels"
    """pixels, hog, sift, untrained (a ViT with random weights), run (the encoder of `run`), or a timm model's name."""
    size: int = 32
    """Side of the evaluation crop in pixels."""
    weights: str | None = None
    """File with a timm model's weights; None takes the hub's."""
    run: str | None = None
    """Run directory whose newest checkpoint holds the encoder."""
    seed: int = 0
    """Of words and of random weights."""
    device: str = "auto"
    """Where networks compute: auto, cpu or cuda."""

    def identity(self) -> dict[str, Any]:
        """What decides the features, as JSON values."""
        facts = {name: value for name, value in asdict(self).items() if name not in ("device", "weights", "run")}
        if self.weights is not None:
            facts["weights"] = _digest(Path(self.weights))
        if self.run is not None:
            facts["checkpoint"] = checkpoint_step(Path(self.run))
        return facts

    def build(self, store: Path) -> FeatureSpace:
        """The space; words that SIFT needs are in the store's folder.

        Raises:
            ValueError: if there is no such space, or its weights are not to be had.
        """
        if self.space in FEATURES:
            return FEATURES[self.space]
        if self.space == "sift":
            from safetensors.numpy import load_file

            from scoring.features.images import BagOfWords

            return BagOfWords(load_file(store / CODEBOOK)["words"])
        from scoring.features import encoders

        device = self.torch_device()
        if self.space == "untrained":
            return encoders.untrained_features(size=self.size, seed=self.seed, device=device)
        if self.space == "run":
            return _run_encoder(Path(self.run or ""), device)
        weights = None if self.weights is None else Path(self.weights)
        return encoders.timm_features(self.space, weights=weights, size=self.size, seed=self.seed, device=device)

    def torch_device(self) -> str:
        """Where this process computes; ValueError if cuda is asked for and there is none."""
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("features on cuda need an NVIDIA GPU that PyTorch sees; it sees none. Use --device cpu.")
        return "cpu" if self.device == "cpu" or not torch.cuda.is_available() else "cuda"


def compute_features(
    index_path: Path, spec: FeatureSpec, directory: Path, *, workers: int = 0, advance: Advance | None = None
) -> FeatureStore:
    """Compute what is missing of a data set's features.

    Args:
        index_path: index.parquet.
        spec: the feature space.
        directory: folder of the store.
        workers: processes under Ray; 0 computes here.
        advance: called with (samples done, samples).

    Raises:
        ValueError: if the folder holds features of something else, or the space cannot be built.
    """
    index = ShardIndex.load(index_path)
    identity = {"fingerprint": index.fingerprint, **spec.identity()}
    store = FeatureStore(directory, identity=identity, num_samples=len(index), chunk_samples=CHUNK_SAMPLES)
    _find_words(index_path, spec, directory)
    missing = store.missing()
    done = len(index) - sum(len(store.ids(chunk)) for chunk in missing)
    chunks = (
        _under_ray(index_path, spec, store, missing, workers) if workers else _here(index_path, spec, store, missing)
    )
    for chunk in chunks:
        done += len(store.ids(chunk))
        if advance:
            advance(done, len(index))
    return store


class ChunkMaker:
    """Computes chunks: what a worker does, in whatever process."""

    def __init__(self, index_path: Path, spec: FeatureSpec, store: FeatureStore) -> None:
        self._store, self._space = store, spec.build(store.directory)
        self._images = Images(index_path, spec.size)

    def make(self, chunk: int) -> int:
        """Compute and write a chunk; returns it."""
        parts, bad = [], []
        for images, failures in self._images.batches(self._store.ids(chunk)):
            parts.append(self._space(images))
            bad += failures
        self._store.write(chunk, np.concatenate(parts), bad)
        return chunk


class Images:
    """Evaluation crops of an indexed data set, decoded here."""

    def __init__(self, index_path: Path, size: int) -> None:
        self._transform = evaluation_transform(size)
        self._worker = LoaderWorker(index_path, LoaderConfig(threads=len(os.sched_getaffinity(0))))

    def batches(self, ids: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.uint8], list[str]]]:
        """(images uint8[n,3,H,W], a line "<sample id> <key>: <reason>" for each that is bad, and zeros)."""
        for start in range(0, len(ids), DECODED_AT_ONCE):
            part = ids[start : start + DECODED_AT_ONCE]
            pixels = self._worker.load(BatchSpec(sample_ids=part, draws=part, seed=0, transform=self._transform))
            yield pixels.images, [f"{sample.sample_id} {sample.key}: {sample.reason}" for sample in pixels.bad]


def checkpoint_step(run: Path) -> int:
    """Step of a run's newest checkpoint."""
    from trainer import load_checkpoint

    return int(load_checkpoint(run).state["step"])


def _here(index_path: Path, spec: FeatureSpec, store: FeatureStore, missing: list[int]) -> Iterator[int]:
    if missing:
        yield from map(ChunkMaker(index_path, spec, store).make, missing)


def _under_ray(
    index_path: Path, spec: FeatureSpec, store: FeatureStore, missing: list[int], workers: int
) -> Iterator[int]:
    """Chunks as workers finish them; a worker that dies is started again and its chunks are made again."""
    from deploy.launch.cluster import cluster

    if not missing:
        return
    with cluster(store.directory, num_cpus=workers):
        import ray

        gpus = cast(Any, ray).cluster_resources().get("GPU", 0) if spec.device != "cpu" else 0
        needs: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}
        actor: Any = ray.remote(ChunkMaker).options(**needs, max_restarts=RESTARTS, max_task_retries=RESTARTS)
        count = min(workers, len(missing), int(gpus) or workers)
        makers = [actor.remote(index_path.absolute(), spec, store) for _ in range(count)]
        waiting, running = list(reversed(missing)), {}
        for maker in makers * IN_FLIGHT:
            if waiting:
                running[maker.make.remote(waiting.pop())] = maker
        while running:
            (done, *_), _ = ray.wait(list(running))
            maker = running.pop(done)
            if waiting:
                running[maker.make.remote(waiting.pop())] = maker
            yield ray.get(done)


def _find_words(index_path: Path, spec: FeatureSpec, directory: Path) -> None:
    """The codebook of SIFT, from images spread over the data set; once."""
    path = directory / CODEBOOK
    if spec.space != "sift" or path.exists():
        return
    from safetensors.numpy import save_file

    from scoring.features.images import fit_bag_of_words

    size = len(ShardIndex.load(index_path))
    ids = np.random.default_rng(spec.seed).permutation(size)[:CODEBOOK_IMAGES]
    batches = (images for images, _ in Images(index_path, spec.size).batches(np.sort(ids)))
    words = fit_bag_of_words(batches, seed=spec.seed).words
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file({"words": words}, aside)
    os.replace(aside, path)


def _run_encoder(run: Path, device: str) -> FeatureSpace:
    """The class token of a run's encoder."""
    from trainer.evaluate.knn import embed
    from trainer.record.export import load_method

    config, method = load_method(run)
    encoder = method.encoder.to(device)

    def features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(embed(encoder, [images], mean=config.mean, std=config.std), dtype=np.float32)

    return features


def _digest(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"--weights must be a file; {path} is none.")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
