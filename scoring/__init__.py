"""The control plane: which samples a run sees, decided live by temperature, policy and scores, and written to a log."""

from scoring import schedules
from scoring.clusters import davies_bouldin
from scoring.config import SelectionConfig
from scoring.errors import (
    CorruptLog,
    LogInUse,
    LogUnavailable,
    RunMismatch,
    ScoringError,
    SelectionUnavailable,
    VersionConflict,
)
from scoring.features import image_features
from scoring.inspect import export_table, table_summary
from scoring.patch_scores import masked_mean_score, patch_weighted_score
from scoring.policies import POLICIES, PolicyOptions, TableInputs
from scoring.prototypes import Prototypes, prototype_distances
from scoring.records import Control, ControlReply, Event, LogEntry, ScoreAck, Window
from scoring.replay import ReplayReport, replay_run
from scoring.runlog import RunLog, read_entries
from scoring.schedules import SCHEDULES, Adaptive
from scoring.selection import Selection
from scoring.temperature import effective_size, sampling_probabilities, solve_temperature

__all__ = [
    "POLICIES",
    "SCHEDULES",
    "Adaptive",
    "Control",
    "ControlReply",
    "CorruptLog",
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
    "SelectionUnavailable",
    "TableInputs",
    "VersionConflict",
    "Window",
    "davies_bouldin",
    "effective_size",
    "export_table",
    "image_features",
    "masked_mean_score",
    "patch_weighted_score",
    "prototype_distances",
    "read_entries",
    "replay_run",
    "sampling_probabilities",
    "schedules",
    "solve_temperature",
    "table_summary",
]
