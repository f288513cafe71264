"""The example in the package's description, run as it stands but for its size; and as a DataLoader would be resumed."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

import loader
from loader import ShardIndex

SMALLER = {"global_batch=256": "global_batch=8", "total_steps=1000": "total_steps=6", "size=224": "size=16"}


def example(index: ShardIndex, out: Path) -> str:
    (code,) = re.findall(r"\n\n((?:    .*\n)+)", loader.__doc__)
    code = textwrap.dedent(code)
    for printed, small in SMALLER.items():
        assert printed in code
        code = code.replace(printed, small)
    return code.replace("data/shard-000000.tar", index.shard_urls[0]).replace("data/index.parquet", str(out))


def run(code: str, *, saved: dict[str, int] | None, steps: int) -> tuple[list[int], dict[str, int]]:
    """Run the example's loop, leaving it after so many steps."""
    draws: list[int] = []
    code = code.replace("    ...\n", "    draws.extend(batch.draws.tolist())\n")
    code += "    if len(draws) >= steps * 8:\n        break\n"
    names = {name: getattr(loader, name) for name in loader.__all__}
    names |= {"np": np, "device": "cpu", "saved": saved, "draws": draws, "steps": steps}
    exec(compile(code, "example", "exec"), names)
    return draws, names["saved"]


@pytest.mark.parametrize("steps", [1, 4])
def test_the_example_runs_and_goes_on_where_it_was_saved(photo_index, tmp_path, steps):
    code = example(photo_index, tmp_path / "index.parquet")
    first, saved = run(code, saved=None, steps=steps)
    rest, last = run(code, saved=saved, steps=6)
    assert first + rest == list(range(48))
    assert (saved, last) == ({"step": steps}, {"step": 6})
