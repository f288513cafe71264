"""FeatureStore: features on disk, in chunks of samples, so that computing them can stop and go on, and be spread.

A chunk is a safetensors file, written aside and renamed: it is there whole or not at all, whoever wrote it.
`store.json` says what the features are of; a folder with features of something else is refused. Read, the store is a
matrix: slices and rows come from its files, so it may be larger than the memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
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
"""Chunks kept at hand while rows are picked."""


class FeatureStore:
    """The features of the samples [0, num_samples) of one data set in one space."""

    def __init__(self, directory: Path, *, identity: dict[str, Any], num_samples: int, chunk_samples: int) -> None:
        """Open a folder, or begin it.

        Args:
            directory: the folder.
            identity: what the features are of, as JSON values: data set, space, weights, crop.
            num_samples: N.
            chunk_samples: rows of a chunk.

        Raises:
            ValueError: if the folder holds features of something else.
        """
        self.directory, self.num_samples, self.chunk_samples = directory, num_samples, chunk_samples
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
            _write_aside(described, json.dumps(wanted, indent=1).encode())
        self._open = lru_cache(maxsize=MAPPED_CHUNKS)(self._read)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(maxsize=MAPPED_CHUNKS)(self._read)

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole."""
        return -(-self.num_samples // self.chunk_samples)

    def ids(self, chunk: int) -> Int64:
        """Sample ids of a chunk."""
        first = chunk * self.chunk_samples
        return np.arange(first, min(first + self.chunk_samples, self.num_samples))

    def missing(self) -> list[int]:
        """Chunks that are not there, or not whole."""
        return [chunk for chunk in range(self.num_chunks) if not self._is_whole(chunk)]

    def write(self, chunk: int, features: Float32, bad: Sequence[str] = ()) -> None:
        """Store a chunk, and one line for each of its samples that could not be decoded.

        Raises:
            ValueError: if there is not one finite row for each sample.
        """
        if features.ndim != 2 or len(features) != len(self.ids(chunk)) or not np.isfinite(features).all():
            raise ValueError(
                f"a chunk must have one finite row for each of its {len(self.ids(chunk))} samples; got "
                f"{features.shape}, finite: {bool(np.isfinite(features).all())}."
            )
        path = self._path(chunk)
        aside = path.with_name(f"{path.name}.{os.getpid()}.part")
        save_file({"features": np.ascontiguousarray(features, np.float32)}, aside, {"bad": json.dumps(list(bad))})
        os.replace(aside, path)

    def bad(self) -> list[str]:
        """One line for each sample that could not be decoded."""
        lines: list[str] = []
        for chunk in range(self.num_chunks):
            with safe_open(self._path(chunk), "numpy") as file:
                lines += json.loads(file.metadata()["bad"])
        return lines

    @property
    def shape(self) -> tuple[int, int]:
        """(N, F); there must be a first chunk."""
        return self.num_samples, self._open(0).shape[1]

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, rows: slice | Int64) -> Float32:
        """Rows by slice or by ascending ids; a copy."""
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

    def _is_whole(self, chunk: int) -> bool:
        try:
            with safe_open(self._path(chunk), "numpy") as file:
                return int(file.get_slice("features").get_shape()[0]) == len(self.ids(chunk))
        except (FileNotFoundError, SafetensorError):
            return False


def _write_aside(path: Path, data: bytes) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    aside.write_bytes(data)
    os.replace(aside, path)
