"""Checks of one machine: memory, disk, ports, token, processors, GPU and its JPEG engine. Nothing is started."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from deploy.launch.cluster import TOKEN, token_file
from deploy.remote.doctor.findings import Finding

GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - its size is read, nothing is written
LEAST_SHARED, LEAST_DISK = GIB, 5 * GIB
PORTS = {6379: "a cluster's head", 8265: "the job server and dashboard", 52365: "the health probes"}
"""Fixed ports of a Ray head; runs on one machine take any free ones."""
LEAST_TOKEN = 32
"""Characters of a token that cannot be guessed."""
JPEG_ENGINES = {(8, 0), (8, 7), (9, 0), (10, 0), (10, 3)}
"""Compute capabilities of GPUs with NVJPG engines that nvJPEG uses: A100, A30, Orin, H100, H200, B200, B300."""


def memory(directory: Path) -> Iterator[Finding]:
    """Shared memory, disk and the run directory."""
    shared = shutil.disk_usage(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    free = shared.free if shared else 0
    fine = free >= LEAST_SHARED
    yield Finding(
        check="shared memory",
        level="ok" if fine else "warning",
        found=f"{free / GIB:.1f} of {shared.total / GIB:.1f} GiB free" if shared else "none",
        advice=""
        if fine
        else "batches travel through /dev/shm: give the container at least 1 GiB (docker run --shm-size=2g)",
    )
    existing = next(path for path in (directory.resolve(), *directory.resolve().parents) if path.exists())
    room = shutil.disk_usage(existing).free
    fine = room >= LEAST_DISK
    yield Finding(
        check="disk",
        level="ok" if fine else "warning",
        found=f"{room / GIB:.0f} GiB free",
        advice="" if fine else f"make room in {existing}: checkpoints of ViT-B take 1.4 GiB each",
    )
    writable = os.access(existing, os.W_OK)
    yield Finding(
        check="run directory",
        level="ok" if writable else "error",
        found=str(existing),
        advice="" if writable else "not writable: choose another --out",
    )


def processors(_: Path) -> Iterator[Finding]:
    """Cores that this process may use."""
    usable = len(os.sched_getaffinity(0))
    yield Finding(
        check="cpu",
        level="ok" if usable >= 2 else "warning",
        found=f"{usable} usable cores",
        advice="" if usable >= 2 else "the trainer and its loaders will share one core",
    )


def gpu(_: Path) -> Iterator[Finding]:
    """GPUs, and whether they have an engine for JPEGs."""
    import torch

    if not torch.cuda.is_available():
        advice = ""
        if Path("/dev/nvidiactl").exists():
            advice = f"there is a driver, but torch {torch.__version__} sees no GPU: is the driver older than its CUDA?"
        found = "none: training and decoding run on the CPU"
        yield Finding(check="gpu", level="warning" if advice else "ok", found=found, advice=advice)
        return
    numbers = range(torch.cuda.device_count())
    names = ", ".join(torch.cuda.get_device_name(number) for number in numbers)
    yield Finding(check="gpu", level="ok", found=names)
    with_engine = [number for number in numbers if torch.cuda.get_device_capability(number) in JPEG_ENGINES]
    if with_engine:
        yield Finding(check="jpeg engine", level="ok", found=f"on {len(with_engine)} of {len(numbers)} GPUs")
        return
    advice = "decoder 'dali' will use the GPU's cores; loaders on CPU nodes leave those to training"
    yield Finding(check="jpeg engine", level="ok", found="none on these GPUs", advice=advice)


def decoder(_: Path) -> Iterator[Finding]:
    """Whether the decoder of JPEG boxes was compiled at the installation."""
    from loader.decode import compiled

    found = "compiled" if not compiled.missing else compiled.missing
    advice = (
        ""
        if not compiled.missing
        else "loaders are about 0.6 times as fast: on x86-64, install a C compiler and Tempera anew"
    )
    yield Finding(check="jpeg decoder", level="warning" if advice else "ok", found=found, advice=advice)


def dali(_: Path) -> Iterator[Finding]:
    """The GPU decoder's library."""
    try:
        from nvidia import dali as library
    except ImportError as error:
        advice = "decoder 'dali' needs nvidia-dali-cuda130; 'cpu' works without it"
        yield Finding(check="dali", level="warning", found=str(error), advice=advice)
        return
    yield Finding(check="dali", level="ok", found=library.__version__)


def token(_: Path) -> Iterator[Finding]:
    """Ray's authentication, and that the token is a secret."""
    mode = os.environ.get("RAY_AUTH_MODE", "token (set by tempera)")
    fine = mode.startswith("token")
    advice = "" if fine else "unset RAY_AUTH_MODE or set it to token: an open Ray cluster runs anybody's code"
    yield Finding(check="ray authentication", level="ok" if fine else "error", found=mode, advice=advice)
    in_environment, path = os.environ.get(TOKEN, ""), token_file()
    if in_environment:
        fine, found = len(in_environment) >= LEAST_TOKEN, f"in {TOKEN}, {len(in_environment)} characters"
        advice = "" if fine else "too short to be safe: `ray get-auth-token --generate` makes one"
    elif path.is_file():
        open_to_others = stat.S_IMODE(path.stat().st_mode) & 0o077
        length = len(path.read_text("utf-8").strip()) if os.access(path, os.R_OK) else 0
        fine, found = not open_to_others and length >= LEAST_TOKEN, f"in {path}, {length} characters"
        advice = f"others can read it: chmod 600 {path}" if open_to_others else "too short, or not readable by you"
    else:
        fine, found = True, "none; a run on this machine makes its own, a cluster needs RAY_AUTH_TOKEN_PATH"
    yield Finding(check="token", level="ok" if fine else "warning", found=found, advice="" if fine else advice)


def ports(_: Path) -> Iterator[Finding]:
    """Whether a head could start here, or one is there already."""
    taken = [port for port in PORTS if _answers(port)]
    if not taken:
        yield Finding(check="ports", level="ok", found=f"{', '.join(map(str, PORTS))} are free for a head")
        return
    uses = ", ".join(f"{port} ({PORTS[port]})" for port in taken)
    advice = "a Ray head, or something else, runs here; runs on this machine alone take other ports by themselves"
    yield Finding(check="ports", level="ok", found=f"taken: {uses}", advice=advice)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
