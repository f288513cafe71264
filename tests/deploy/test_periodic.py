"""Watching beside a run: trouble is told in a line, once, and ends nothing."""

from __future__ import annotations

import logging
import threading

import pytest

from deploy.observe.periodic import periodic


def test_trouble_is_told_once_in_a_line_and_again_after_it_went_away(caplog: pytest.LogCaptureFixture) -> None:
    outcomes = iter([OSError("the disk is gone\nsecond line"), OSError("the disk is gone\nsecond line"), None])
    calls: list[object] = []
    enough = threading.Event()

    def act() -> None:
        outcome = next(outcomes, OSError("the disk is gone"))
        calls.append(outcome)
        if len(calls) >= 4:
            enough.set()
        if outcome is not None:
            raise outcome

    with (
        caplog.at_level(logging.WARNING, logger="deploy.observe.periodic"),
        periodic(act, every_s=0.001, name="watcher", trouble="it could not be watched"),
    ):
        assert enough.wait(120)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["it could not be watched (OSError: the disk is gone)"] * 2
    assert not any(record.exc_info for record in caplog.records)


def test_what_is_watched_gets_a_last_look() -> None:
    looks: list[int] = []
    with periodic(lambda: looks.append(1), every_s=60.0, name="watcher", trouble="none"):
        pass
    assert looks == [1]
