"""`python -m tests.simulation` says how many faults its worlds took, of every kind."""

from __future__ import annotations

import json
import sys

import pytest

from tests.simulation.__main__ import LIVES, main


def test_what_the_worlds_took_is_counted_by_kind(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("logging.disable", lambda level: None)
    monkeypatch.setattr(sys, "argv", ["tests.simulation", "stream", "--minutes", "0.001", "--json"])
    main()
    seen = json.loads(capsys.readouterr().out)["stream"]
    assert seen["lives"] == LIVES
    assert sum(seen["faults"].values()) > LIVES
    assert seen["faults_per_minute"] > 0
