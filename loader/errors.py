"""The errors of this package that callers may catch.

Each is made from its message alone: Ray rebuilds errors from their positional arguments in the caller's process.
"""

from __future__ import annotations


class LoaderError(Exception):
    """Base of every error that this package raises on purpose."""


class MissingIndexError(LoaderError):
    """The sample index does not exist or cannot be read."""


class StaleIndexError(LoaderError):
    """A shard is gone or differs from the one that was indexed."""


class BadShardError(LoaderError):
    """A tar is malformed: truncated, corrupt, or with members that cannot be trusted."""


class BadSampleError(LoaderError):
    """One sample cannot become pixels. Costs one draw, never a batch."""


class TooManyBadSamplesError(LoaderError):
    """The share of bad samples passed its limit: the data or its storage is broken."""


class StorageUnavailable(LoaderError):
    """Storage did not deliver within the deadline. No sample is at fault: the run can go on once storage recovers."""


class LoaderLost(LoaderError):
    """The loader of a request died or cannot be reached. Another loader can make the same pixels."""


class StreamStalled(LoaderError):
    """Nothing arrived within the stall timeout. The message names what the stream waited for."""
