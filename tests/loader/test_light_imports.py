"""Processes that read a config, an index or a fleet's state, and loaders themselves, load no library that computes."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "timm", "matplotlib", "sklearn", "scipy", "nvidia.dali"}
PROBE = "import sys, json, {module}; print(json.dumps(sorted({heavy!r} & {{*sys.modules}})))"


@pytest.mark.parametrize(
    ("module", "also"),
    [
        ("loader", {"ray"}),
        ("loader.config", {"ray"}),
        ("loader.shards.index", {"ray"}),
        ("loader.fleet", {"ray"}),
        ("loader.fleet.spec", {"ray"}),
        ("loader.fleet.supervisor", {"ray"}),
        ("loader.fleet.actors", set()),
        ("loader.worker, loader.batches.ring, loader.decode.memory", {"ray", "pandas"}),
    ],
)
def test_an_entry_point_imports_nothing_that_computes(module, also):
    code = PROBE.format(module=module, heavy=HEAVY | also)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []
