"""How ranks find each other: rank 0 opens a store, and all join a process group through it.

torch itself opens the store at every address of the machine. Here rank 0 binds the socket and hands it over, so that
the store of a single machine listens at the loopback only. Torch is imported inside: Ray Train's controller names
these functions and does not run them.
"""

import os
import socket
from datetime import timedelta
from typing import Any

LOOPBACK = "127.0.0.1"
_TIMEOUT = timedelta(seconds=1800)
_opened: list[Any] = []


def open_store(host: str) -> int:
    """Open the store of a new group in rank 0's process, reachable at `host`, and return its port."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not list it among its exports

    if host == LOOPBACK:
        listener = socket.create_server((host, 0))
    elif socket.has_dualstack_ipv6():
        listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("", 0))
    port: int = listener.getsockname()[1]
    descriptor = listener.detach()
    # wait_for_workers=False: the other ranks learn the port only after this returns.
    store = TCPStore(host, port, is_master=True, timeout=_TIMEOUT, wait_for_workers=False, master_listen_fd=descriptor)
    _opened[:] = [store]
    return port


def join_group(*, backend: str, host: str, port: int, number: int, world_size: int) -> None:
    """Become rank `number`, from 0, of the group; returns when all ranks have joined, or raises after half an hour.

    `host` and `port` are those of rank 0's store; `backend` is "nccl" or "gloo".
    """
    import torch.distributed as dist

    # gloo binds to the address of the host's name unless it is told the interface.
    if host == LOOPBACK:
        loopback = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    connect: Any = dist.TCPStore  # type: ignore[attr-defined]
    store = _opened.pop() if number == 0 else connect(host, port, is_master=False, timeout=_TIMEOUT)
    dist.init_process_group(backend, store=store, rank=number, world_size=world_size, timeout=_TIMEOUT)


def leave_group() -> None:
    """Leave the process group, if this process is in one."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
