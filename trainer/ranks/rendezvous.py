"""Where the ranks of one machine meet: a store that listens at the loopback.

torch itself opens the store at every address of the machine, to anybody: rank 0 binds its socket and hands it over.
"""

import os
import socket
from datetime import timedelta
from typing import Any

import torch.distributed as dist

LOOPBACK = "127.0.0.1"
_TIMEOUT_S = 1800.0
_TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]  # torch does not list it among its exports
_opened: list[Any] = []


def open_store() -> int:
    """Open the store of a new group in this process, rank 0's; returns its port."""
    listener = socket.create_server((LOOPBACK, 0))
    port: int = listener.getsockname()[1]
    store = _TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        timeout=timedelta(seconds=_TIMEOUT_S),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    _opened[:] = [store]
    return port


def join_group(*, backend: str, port: int, number: int, world_size: int) -> None:
    """Become a rank of the group; returns when all have."""
    loopback = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    timeout = timedelta(seconds=_TIMEOUT_S)
    store = _opened.pop() if number == 0 else _TCPStore(LOOPBACK, port, is_master=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=number, world_size=world_size, timeout=timeout)
