"""The decoder contract on NVIDIA DALI: many images per call, on a GPU ("mixed") or, without a device, on the CPU.

Boxes and flips come from outside, so the pixels differ from the CPU reference only by rounding. One bad image fails
DALI's whole batch, and the error names no sample: the images are then decoded one by one, the bad ones are reported,
and the pipeline is built anew.
"""

# DALI generates its operators at import: its stubs lag behind them.
# mypy: disable-error-code="attr-defined,no-untyped-call,union-attr,assignment,arg-type"

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from loader.config import Transform
from loader.decode.decoder import EncodedImage
from loader.decode.resize import Rgb, resize_window

log = logging.getLogger(__name__)

_KERNELS: Final = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}
_NUM_PIPELINES: Final = 2
"""Pipelines per transform: while one decodes, the other is fed or its pixels are copied out."""


class DaliDecoder:
    """Decodes with up to two DALI pipelines per transform, shared by the calling threads."""

    rows_per_call: Final = 64

    def __init__(self, *, num_threads: int, device_id: int | None, hw_decoder_load: float) -> None:
        self._device_id = device_id
        self._build = partial(
            build_pipeline, num_threads=num_threads, device_id=device_id, hw_decoder_load=hw_decoder_load
        )
        self._idle: defaultdict[Transform, list[Pipeline]] = defaultdict(list)
        self._slots = threading.Semaphore(_NUM_PIPELINES)

    def decode(self, images: Sequence[EncodedImage], transform: Transform, out: Sequence[Rgb]) -> list[str | None]:
        """Decode and transform images; see `Decoder.decode`."""
        with self._slots:
            return self._decode_together(images, transform, out)

    def _decode_together(
        self, images: Sequence[EncodedImage], transform: Transform, out: Sequence[Rgb]
    ) -> list[str | None]:
        if not images:
            return []
        try:
            pipeline = self._idle[transform].pop()  # DALI pipelines serve one thread at a time
        except IndexError:
            pipeline = self._build(transform)
        try:
            pixels = self._run(pipeline, images, transform)
        except RuntimeError as error:  # the pipeline cannot be used again: it is dropped
            if "decoders" not in str(error):
                raise
            if len(images) == 1:
                # The reason is the first line of DALI's report behind the word "encountered".
                lines = [line.strip() for line in str(error).partition("encountered:")[2].splitlines() if line.strip()]
                return [f"image does not decode: {lines[0] if lines else 'DALI gave no reason'}"]
            log.info("DALI failed on a batch of %d; decoding one by one", len(images))
            return [self._decode_together([image], transform, out[i : i + 1])[0] for i, image in enumerate(images)]
        for row, image in zip(out, pixels, strict=True):
            np.copyto(row, image)
        self._idle[transform].append(pipeline)
        return [None] * len(images)

    def _run(self, pipeline: Pipeline, images: Sequence[EncodedImage], transform: Transform) -> Rgb:
        """Return uint8[n, size, size, 3] on the host."""
        # The random parts are inputs: DALI's own generator would make pixels depend on the batch an image is in.
        windows = [resize_window(int(image.box[2]), int(image.box[3]), transform) for image in images]
        pipeline.feed_input("data", [np.frombuffer(image.data, np.uint8) for image in images])
        pipeline.feed_input("start", [image.box[:2].astype(np.int64) for image in images])
        pipeline.feed_input("shape", [image.box[2:].astype(np.int64) for image in images])
        pipeline.feed_input("size", [np.array((window.height, window.width), np.float32) for window in windows])
        if transform.kind == "center_crop":
            pipeline.feed_input("corner", [np.array((window.top, window.left), np.int32) for window in windows])
        pipeline.feed_input("flip", [np.array(image.flip, np.int32) for image in images])
        (batch,) = pipeline.run()
        return np.asarray((batch.as_cpu() if self._device_id is not None else batch).as_array())


def build_pipeline(
    transform: Transform, *, num_threads: int, device_id: int | None, hw_decoder_load: float
) -> Pipeline:
    """Build a pipeline: decode the box, resize with antialiasing, cut the middle of center crops, flip."""
    pipeline = Pipeline(
        batch_size=DaliDecoder.rows_per_call,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    with pipeline:
        data, start, shape, size, flip = (
            fn.external_source(name=name, ndim=ndim, dtype=dtype)
            for name, ndim, dtype in (
                ("data", 1, types.UINT8),
                ("start", 1, types.INT64),
                ("shape", 1, types.INT64),
                ("size", 1, types.FLOAT),
                ("flip", 0, types.INT32),
            )
        )
        # EXIF orientation is ignored and chroma interpolated, both as by the CPU decoder.
        images = fn.decoders.image_slice(
            data,
            start,
            shape,
            device="cpu" if device_id is None else "mixed",
            axis_names="HW",
            normalized_anchor=False,
            normalized_shape=False,
            output_type=types.RGB,
            adjust_orientation=False,
            hw_decoder_load=hw_decoder_load,
            jpeg_fancy_upsampling=True,
        )
        images = fn.resize(images, size=size, interp_type=_KERNELS[transform.interpolation], antialias=True)
        if transform.kind == "center_crop":
            corner = fn.external_source(name="corner", ndim=1, dtype=types.INT32)
            square = np.array([transform.size, transform.size], np.int32)
            images = fn.slice(images, corner, square, axis_names="HW", normalized_anchor=False, normalized_shape=False)
        pipeline.set_outputs(fn.flip(images, horizontal=flip))
    pipeline.build()
    return pipeline
