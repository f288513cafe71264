from __future__ import annotations

import numpy as np

from loader.decode.buffers import ImageBuffers


def test_memory_comes_back_when_the_last_view_is_gone():
    buffers = ImageBuffers()
    images = buffers.take(4, 8)
    address = images.ctypes.data
    view, batch = images[1:2], images[2:]
    del images
    other = buffers.take(4, 8)
    assert other.ctypes.data != address
    del view
    again = buffers.take(4, 8)
    assert again.ctypes.data != address
    del batch
    assert buffers.take(4, 8).ctypes.data == address


def test_images_have_channels_last_memory():
    images = ImageBuffers().take(3, 5)
    assert images.shape == (3, 3, 5, 5)
    assert images.transpose(0, 2, 3, 1).flags.c_contiguous


def test_memory_is_not_kept_for_much_smaller_or_larger_requests():
    buffers = ImageBuffers()
    images = buffers.take(8, 32)
    address = images.ctypes.data
    del images
    small, large = buffers.take(1, 32), buffers.take(16, 32)
    assert address not in (small.ctypes.data, large.ctypes.data)
    assert buffers.take(7, 32).ctypes.data == address


def test_no_two_holders_share_memory():
    buffers, rng, held = ImageBuffers(), np.random.default_rng(0), []
    for number in range(200):
        if held and rng.random() < 0.5:
            value, images = held.pop(int(rng.integers(len(held))))
            assert (images == value).all()
        images = buffers.take(int(rng.integers(1, 4)), 4)
        images[...] = number
        held.append((number, images))
    assert all((images == value).all() for value, images in held)
