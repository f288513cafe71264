"""What every test may use: one thread a process, a home of its own, the digits as an indexed and scored data set."""

from __future__ import annotations

import atexit
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before torch and Ray are imported anywhere: two cores, and clusters that nobody else can join. Ray reads its token
# once a process, so all the clusters of a session share one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
SCRATCH = tempfile.TemporaryDirectory(prefix="tempera-tests-")
atexit.register(SCRATCH.cleanup)  # pytest tells conftest files of workers nothing when they end
TOKEN = Path(SCRATCH.name) / "token"
TOKEN.touch(mode=0o600)
TOKEN.write_text(secrets.token_hex(32))
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN_PATH"] = str(TOKEN)
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # processes that tests start find the module `tests`
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import pytest

from deploy.runs.config import DataConfig


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Live runs first, then what starts Ray or a browser: two workers take files in order (`make test` keeps xdist from
    sorting them by their number of tests), and the longest must not be the last.
    """
    slow = {item.path for item in items if any(item.get_closest_marker(name) for name in ("ray", "slow", "browser"))}
    items.sort(key=lambda item: ("integration" not in item.path.parts, item.path not in slow))


@pytest.fixture(scope="session", autouse=True)
def temporary_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray and others write below HOME; tests leave the person's alone."""
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(home)
    yield home
    if before is not None:
        os.environ["HOME"] = before


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """The handwritten digits: training and test shards, indices, prototypes."""
    from deploy.studies.demo.data import prepare
    from deploy.studies.prototypes.job import score

    folder = tmp_path_factory.mktemp("digits")
    data = prepare(folder, images=None, shards=())
    prototypes = data.index.parent / "prototypes.parquet"
    score(data.index, prototypes, num_clusters=20)
    return DataConfig(index=str(data.index), prototypes=str(prototypes), test_index=str(data.test_index))
