"""Shared memory between a trainer and the loaders on its node: loaders write pixels where the trainer reads them.

The trainer owns a ring of anonymous memory (memfd). Loaders map it through the owner's /proc entry, so it has no name
in the file system and leaves nothing behind: the kernel frees it when the last process that maps it is gone, kill -9 or
not. Loaders unmap a ring as soon as its owner has died or dropped it.

A slot belongs to one request. A loader writes into it until it answers or dies, so the slot of a request that was given
up waits until one of the two is certain: a late write must never land in another request's images.
"""

from __future__ import annotations

import mmap
import os
import secrets
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_PAGE: Final = 4096
_NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class RingAddress:
    """Where a loader on the same node finds a ring."""

    pid: int
    """Process that owns it."""
    fd: int
    """Its descriptor in that process."""
    nonce: bytes
    """Random bytes at its start: the proof that it is this ring and not a later user of the same numbers."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A part of a ring, for one request's images."""

    nonce: bytes
    """Names the ring."""
    offset: int
    """Where it starts, in bytes."""
    num_bytes: int
    """Its length."""


class Ring:
    """The owner's side: memory, and which parts of it are free. For one thread.

    Memory is taken page by page when it is first used, and given up with the last reference to the ring.

    Raises:
        OSError: The system refuses anonymous shared memory.
        AttributeError: It has none.
    """

    def __init__(self, num_bytes: int) -> None:
        size = _PAGE + -(-num_bytes // _PAGE) * _PAGE  # the nonce has the first page
        self._fd = -1  # `__del__` needs it even if the next line fails
        self._fd = os.memfd_create("tempera-ring", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, size)
        self._memory = mmap.mmap(self._fd, size)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        self._memory[:_NONCE_BYTES] = nonce
        self.address = RingAddress(os.getpid(), self._fd, nonce)
        self._free = [(_PAGE, size - _PAGE)]
        """(offset, size) of what no slot has, in bytes."""
        self._given_back: list[tuple[Slot, Callable[[], bool]]] = []

    def allocate(self, num_bytes: int) -> Slot | None:
        """Return a slot, or None when there is no room."""
        # Memory comes back here and nowhere else: until some is wanted, nobody misses it.
        parts, unsafe = self._free, []
        for slot, is_safe in self._given_back:
            if is_safe():
                parts.append((slot.offset, slot.num_bytes))
            else:
                unsafe.append((slot, is_safe))
        self._given_back = unsafe
        # Neighbours are joined, or the ring would fall into pieces too small for any request.
        self._free = []
        for offset, size in sorted(parts):
            if self._free and sum(self._free[-1]) == offset:
                self._free[-1] = (self._free[-1][0], self._free[-1][1] + size)
            else:
                self._free.append((offset, size))
        # First fit: requests of a stream are of a few sizes, so little is lost between them.
        wanted = -(-num_bytes // _PAGE) * _PAGE
        for number, (offset, size) in enumerate(self._free):
            if size >= wanted:
                rest = [(offset + wanted, size - wanted)] if size > wanted else []
                self._free[number : number + 1] = rest
                return Slot(self.address.nonce, offset, wanted)
        return None

    def free(self, slot: Slot, is_safe: Callable[[], bool] = lambda: True) -> None:
        """Give a slot back; it is used again once `is_safe` says that no loader can write to it any more."""
        self._given_back.append((slot, is_safe))

    def images(self, slot: Slot, num_images: int, size: int) -> NDArray[np.uint8]:
        """Return uint8[n, 3, size, size] in a slot, in channels-last memory, without copying."""
        return _images(self._memory, slot, num_images, size)

    def __del__(self) -> None:
        # Loaders watch the descriptor: while it is open they keep the memory mapped. Images that the trainer still
        # holds keep the mapping itself alive, so nothing is unmapped here.
        if self._fd >= 0:
            os.close(self._fd)


@dataclass(frozen=True, slots=True)
class _Mapping:
    """A mapped ring, and what shows that its owner has given it up."""

    memory: mmap.mmap
    path: str
    """The owner's descriptor, below /proc."""
    inode: int
    """Inode of the ring's memory."""
    process: int
    """Descriptor of the owner's process."""

    def is_owned(self) -> bool:
        """Return whether the owner lives and has the ring open."""
        # The descriptor of a process becomes readable when the process ends.
        if select.select([self.process], [], [], 0)[0]:
            return False
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False


class RingUser:
    """The loader's side: maps rings of living owners. Thread-safe."""

    def __init__(self) -> None:
        self._rings: dict[bytes, _Mapping] = {}
        self._lock = threading.Lock()

    def attach(self, address: RingAddress) -> bool:
        """Map a ring. Return False when it is out of reach: on another node, in another container, or gone."""
        self.drop_orphans()  # before memory of one more ring is mapped
        with self._lock:
            if address.nonce in self._rings:
                return True
            mapping = _map(address)
            if mapping is None:
                return False
            self._rings[address.nonce] = mapping
            return True

    def images(self, slot: Slot, num_images: int, size: int) -> NDArray[np.uint8] | None:
        """Return uint8[n, 3, size, size] in a slot, in channels-last memory; None when its ring is not mapped any more.

        Raises:
            ValueError: The slot lies outside its ring, or is too small.
        """
        with self._lock:
            mapping = self._rings.get(slot.nonce)
        return None if mapping is None else _images(mapping.memory, slot, num_images, size)

    def drop_orphans(self) -> None:
        """Unmap rings whose owners have died or dropped them.

        Memory that a request still writes to stays mapped until its array is gone.
        """
        with self._lock:
            for nonce, mapping in list(self._rings.items()):
                if not mapping.is_owned():
                    os.close(mapping.process)
                    del self._rings[nonce]


def _map(address: RingAddress) -> _Mapping | None:
    path = f"/proc/{address.pid}/fd/{address.fd}"
    try:
        # A descriptor of the process and not its number, which may soon be another process's.
        process = os.pidfd_open(address.pid)
    except OSError:
        return None
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            # A plain file of another process must never be mapped, let alone written to.
            if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:tempera-ring"):
                memory = mmap.mmap(fd, os.fstat(fd).st_size)
                if memory[:_NONCE_BYTES] == address.nonce:
                    return _Mapping(memory, path, os.fstat(fd).st_ino, process)
        finally:
            os.close(fd)
    except (OSError, ValueError):
        pass
    os.close(process)
    return None


def _images(memory: mmap.mmap, slot: Slot, num_images: int, size: int) -> NDArray[np.uint8]:
    """Return the images of a slot as a view of the memory: uint8[n, 3, size, size], channels-last.

    Raises:
        ValueError: The slot lies outside the ring, or is too small.
    """
    # Both sides check: a slot that comes from another process must not lead outside the mapped memory.
    needed = 3 * size * size * num_images
    if slot.offset < _PAGE or needed > slot.num_bytes or slot.offset + slot.num_bytes > len(memory):
        raise ValueError(f"{num_images} images of {size} pixels do not fit into slot {slot}")
    flat: NDArray[np.uint8] = np.frombuffer(memory, np.uint8, count=needed, offset=slot.offset)
    return flat.reshape(num_images, size, size, 3).transpose(0, 3, 1, 2)
