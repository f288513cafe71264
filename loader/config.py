"""Configuration of loaders and streams: frozen values, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TransformKind = Literal["random_resized_crop", "center_crop"]
Interpolation = Literal["bicubic", "bilinear"]
DecoderName = Literal["cpu", "dali"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transform:
    """How an image becomes a square of pixels. The defaults are the MAE pre-training recipe."""

    kind: TransformKind = "random_resized_crop"
    """`random_resized_crop` as torchvision defines it, or `center_crop`: resize the short side, crop the middle."""
    size: int = 224
    """Side of the output, in pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's area as a share of the image's, in (0, 1]. Random crops only."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width over its height. Random crops only."""
    retry: bool = True
    """Try up to ten boxes, then a central one, as torchvision does; False takes the first, cut to fit the image, as the
    linear probes of MAE and BYOL do. Random crops only."""
    interpolation: Interpolation = "bicubic"
    """Resampling kernel, always with antialiasing."""
    flip: bool = True
    """Mirror left to right with probability 1/2. Random crops only."""
    short_side: int = 256
    """Length of the resized short side, in pixels. Center crops only; at least `size`."""

    def __post_init__(self) -> None:
        _require(self.kind in ("random_resized_crop", "center_crop"), f"unknown transform kind {self.kind!r}")
        _require(
            self.interpolation in ("bicubic", "bilinear"),
            f"interpolation must be bicubic or bilinear; got {self.interpolation!r}",
        )
        _require(1 <= self.size <= 4096, f"size must be in 1..4096 pixels; got {self.size}")
        low, high = self.scale
        _require(0 < low <= high <= 1, f"scale must be 0 < low <= high <= 1; got {self.scale}")
        narrow, wide = self.ratio
        _require(0 < narrow <= wide, f"ratio must be 0 < low <= high; got {self.ratio}")
        _require(
            self.kind != "center_crop" or self.short_side >= self.size,
            f"short_side must be at least size ({self.size}); got {self.short_side}",
        )


def evaluation_transform(size: int) -> Transform:
    """Return the deterministic crop of features and evaluation: short side 256/224 of the size, the middle cut out.

    Below 64 pixels the short side is the size itself: cutting would lose too much of such small images.
    """
    short_side = max(size, round(size * 256 / 224)) if size >= 64 else size
    return Transform(kind="center_crop", size=size, short_side=short_side, flip=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """Knobs of one loader, which turns sample ids into pixels."""

    threads: int = 1
    """Threads that read and decode."""
    cache_bytes: int = 0
    """Memory for decoded pixels, in bytes; 0 keeps none."""
    decoder: DecoderName = "cpu"
    """`cpu` is libjpeg-turbo; `dali` decodes on the GPU of `device_id`, or with DALI's CPU path."""
    device_id: int | None = None
    """GPU for `dali`; None runs DALI on the CPU. A fleet with `gpus_per_loader` above 0 sets it."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts of shards that may have private addresses and may be reached by plain http."""
    reads_in_flight: int = 32
    """Ranged reads of remote storage under way at the same time; decoding threads read local shards themselves."""
    disk_cache: str | None = None
    """Directory on a local disk for images from remote storage, shared by the loaders of a node; None keeps none."""
    disk_cache_bytes: int = 16 << 30
    """Limit of that directory, in bytes."""
    hw_decoder_load: float = 0.65
    """Share of a request that the GPU's JPEG engine takes, in [0, 1]; the rest goes to its cores. `dali` on a GPU
    only."""
    max_pixels: int = 50_000_000
    """Largest image that is decoded, in pixels. Larger ones are bad samples: they are refused from their header."""

    def __post_init__(self) -> None:
        _require(self.threads >= 1, f"threads must be at least 1; got {self.threads}")
        _require(self.cache_bytes >= 0, f"cache_bytes must not be negative; got {self.cache_bytes}")
        _require(self.decoder in ("cpu", "dali"), f"decoder must be cpu or dali; got {self.decoder!r}")
        # DALI decodes crops in batches: there is no whole image that could be kept.
        _require(
            self.decoder == "cpu" or not self.cache_bytes,
            f"cache_bytes needs the cpu decoder; got {self.cache_bytes} with {self.decoder!r}. Set it to 0.",
        )
        _require(self.reads_in_flight >= 1, f"reads_in_flight must be at least 1; got {self.reads_in_flight}")
        _require(
            self.disk_cache_bytes >= 1 << 20, f"disk_cache_bytes must be at least 1 MiB; got {self.disk_cache_bytes}"
        )
        _require(0 <= self.hw_decoder_load <= 1, f"hw_decoder_load must be in [0, 1]; got {self.hw_decoder_load}")
        _require(self.max_pixels >= 1, f"max_pixels must be at least 1; got {self.max_pixels}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """Sizes, seed and limits of one trainer rank's batch stream."""

    seed: int
    """Seed of the run: keys the crops."""
    global_batch: int
    """Images per optimizer step over all ranks."""
    total_steps: int
    """Optimizer steps after which the stream ends."""
    transform: Transform
    """Applied to every image."""
    window_steps: int = 16
    """Optimizer steps in one window of draws."""
    rank: int = 0
    """This trainer's rank."""
    world_size: int = 1
    """Number of trainer ranks; divides `global_batch`."""
    prefetch_steps: int = 4
    """Steps that may be in flight or ready ahead of the trainer; bounds memory."""
    min_request_images: int = 64
    """Least images in a request: for it more steps are in flight, as far as `prefetch_bytes` allows and at most two
    windows."""
    prefetch_bytes: int = 320 << 20
    """Pixels that may be in flight when that takes more steps than `prefetch_steps`, in bytes."""
    request_deadline_s: float = 1.0
    """Age before which no request is sent to a second loader as well, in seconds."""
    stall_timeout_s: float = 30.0
    """Time without any pixels after which the stream raises StreamStalled, in seconds."""
    max_bad_share: float = 0.05
    """Share of bad samples among about the last 1,000 draws above which the stream stops, in [0, 1]."""

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**64, f"seed must be in 0..2^64-1; got {self.seed}")
        _require(self.world_size >= 1, f"world_size must be at least 1; got {self.world_size}")
        _require(0 <= self.rank < self.world_size, f"rank must be in 0..{self.world_size - 1}; got {self.rank}")
        _require(self.global_batch >= 1, f"global_batch must be at least 1; got {self.global_batch}")
        lower = self.global_batch - self.global_batch % self.world_size
        _require(
            lower == self.global_batch,
            f"global_batch must be divisible by world_size ({self.world_size}); got {self.global_batch}. "
            f"Try {lower or self.world_size} or {lower + self.world_size}.",
        )
        _require(self.total_steps >= 0, f"total_steps must not be negative; got {self.total_steps}")
        _require(self.window_steps >= 1, f"window_steps must be at least 1; got {self.window_steps}")
        _require(self.prefetch_steps >= 1, f"prefetch_steps must be at least 1; got {self.prefetch_steps}")
        _require(self.min_request_images >= 1, f"min_request_images must be at least 1; got {self.min_request_images}")
        _require(self.request_deadline_s > 0, f"request_deadline_s must be positive; got {self.request_deadline_s}")
        _require(self.stall_timeout_s > 0, f"stall_timeout_s must be positive; got {self.stall_timeout_s}")
        _require(0 <= self.max_bad_share <= 1, f"max_bad_share must be in [0, 1]; got {self.max_bad_share}")

    @property
    def local_batch(self) -> int:
        """Images per step for this rank."""
        return self.global_batch // self.world_size
