"""What a job takes along: our four packages as they are here, so that a cluster runs the code that submitted it.

A checkout and an installed wheel are alike: each package is shipped from where Python imports it. The cluster's image
brings the dependencies; `tempera doctor` there says which are missing.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.observe import progress_lines

PACKAGES = ("loader", "scoring", "trainer", "deploy")
LEFT_OUT = ("__pycache__", "reports")
"""Folders that a job does not need."""
GRACE_S = 90
"""How long a stopped job may take to write its checkpoint before Ray kills it."""


def package_folders() -> list[str]:
    """Where our packages lie on this machine."""
    folders = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None, name
        folders.append(str(Path(spec.origin).parent))
    return folders


def shipped_files() -> list[Path]:
    """Every file that a job takes along, for the plan."""
    files: list[Path] = []
    for folder in map(Path, package_folders()):
        inside = (path for path in sorted(folder.rglob("*")) if path.is_file())
        files += [path for path in inside if not set(path.relative_to(folder).parts) & set(LEFT_OUT)]
    return files


@contextmanager
def runtime_environment(modules: Iterable[Path] = (), *, api_port: int = 0) -> Iterator[dict[str, Any]]:
    """Ray's runtime_env of a job: our packages, the person's own modules, and how the job reports and stops.

    Args:
        modules: packages or single files of one's own, for methods and policies; they become the job's working folder.
        api_port: port of the run's API; 0 takes a free one.

    Yields:
        What `JobSubmissionClient.submit_job` takes; the files that it names are there until the block ends.

    Raises:
        ValueError: a module is not there, or hides one of our packages.
    """
    variables = {progress_lines.SWITCH: progress_lines.LINES, "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S)}
    environment: dict[str, Any] = {
        "py_modules": package_folders(),
        "excludes": list(LEFT_OUT),
        "env_vars": variables | ({"TEMPERA_API_PORT": str(api_port)} if api_port else {}),
    }
    with tempfile.TemporaryDirectory(prefix="tempera-modules-") as folder:
        for path in modules:
            _copy_module(path.resolve(), Path(folder))
            environment["working_dir"] = folder
        yield environment


def _copy_module(path: Path, folder: Path) -> None:
    if path.stem in PACKAGES:
        raise ValueError(f"a module to ship must not be named like one of ours ({', '.join(PACKAGES)}); got {path}.")
    if path.is_dir():
        shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    elif path.is_file() and path.suffix == ".py":
        shutil.copy(path, folder)
    else:
        raise ValueError(f"a module to ship must be a package's folder or a .py file; {path} is neither.")
