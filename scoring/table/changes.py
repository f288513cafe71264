"""TableChanges: controls that change the sample table itself: selection rounds, and other distances.

They are made between two windows, logged with all that a replay needs to make them again, and land at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scoring.config import SelectionConfig
from scoring.controls import Resolver
from scoring.log.history import History, describe_file
from scoring.log.runlog import RunLog
from scoring.prototypes import fingerprint_of
from scoring.records import Control, ControlReply
from scoring.steering import Steering, reply_to, with_law


class TableChanges:
    """Not locked: the selection holds both its locks, but for `find_border`, which needs the drawing lock."""

    def __init__(
        self, config: SelectionConfig, runlog: RunLog, history: History, resolver: Resolver, steering: Steering
    ) -> None:
        self._config, self._log, self._history = config, runlog, history
        self._resolver, self._steering = resolver, steering

    def require_settled(self) -> None:
        """A change of the table lands at once; after a draw that failed, changes wait for a later window."""
        if self._steering.waits:
            window = self._steering.next_window
            raise ValueError(
                f"a change of the table must follow a drawn window; window {window} failed, and changes wait for the "
                "one after it. Ask for that window again, then repeat the change."
            )

    def find_border(self, kind: str) -> dict[str, Any]:
        """What parts exactly floor(rho * N) samples from the rest, by the scores merged so far."""
        kept, threshold, last_id = self._history.table.find_round(kind, self._config.rho)
        through = self._history.position.scores_through
        return {"threshold": threshold, "last_id": last_id, "kept": kept, "scores_through": through}

    def close_round(self, control: Control, border: dict[str, Any]) -> ControlReply:
        """Keep what lies above the border from the next window on."""
        controls = self._steering.latest().after(control.kind, control.value)
        entry = self._steering.entry(control, control.value, controls, detail=json.dumps(border))
        self._log.append(entry)
        self._history.close_round(entry)
        self._resolver.forget()
        resolved = self._resolver.resolve(controls)
        self._steering.land(entry, controls, resolved)
        return reply_to(with_law(entry, resolved.temperature, resolved.effective_size))

    def swap_distances(self, control: Control) -> ControlReply:
        """Draw by the distances of a file from the next window on.

        Raises:
            ValueError: if they are not of this run's data, or cannot give the effective size; nothing changed.
        """
        self.require_settled()
        path, table = Path(str(control.value)), self._history.table
        self._require_same_data(path)
        table.take_distances(path)
        self._resolver.forget()
        try:
            controls = self._steering.latest().after(control.kind, control.value)
            resolved = self._resolver.resolve(controls)
            through = self._history.position.scores_through
            detail = json.dumps({**describe_file(self._log, path), "scores_through": through})
            entry = self._steering.entry(control, control.value, controls, detail=detail)
            entry = with_law(entry, resolved.temperature, resolved.effective_size)
            self._log.append(entry)
        except BaseException:
            table.undo_distances()
            self._resolver.forget()
            raise
        table.settle_distances()
        self._history.taken(entry)
        self._steering.land(entry, controls, resolved)
        return reply_to(entry)

    def _require_same_data(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"distances must name a file of `tempera score` that the service reaches; got {path}.")
        ours, theirs = self._config.fingerprint, fingerprint_of(path)
        if ours and theirs and ours != theirs:
            raise ValueError(f"distances must be of the run's data ({ours}); {path} is of {theirs}. Score its index.")
