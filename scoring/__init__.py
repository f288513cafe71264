"""The selection: which samples a run sees, decided live by temperature, policy and scores, and written to a log.

Patch scores are imported when they are first used: they need torch, which the selection service does not, and which
would make its restart after a crash seconds slower.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scoring import schedules
from scoring.clusters import davies_bouldin
from scoring.config import CurriculumConfig, SelectionConfig
from scoring.errors import (
    CorruptLog,
    LogInUse,
    LogUnavailable,
    RunMismatch,
    ScoringError,
    SelectionUnavailable,
    VersionConflict,
)
from scoring.log.runlog import RunLog, read_entries
from scoring.policies import POLICIES, PolicyOptions, TableInputs
from scoring.port import SelectionPort
from scoring.prototypes import Prototypes, prototype_distances
from scoring.records import Control, ControlReply, Event, LogEntry, ScoreAck, Window
from scoring.replay import ReplayReport, replay_run
from scoring.schedules import SCHEDULES, AdaptiveGrowth
from scoring.selection import Selection
from scoring.temperature import effective_size, sampling_probabilities, solve_temperature

if TYPE_CHECKING:
    from scoring.patch_scores import masked_mean_score, patch_weighted_score

_WITH_TORCH = {
    "masked_mean_score": "scoring.patch_scores",
    "patch_weighted_score": "scoring.patch_scores",
}

__all__ = [
    "POLICIES",
    "SCHEDULES",
    "AdaptiveGrowth",
    "Control",
    "ControlReply",
    "CorruptLog",
    "CurriculumConfig",
    "Event",
    "LogEntry",
    "LogInUse",
    "LogUnavailable",
    "PolicyOptions",
    "Prototypes",
    "ReplayReport",
    "RunLog",
    "RunMismatch",
    "ScoreAck",
    "ScoringError",
    "Selection",
    "SelectionConfig",
    "SelectionPort",
    "SelectionUnavailable",
    "TableInputs",
    "VersionConflict",
    "Window",
    "davies_bouldin",
    "effective_size",
    "masked_mean_score",
    "patch_weighted_score",
    "prototype_distances",
    "read_entries",
    "replay_run",
    "sampling_probabilities",
    "schedules",
    "solve_temperature",
]


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
