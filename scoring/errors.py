"""Errors that a caller of scoring may want to catch; input that a user can fix raises ValueError."""

from __future__ import annotations


class ScoringError(Exception):
    """Base of every error below."""


class VersionConflict(ScoringError):
    """A control named an old version: another control came first and nothing was changed."""

    def __init__(self, expected: int, current: int) -> None:
        super().__init__(
            f"expected_version must be the current control version ({current}); got {expected}. "
            "Read the state again and decide whether the change still applies."
        )
        self.expected = expected
        self.current = current

    # An exception is unpickled from its message alone; this one needs both versions, for it crosses processes of Ray.
    def __reduce__(self) -> tuple[type[VersionConflict], tuple[int, int]]:
        return type(self), (self.expected, self.current)


class RunMismatch(ScoringError):
    """A run log was opened with another seed, data set or configuration than it was begun with."""


class CorruptLog(ScoringError):
    """A stored row does not match its checksum, or the file is not a run log."""


class LogUnavailable(ScoringError):
    """The log cannot be written (disk full, disk error): nothing is acknowledged until it can."""


class LogInUse(ScoringError):
    """Another process is writing this run log."""


class SelectionUnavailable(ScoringError):
    """The selection service did not answer within the deadline."""
