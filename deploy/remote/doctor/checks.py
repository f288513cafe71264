"""Checks of one machine: each finding says what was found and, where something is wrong, what to do about it.

A check is a function of the run directory that yields findings; `CHECKS` lists them in the order in which they are
shown. `examine` runs them, and then reads the images of an index if one is named. No check starts or changes anything.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from deploy.launch.cluster import TOKEN, token_file

Level = Literal["ok", "warning", "error"]

LOWEST_VERSIONS = {
    "torch": (2, 11),
    "timm": (1, 0, 20),
    "ray": (2, 58),
    "webdataset": (1, 0, 2),
    "numpy": (2, 0),
    "pyarrow": (18,),
}
"""Ray before 2.58 has known remote execution holes."""
FAISS_WHEELS = ("faiss-cpu", "faiss-gpu-cu12", "faiss-gpu")
GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - its size is read, nothing is written
LEAST_SHARED, LEAST_DISK = GIB, 5 * GIB
PORTS = {6379: "a cluster's head", 8265: "the job server and dashboard", 52365: "the health probes"}
"""Fixed ports of a Ray head; runs on one machine take any free ones."""
LEAST_TOKEN = 32
"""Characters of a token that cannot be guessed."""
JPEG_ENGINES = {(8, 0), (8, 7), (9, 0), (10, 0), (10, 3)}
"""Compute capabilities of GPUs with NVJPG engines that nvJPEG uses: A100, A30, Orin, H100, H200, B200, B300."""
MOST_SHARDS = 64
"""Shards of which one sample is read, evenly taken where there are more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the doctor's answer."""

    check: str
    level: Level
    """ok, warning (works, but), error (will not work)."""
    found: str
    advice: str = ""
    """What to do; empty when all is well."""
    node: str = ""
    """Address and role of the cluster's node; empty for this machine."""


def examine(*, directory: Path, index: Path | None, allow_hosts: tuple[str, ...] = ()) -> list[Finding]:
    """Run every check of a run directory, and of an index if there is one.

    `allow_hosts` are hosts of its shards that may have private addresses.
    """
    findings = [finding for check in CHECKS for finding in check(directory)]
    return findings + (list(check_images(index, allow_hosts=allow_hosts)) if index else [])


def judge(check: str, fine: bool, found: str, advice: str, *, otherwise: Level = "error") -> Finding:
    """Return a finding that is ok, or else of another level and with advice."""
    return Finding(check=check, level="ok" if fine else otherwise, found=found, advice="" if fine else advice)


def check_versions(_: Path) -> Iterator[Finding]:
    """Check Python, the packages that must have a lowest version, and that exactly one of faiss's wheels is there."""
    versions: dict[str, str] = {}
    for name in (*LOWEST_VERSIONS, *FAISS_WHEELS):
        # Metadata instead of an import: torch takes seconds, and a broken package would end the doctor.
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    fine = sys.version_info >= (3, 11)
    yield judge("python", fine, platform.python_version(), "install Python 3.11 or later")
    for name, lowest in LOWEST_VERSIONS.items():
        wanted, found = ".".join(map(str, lowest)), versions.get(name)
        if found is None:
            yield judge(name, False, "not installed", f"pip install '{name}>={wanted}'")
            continue
        # Without the build's suffix, as in 2.11.0+cu130.
        numbers = tuple(int(part) for part in found.partition("+")[0].split(".") if part.isdigit())
        yield judge(name, numbers >= lowest, found, f"needs {wanted} or later")
    installed = [name for name in FAISS_WHEELS if name in versions]
    several = "every faiss wheel installs the same module: uninstall all, then install one"
    advice = several if installed else "pip install 'tempera-mim[cpu]' (or [gpu])"
    yield judge("faiss", len(installed) == 1, " and ".join(installed) or "not installed", advice)


def check_resources(directory: Path) -> Iterator[Finding]:
    """Check cores, shared memory, disk and the run directory."""
    # The cores that this process may use: a batch system may grant fewer than the machine has.
    usable = len(os.sched_getaffinity(0))
    advice = "the trainer and its loaders will share one core"
    yield judge("cpu", usable >= 2, f"{usable} usable cores", advice, otherwise="warning")
    shared = shutil.disk_usage(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    found = f"{shared.free / GIB:.1f} of {shared.total / GIB:.1f} GiB free" if shared else "none"
    advice = "batches travel through /dev/shm: give the container at least 1 GiB (docker run --shm-size=2g)"
    fine = shared is not None and shared.free >= LEAST_SHARED
    yield judge("shared memory", fine, found, advice, otherwise="warning")
    # The run directory need not exist yet: look at the nearest folder above it that does.
    existing = next(path for path in (directory.resolve(), *directory.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    advice = f"make room in {existing}: checkpoints of ViT-B take 1.4 GiB each"
    yield judge("disk", free >= LEAST_DISK, f"{free / GIB:.0f} GiB free", advice, otherwise="warning")
    writable = os.access(existing, os.W_OK)
    yield judge("run directory", writable, str(existing), "not writable: choose another --out")


def check_gpus(_: Path) -> Iterator[Finding]:
    """Check the GPUs, and whether they have an engine for JPEGs."""
    import torch

    # A machine without a driver is a CPU machine, and fine; a driver whose GPUs torch does not see is a mistake.
    if not torch.cuda.is_available():
        advice = f"there is a driver, but torch {torch.__version__} sees no GPU: is the driver older than its CUDA?"
        found = "none: training and decoding run on the CPU"
        yield judge("gpu", not Path("/dev/nvidiactl").exists(), found, advice, otherwise="warning")
        return
    numbers = range(torch.cuda.device_count())
    names = ", ".join(torch.cuda.get_device_name(number) for number in numbers)
    yield Finding(check="gpu", level="ok", found=names)
    with_engine = [number for number in numbers if torch.cuda.get_device_capability(number) in JPEG_ENGINES]
    advice = "decoder 'dali' will use the GPU's cores; loaders on CPU nodes leave those to training"
    found = f"on {len(with_engine)} of {len(numbers)} GPUs" if with_engine else "none on these GPUs"
    yield Finding(check="jpeg engine", level="ok", found=found, advice="" if with_engine else advice)


def check_decoders(_: Path) -> Iterator[Finding]:
    """Check that the decoder of JPEG boxes was compiled at installation, and that the GPU's decoder is installed."""
    from loader.decode import compiled

    advice = "loaders are about 0.6 times as fast: on x86-64, install a C compiler, then install Tempera again"
    found = compiled.missing or "compiled"
    yield judge("jpeg decoder", not compiled.missing, found, advice, otherwise="warning")
    try:
        from nvidia import dali
    except ImportError as error:
        advice = "decoder 'dali' needs nvidia-dali-cuda130; 'cpu' works without it"
        yield Finding(check="dali", level="warning", found=str(error), advice=advice)
    else:
        yield Finding(check="dali", level="ok", found=dali.__version__)


def check_token(_: Path) -> Iterator[Finding]:
    """Check Ray's authentication, and that the token is a secret; the token itself is never shown."""
    mode = os.environ.get("RAY_AUTH_MODE", "token (set by tempera)")
    advice = "unset RAY_AUTH_MODE or set it to token: an open Ray cluster runs anybody's code"
    yield judge("ray authentication", mode.startswith("token"), mode, advice)
    # In the order in which Ray looks: the variable, then the file.
    in_environment, path = os.environ.get(TOKEN, ""), token_file()
    if in_environment:
        fine, found = len(in_environment) >= LEAST_TOKEN, f"in {TOKEN}, {len(in_environment)} characters"
        advice = "too short to be safe: `ray get-auth-token --generate` makes one"
    elif path.is_file():
        open_to_others = stat.S_IMODE(path.stat().st_mode) & 0o077
        length = len(path.read_text("utf-8").strip()) if os.access(path, os.R_OK) else 0
        fine, found = not open_to_others and length >= LEAST_TOKEN, f"in {path}, {length} characters"
        advice = f"others can read it: chmod 600 {path}" if open_to_others else "too short, or not readable by you"
    else:
        fine, found = True, "none; a run on this machine makes its own, a cluster needs RAY_AUTH_TOKEN_PATH"
    yield judge("token", fine, found, advice, otherwise="warning")


def check_ports(_: Path) -> Iterator[Finding]:
    """Check whether a head could start here, or one is running; neither is an error."""
    taken = []
    for port, use in PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                taken.append(f"{port} ({use})")
    advice = "a Ray head, or something else, runs here; runs on this machine alone take other ports by themselves"
    found = f"taken: {', '.join(taken)}" if taken else f"{', '.join(map(str, PORTS))} are free for a head"
    yield Finding(check="ports", level="ok", found=found, advice=advice if taken else "")


def check_images(path: Path, *, allow_hosts: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Check an index against its shards; read, check and decode one sample of each, through the code of a run."""
    from loader import BatchSpec, LoaderConfig, LoaderError, LoaderWorker, ShardIndex, Transform

    try:
        index = ShardIndex.load(path)
        index.verify(allow_hosts=allow_hosts)
    except (LoaderError, ValueError, OSError) as error:
        yield Finding(check="index", level="error", found=str(path), advice=str(error))
        return
    found = f"{len(index):,} samples in {len(index.shard_urls)} shards, fingerprint {index.fingerprint[:12]}"
    yield Finding(check="index", level="ok", found=found)
    # One sample of each shard is enough to tell whether it can be reached and read.
    _, first = np.unique(index.shard, return_index=True)
    ids = first[np.linspace(0, len(first) - 1, min(len(first), MOST_SHARDS)).round().astype(np.int64)].astype(np.int64)
    spec = BatchSpec(sample_ids=ids, draws=ids, seed=0, transform=Transform(size=32))
    try:
        with LoaderWorker(path, LoaderConfig(allow_hosts=allow_hosts)) as worker:
            bad = worker.load(spec).bad
    except (LoaderError, OSError) as error:
        advice = "check that this machine reaches the storage, and its credentials"
        yield Finding(check="shards", level="error", found=str(error), advice=advice)
        return
    found = f"a sample of each of {len(ids)} shards was read and decoded"
    if bad:
        found = f"{len(bad)} of {len(ids)} samples read are bad; {bad[0].key}: {bad[0].reason}"
    advice = "`tempera shards verify --full` lists every sample that cannot be read"
    yield judge("shards", not bad, found, advice, otherwise="error" if len(bad) == len(ids) else "warning")


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (
    check_versions,
    check_resources,
    check_gpus,
    check_decoders,
    check_token,
    check_ports,
)
