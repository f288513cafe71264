from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.batches.ring import Ring, RingAddress, RingUser, Slot

SIZE = 16
IMAGE_BYTES = 3 * SIZE * SIZE


def free_bytes(ring: Ring) -> int:
    """Bytes in no slot, once those that were given up and are safe by now have come back."""
    assert ring.allocate(1 << 40) is None
    return sum(size for _, size in ring._free)


def test_what_a_loader_writes_the_owner_reads():
    ring, user = Ring(1 << 20), RingUser()
    assert user.attach(ring.address)
    slot = ring.allocate(5 * IMAGE_BYTES)
    written = np.random.default_rng(0).integers(0, 255, (5, 3, SIZE, SIZE), np.uint8)
    user.images(slot, 5, SIZE)[...] = written
    assert (ring.images(slot, 5, SIZE) == written).all()
    assert ring.images(slot, 5, SIZE).transpose(0, 2, 3, 1).flags.c_contiguous


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30_000)), max_size=60))
def test_slots_never_overlap_and_all_memory_comes_back(actions):
    ring, held = Ring(100_000), []
    capacity = free_bytes(ring)
    for takes, number in actions:
        if takes:
            slot = ring.allocate(number)
            held += [slot] if slot is not None else []
        elif held:
            ring.free(held.pop(number % len(held)))
        ends = sorted((slot.offset, slot.offset + slot.num_bytes) for slot in held)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
        assert free_bytes(ring) == capacity - sum(slot.num_bytes for slot in held)
    for slot in held:
        ring.free(slot)
    assert free_bytes(ring) == capacity
    assert ring.allocate(capacity) is not None


def test_a_full_ring_has_no_slot():
    ring = Ring(10_000)
    assert ring.allocate(10**6) is None


@pytest.mark.parametrize("slot", [(0, 4096), (4096, 100), (1 << 20, 4096)])
def test_slots_outside_the_ring_are_refused(slot):
    ring, user = Ring(1 << 16), RingUser()
    user.attach(ring.address)
    with pytest.raises(ValueError, match="do not fit into slot"):
        user.images(Slot(ring.address.nonce, *slot), 1, SIZE)


def test_only_the_ring_itself_is_attached(tmp_path):
    ring, user = Ring(1 << 16), RingUser()
    address = ring.address
    assert not user.attach(RingAddress(address.pid, address.fd, b"x" * 16))
    assert not user.attach(RingAddress(2**22 - 1, address.fd, address.nonce))
    with (tmp_path / "file").open("w+b") as file:
        file.write(address.nonce + bytes(5000))
        file.flush()
        assert not user.attach(RingAddress(address.pid, file.fileno(), address.nonce))
    assert len(user._rings) == 0


def test_a_loader_lets_go_of_a_ring_that_its_owner_has_dropped():
    ring, user = Ring(1 << 16), RingUser()
    assert user.attach(ring.address)
    user.drop_orphans()
    assert len(user._rings) == 1
    slot = ring.allocate(IMAGE_BYTES)
    del ring
    user.drop_orphans()
    assert len(user._rings) == 0
    assert user.images(slot, 1, SIZE) is None
    assert ring_mappings() == 0


OWNER = """
import sys, time
from loader.batches.ring import Ring
ring = Ring(1 << 22)
ring.images(ring.allocate(1 << 20), 1, 500)[...] = 7
print(ring.address.pid, ring.address.fd, ring.address.nonce.hex(), flush=True)
time.sleep(60)
"""


def ring_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:tempera-ring")


def test_nothing_is_left_of_a_ring_whose_owner_was_killed():
    before = ring_mappings()
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    pid, fd, nonce = owner.stdout.readline().split()
    address = RingAddress(int(pid), int(fd), bytes.fromhex(nonce))
    user = RingUser()
    assert user.attach(address)
    assert (user.images(Slot(address.nonce, 4096, 1 << 20), 1, 500) == 7).all()
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait(10)
    owner.stdout.close()
    user.drop_orphans()
    assert len(user._rings) == 0
    assert ring_mappings() == before
    # Other processes of the machine come and go in /dev/shm; none of the names is a ring's.
    assert not [name for name in os.listdir("/dev/shm") if "tempera-ring" in name]


def test_a_slot_given_up_is_free_only_when_it_is_safe():
    ring, safe = Ring(1 << 16), []
    capacity = free_bytes(ring)
    ring.free(ring.allocate(capacity), lambda: bool(safe))
    assert free_bytes(ring) == 0
    assert ring.allocate(1) is None
    safe.append(True)
    assert free_bytes(ring) == capacity
