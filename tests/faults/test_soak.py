"""The fault run, in short: a live run under a minute of faults keeps every promise and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MINUTES, SEED = 1, 5


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_minute_of_faults_breaks_no_promise(tmp_path, note):
    options = ["--minutes", str(MINUTES), "--seed", str(SEED), "--out", str(tmp_path / "faults"), "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", *options], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = json.loads(done.stdout)
    assert sum(outcome["faults"].values()) >= 3, done.stderr
    assert outcome["violations"] == []
    assert outcome["steps"] > 10
    words = f"{', '.join(sorted(outcome['faults']))}: {outcome['steps']} steps, no violation"
    note(f"fault run of {MINUTES} min, seed {SEED}", seen=words)
