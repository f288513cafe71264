import subprocess
import sys

import pytest

import scoring


def test_facade_offers_all_it_names():
    assert all(hasattr(scoring, name) for name in scoring.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        scoring.nothing  # noqa: B018


def test_selection_needs_neither_torch_nor_ray():
    code = "import sys, scoring; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
