"""Processes that compute nothing (the driver, Ray Train's controller, commands) import no torch through the trainer."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "matplotlib", "sklearn")


@pytest.mark.parametrize("entry", ["trainer", "trainer.config", "trainer.evaluate", "trainer.actors"])
def test_an_entry_point_imports_nothing_heavy(entry):
    code = f"import sys, {entry}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
