"""FeatureStore: features on disk in chunks of samples, so that the computation can stop, continue and be spread.

A chunk is one safetensors file, written aside and renamed: it is whole or absent, whichever process wrote it.
`store.json` names the data set and the feature space; a folder with other features is refused. A complete store reads
as a matrix: slices and rows come from its files, so it may be larger than the memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

MAPPED_CHUNKS = 8
"""Chunks kept in memory while rows are picked."""


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it replaces `path` when the block succeeds, so that no reader sees half a file."""
    # Two processes of a machine may write the same chunk: each has its own file, and the later replaces an equal one.
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


class FeatureStore:
    """The features of the samples [0, num_samples) of one data set in one space."""

    def __init__(self, directory: Path, *, identity: dict[str, Any], num_samples: int, chunk_samples: int) -> None:
        """Open a folder, or create it.

        Args:
            directory: the folder.
            identity: what decides the features, as JSON values: data set, space, weights, crop.
            num_samples: N.
            chunk_samples: rows of a chunk.

        Raises:
            ValueError: the folder holds other features.
        """
        self.directory, self.num_samples, self.chunk_samples = directory, num_samples, chunk_samples
        self.num_chunks = -(-num_samples // chunk_samples)
        wanted = {"num_samples": num_samples, "chunk_samples": chunk_samples, **identity}
        described = directory / "store.json"
        if described.exists():
            found = json.loads(described.read_text())
            other = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
            if other:
                raise ValueError(
                    f"{directory} must hold features of the same {other[0]} ({wanted.get(other[0])}); it holds "
                    f"{found.get(other[0])}. Remove it, or name another folder."
                )
        else:
            directory.mkdir(parents=True, exist_ok=True)
            with written_aside(described) as aside:
                aside.write_text(json.dumps(wanted, indent=1))
        self._open = lru_cache(maxsize=MAPPED_CHUNKS)(self._read)

    # A cache cannot be pickled, and Ray pickles the store to send it to its workers.
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(maxsize=MAPPED_CHUNKS)(self._read)

    def ids(self, chunk: int) -> Int64:
        """Return the sample ids of a chunk."""
        first = chunk * self.chunk_samples
        return np.arange(first, min(first + self.chunk_samples, self.num_samples))

    def missing(self) -> list[int]:
        """Return the chunks that are absent, torn, or of another length."""
        missing = []
        for chunk in range(self.num_chunks):
            try:
                # Only the header is read; opening checks that the file has the length that it claims.
                with safe_open(self._path(chunk), "numpy") as file:
                    length = int(file.get_slice("features").get_shape()[0])
            except (FileNotFoundError, SafetensorError):
                length = -1
            if length != len(self.ids(chunk)):
                missing.append(chunk)
        return missing

    def write(self, chunk: int, features: Float32, bad: Sequence[str] = ()) -> None:
        """Store a chunk, and one line for each of its samples that could not be decoded.

        Raises:
            ValueError: there is not one finite row for each sample.
        """
        if features.ndim != 2 or len(features) != len(self.ids(chunk)) or not np.isfinite(features).all():
            raise ValueError(
                f"a chunk must have one finite row for each of its {len(self.ids(chunk))} samples; got "
                f"{features.shape}, finite: {bool(np.isfinite(features).all())}."
            )
        with written_aside(self._path(chunk)) as aside:
            save_file({"features": np.ascontiguousarray(features, np.float32)}, aside, {"bad": json.dumps(list(bad))})

    def bad(self) -> list[str]:
        """Return one line for each sample that could not be decoded, in the order of the samples.

        Raises:
            FileNotFoundError: if a chunk is absent.
            SafetensorError: if one is torn; see `missing`.
        """
        lines: list[str] = []
        for chunk in range(self.num_chunks):
            with safe_open(self._path(chunk), "numpy") as file:
                lines += json.loads(file.metadata()["bad"])
        return lines

    @property
    def shape(self) -> tuple[int, int]:
        """(N, F); the first chunk must be there."""
        return self.num_samples, self._open(0).shape[1]

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, rows: slice | Int64) -> Float32:
        """Return a copy of the rows of a slice or of ascending ids."""
        ids = np.arange(self.num_samples)[rows] if isinstance(rows, slice) else rows
        result = np.empty((len(ids), self.shape[1]), np.float32)
        home = ids // self.chunk_samples
        for chunk in np.unique(home):
            here = home == chunk
            result[here] = self._open(int(chunk))[ids[here] - chunk * self.chunk_samples]
        return result

    def _path(self, chunk: int) -> Path:
        return self.directory / f"features-{chunk:06d}.safetensors"

    def _read(self, chunk: int) -> Float32:
        with safe_open(self._path(chunk), "numpy") as file:
            features: Float32 = file.get_tensor("features")
        return features
