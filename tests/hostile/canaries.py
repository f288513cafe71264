"""Files that do something when they are loaded carelessly, given in every place where a file is read."""

from __future__ import annotations

import gzip
import io
import os
import pickle
from collections.abc import Callable, Iterator

import numpy as np

from tests.hostile.case import SUBSTITUTED, Case

COMMAND = 'touch "$TEMPERA_CANARY"'
"""What a careless reader would run; the environment says which file."""


class Evil:
    """Runs the command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (COMMAND,)


def _torch(*, legacy: bool) -> bytes:
    import torch

    sink = io.BytesIO()
    weights = {} if legacy else {"weight": torch.zeros(2)}  # the old form names tensors by their place in memory
    torch.save({**weights, "evil": Evil()}, sink, _use_new_zipfile_serialization=not legacy)
    return sink.getvalue()


def _numpy(save: Callable[..., None]) -> bytes:
    sink = io.BytesIO()
    save(sink, np.array([Evil()], dtype=object))
    return sink.getvalue()


FORMATS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "pickle": (".pkl", lambda: pickle.dumps(Evil())),
    "pickle in text": (".pkl", lambda: pickle.dumps(Evil(), protocol=0)),
    "pickle, compressed": (".gz", lambda: gzip.compress(pickle.dumps(Evil()), mtime=0)),
    "torch": (".pth", lambda: _torch(legacy=False)),
    "torch, legacy": (".pth", lambda: _torch(legacy=True)),
    "npy": (".npy", lambda: _numpy(np.save)),
    "npz": (".npz", lambda: _numpy(np.savez)),
    "YAML": (".yaml", f"!!python/object/apply:os.system ['{COMMAND}']\n".encode),
    "YAML, new": (".yaml", f"!!python/object/new:os.system ['{COMMAND}']\n".encode),
    "Python": (".py", f"__import__('os').system('{COMMAND}')\n".encode),
    "shell": (".sh", f"#!/bin/sh\n{COMMAND}\n".encode),
}

PLACES = {
    "index": "MissingIndexError",
    "prototypes": "ValueError",
    "checkpoint tensors": "CheckpointError",
    "checkpoint state": "CheckpointError",
    "official weights": "ValueError",
    "encoder weights": "ValueError",
    "evaluation weights": "ValueError",
    "config": "ValueError",
    "classes": "ValueError",
    "shard": "BadShardError",
    "sample": SUBSTITUTED,
    "log": "CorruptLog",
    "snapshot": "BadSnapshot",
    "feature chunk": "accepted",
    "cluster": "ValueError",
}
"""Where files are read, and the verdict there. A chunk that is no chunk is one that is missing."""


def cases() -> Iterator[Case]:
    for place, verdict in PLACES.items():
        for form, (suffix, make) in FORMATS.items():
            yield Case(name=f"canary/{form} as {place}", place=place, verdict=verdict, make=make, suffix=suffix)
