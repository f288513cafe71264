"""Features of an indexed data set, computed in chunks, so that the job can be spread over workers and resumed.

1. `FeatureSpec` names the feature space; its identity and the data set's fingerprint name the store on disk.
2. Each missing chunk is decoded by a LoaderWorker with the evaluation crop, described, and written whole.
3. The chunks are computed in this process, or by workers under Ray, one to a GPU where the cluster has some.
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
from deploy.runs.rundir import RunError
from loader import BatchSpec, LoaderConfig, LoaderWorker, ShardIndex
from loader.sweep import SWEEP_IMAGES, evaluation_transform, sweep
from scoring.features.images import FEATURES, BagOfWords, FeatureSpace, fit_bag_of_words
from scoring.features.store import FeatureStore, written_aside

CHUNK_SAMPLES = 4096
CODEBOOK_IMAGES = 2048
IN_FLIGHT = 2
"""Chunks queued at each worker, so that none is idle between two."""
RESTARTS = 3
"""Restarts of a worker, and retries of a chunk, before the job gives up."""
STALL_S = 3600.0
"""Longest time in which no chunk is finished: a large network on a CPU takes minutes for each."""
ANSWER_S = 60.0
"""Longest time for a finished chunk's number to arrive."""
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
    """Seed of SIFT words and of random weights."""
    device: str = "auto"
    """Where networks compute: auto, cpu or cuda."""

    def identity(self) -> dict[str, Any]:
        """Return the values that decide the features, as JSON; ValueError if the weights are not a file."""
        # Weights by content, not by path: a file that was replaced has other features. A run's are its newest step's.
        facts = {name: value for name, value in asdict(self).items() if name not in ("device", "weights", "run")}
        if self.weights is not None:
            if not Path(self.weights).is_file():
                raise ValueError(f"--weights must be a file; {self.weights} is none.")
            with open(self.weights, "rb") as file:
                facts["weights"] = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        if self.run is not None:
            facts["checkpoint"] = checkpoint_step(Path(self.run))
        return facts

    def build(self, store: Path) -> FeatureSpace:
        """Return the space; SIFT reads its words from the store's folder.

        Raises:
            ValueError: no such space, no such weights, or no GPU where cuda is asked for.
        """
        if self.space in FEATURES:
            return FEATURES[self.space]
        if self.space == "sift":
            from safetensors.numpy import load_file

            return BagOfWords(load_file(store / CODEBOOK)["words"])
        import torch

        from scoring.features import encoders  # imports timm, which the spaces above do not need

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("features on cuda need an NVIDIA GPU that PyTorch sees; it sees none. Use --device cpu.")
        device = "cpu" if self.device == "cpu" or not torch.cuda.is_available() else "cuda"
        if self.space == "untrained":
            return encoders.untrained_features(size=self.size, seed=self.seed, device=device)
        if self.space == "run":
            return _run_encoder(Path(self.run or ""), device)
        weights = None if self.weights is None else Path(self.weights)
        return encoders.timm_features(self.space, weights=weights, size=self.size, seed=self.seed, device=device)


def compute_features(
    index_path: Path, spec: FeatureSpec, directory: Path, *, workers: int = 0, advance: Advance | None = None
) -> FeatureStore:
    """Compute the missing chunks of a data set's features, in `workers` processes under Ray, or with 0 in this one.

    Raises:
        ValueError: the folder holds other features, or the space cannot be built.
    """
    index = ShardIndex.load(index_path)
    identity = {"fingerprint": index.fingerprint, **spec.identity()}
    store = FeatureStore(directory, identity=identity, num_samples=len(index), chunk_samples=CHUNK_SAMPLES)
    missing = store.missing()
    if not missing:
        return store
    codebook = directory / CODEBOOK
    if spec.space == "sift" and not codebook.exists():
        # Words from images spread over the data set, written before any worker needs them.
        from safetensors.numpy import save_file

        spread = np.random.default_rng(spec.seed).permutation(len(index))[:CODEBOOK_IMAGES]
        sample = sweep(index_path, evaluation_transform(spec.size), ids=np.sort(spread))
        words = fit_bag_of_words((images for _, images, _ in sample), seed=spec.seed).words
        with written_aside(codebook) as aside:
            save_file({"words": words}, aside)
    # A resumed job begins its bar where the last one ended.
    done = len(index) - sum(len(store.ids(chunk)) for chunk in missing)
    if workers:
        chunks = _under_ray(index_path, spec, store, missing, workers)
    else:
        chunks = map(ChunkMaker(index_path, spec, store).make, missing)
    for chunk in chunks:
        done += len(store.ids(chunk))
        if advance:
            advance(done, len(index))
    return store


class ChunkMaker:
    """Computes chunks, in this process or as a worker's actor."""

    def __init__(self, index_path: Path, spec: FeatureSpec, store: FeatureStore) -> None:
        self._store, self._space = store, spec.build(store.directory)
        self._transform = evaluation_transform(spec.size)
        self._worker = LoaderWorker(index_path, LoaderConfig(threads=len(os.sched_getaffinity(0))))

    def make(self, chunk: int) -> int:
        parts, bad, ids = [], [], self._store.ids(chunk)
        for start in range(0, len(ids), SWEEP_IMAGES):
            part = ids[start : start + SWEEP_IMAGES]
            pixels = self._worker.load(BatchSpec(sample_ids=part, draws=part, seed=0, transform=self._transform))
            parts.append(self._space(pixels.images))  # bad samples are black images; `score` overrides their distance
            bad += [f"{sample.sample_id} {sample.key}: {sample.reason}" for sample in pixels.bad]
        self._store.write(chunk, np.concatenate(parts), bad)
        return chunk


def checkpoint_step(run: Path) -> int:
    """Return the step of a run's newest checkpoint."""
    from trainer import load_checkpoint

    return int(load_checkpoint(run).state["step"])


def _under_ray(
    index_path: Path, spec: FeatureSpec, store: FeatureStore, missing: list[int], workers: int
) -> Iterator[int]:
    """Yield chunks as workers finish them. A worker that dies is started again, and its chunks are computed again.

    Raises:
        RunError: no chunk is finished for an hour.
    """
    from deploy.launch.cluster import cluster

    with cluster(store.directory, num_cpus=workers):
        import ray

        gpus = cast(Any, ray).cluster_resources().get("GPU", 0) if spec.device != "cpu" else 0
        needs: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}
        actor: Any = ray.remote(ChunkMaker).options(**needs, max_restarts=RESTARTS, max_task_retries=RESTARTS)
        count = min(workers, len(missing), int(gpus) or workers)
        # Absolute paths: workers have working directories of their own.
        makers = [actor.remote(index_path.absolute(), spec, store) for _ in range(count)]
        # `pop` takes from the end, so that the chunks are made in order.
        waiting, running = list(reversed(missing)), {}
        for maker in makers * IN_FLIGHT:
            if waiting:
                running[maker.make.remote(waiting.pop())] = maker
        while running:
            ready, _ = ray.wait(list(running), timeout=STALL_S)
            if not ready:
                raise RunError(
                    f"no chunk of features was finished within {STALL_S:.0f} s. `ray status` shows whether the cluster "
                    "has room for the workers; the same command continues from the finished chunks."
                )
            maker = running.pop(ready[0])
            if waiting:
                running[maker.make.remote(waiting.pop())] = maker
            yield ray.get(ready[0], timeout=ANSWER_S)


def _run_encoder(run: Path, device: str) -> FeatureSpace:
    """Return the space of the class token of a run's newest encoder."""
    from trainer.evaluate.knn import embed_pools
    from trainer.record.export import load_method

    config, method = load_method(run)
    encoder = method.encoder.to(device)

    def features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return embed_pools(encoder, [images], pools=("cls",), mean=config.mean, std=config.std)["cls"]

    return features
