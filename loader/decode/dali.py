"""The decoder contract on NVIDIA DALI: a whole request at a time, on a GPU ("mixed") or, with no device, on the CPU.

Boxes and flips come from outside, so only rounding differs from the CPU reference. One bad image fails DALI's whole
batch and names no sample: then the batch is decoded one by one, the culprits are reported, and the pipeline is
built anew.
"""

# DALI generates its operators at import: its stubs lag behind them.
# mypy: disable-error-code="attr-defined,no-untyped-call,union-attr,assignment,arg-type"

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from loader.batch import Encoded
from loader.config import Transform
from loader.decode.resize import Rgb, middle, output_size

log = logging.getLogger(__name__)

_KERNELS: Final = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}
_PIPELINES: Final = 2
"""Of a transform: while one decodes, the other is fed, or its pixels are copied to where they belong."""


class DaliDecoder:
    """Decodes with a few DALI pipelines per transform; calls take turns at them."""

    rows_a_task: Final = 64

    def __init__(self, *, num_threads: int, device_id: int | None, hw_decoder_load: float) -> None:
        self._num_threads, self._device_id, self._hw_decoder_load = num_threads, device_id, hw_decoder_load
        self._idle: defaultdict[Transform, list[Pipeline]] = defaultdict(list)
        self._turns = threading.Semaphore(_PIPELINES)

    def decode(self, images: Sequence[Encoded], transform: Transform, out: Sequence[Rgb]) -> list[str | None]:
        """Decode and transform images, as `CpuDecoder.decode` does."""
        with self._turns:
            return self._decode_together(images, transform, out)

    def _decode_together(self, images: Sequence[Encoded], transform: Transform, out: Sequence[Rgb]) -> list[str | None]:
        if not images:
            return []
        pipeline = self._taken(transform)
        try:
            pixels = self._run(pipeline, images, transform)
        except RuntimeError as error:  # the pipeline is of no use any more
            if "decoders" not in str(error):
                raise
            if len(images) == 1:
                return [f"image does not decode: {_reason(error)}"]
            log.info("DALI failed on a batch of %d; decoding one by one", len(images))
            return [self._decode_together([image], transform, out[i : i + 1])[0] for i, image in enumerate(images)]
        for row, image in zip(out, pixels, strict=True):
            np.copyto(row, image)
        self._idle[transform].append(pipeline)
        return [None] * len(images)

    def _taken(self, transform: Transform) -> Pipeline:
        """Return a pipeline that nobody else uses."""
        try:
            return self._idle[transform].pop()
        except IndexError:
            return build_pipeline(
                transform,
                num_threads=self._num_threads,
                device_id=self._device_id,
                hw_decoder_load=self._hw_decoder_load,
            )

    def _run(self, pipeline: Pipeline, images: Sequence[Encoded], transform: Transform) -> Rgb:
        """Return uint8[n, size, size, 3] on the host."""
        pipeline.feed_input("data", [np.frombuffer(image.data, np.uint8) for image in images])
        pipeline.feed_input("start", [image.box[:2].astype(np.int64) for image in images])
        pipeline.feed_input("shape", [image.box[2:].astype(np.int64) for image in images])
        sizes = [output_size(int(image.box[2]), int(image.box[3]), transform) for image in images]
        pipeline.feed_input("size", [np.array(size, np.float32) for size in sizes])
        if transform.kind == "center_crop":
            pipeline.feed_input("corner", [np.array(middle(size, transform), np.int32) for size in sizes])
        pipeline.feed_input("flip", [np.array(image.flip, np.int32) for image in images])
        (batch,) = pipeline.run()
        return np.asarray((batch.as_cpu() if self._device_id is not None else batch).as_array())


def build_pipeline(
    transform: Transform, *, num_threads: int, device_id: int | None, hw_decoder_load: float
) -> Pipeline:
    """Build: decode the box, resize with antialiasing, crop the middle if asked, flip."""
    pipeline = Pipeline(
        batch_size=DaliDecoder.rows_a_task,
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


def _reason(error: RuntimeError) -> str:
    """Return the line of DALI's report that says what happened; it follows the word "encountered"."""
    _, _, report = str(error).partition("encountered:")
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    return lines[0] if lines else "DALI gave no reason"
