"""Code that is shipped with a job: our four packages as they are here, so that a cluster runs what submitted it.

Each package is shipped from the folder that Python imports it from, be it a checkout or an installed wheel. The
cluster's image has the dependencies; `tempera doctor` there names those that are missing.
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
"""Seconds that a stopped job may take to write its checkpoint before Ray kills it."""


def package_folders() -> list[str]:
    """Return the folders of our packages on this machine."""
    folders = []
    for name in PACKAGES:
        # Found instead of imported: only the path is needed.
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None, name
        folders.append(str(Path(spec.origin).parent))
    return folders


def shipped_files() -> list[Path]:
    """Return every file that is shipped with a job."""
    files: list[Path] = []
    for folder in map(Path, package_folders()):
        inside = (path for path in sorted(folder.rglob("*")) if path.is_file())
        files += [path for path in inside if not set(path.relative_to(folder).parts) & set(LEFT_OUT)]
    return files


@contextmanager
def runtime_environment(modules: Iterable[Path] = (), *, api_port: int = 0) -> Iterator[dict[str, Any]]:
    """Yield Ray's runtime_env of a job; the files that it names exist until the block ends.

    Args:
        modules: the user's packages or single files, with methods and policies; they become the job's working folder.
        api_port: port of the run's API; 0 takes a free one.

    Raises:
        ValueError: a module does not exist, or would hide one of our packages.
    """
    # The job reports its progress as lines of its log, which `follow` turns into a bar.
    variables = {progress_lines.SWITCH: progress_lines.LINES, "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S)}
    environment: dict[str, Any] = {
        "py_modules": package_folders(),
        "excludes": list(LEFT_OUT),
        "env_vars": variables | ({"TEMPERA_API_PORT": str(api_port)} if api_port else {}),
    }
    with tempfile.TemporaryDirectory(prefix="tempera-modules-") as folder:
        for path in map(Path.resolve, modules):
            if path.stem in PACKAGES:  # the job would import the user's file instead of ours
                raise ValueError(f"a module must not be named like one of ours ({', '.join(PACKAGES)}); got {path}.")
            if path.is_dir():
                ignored = shutil.ignore_patterns(*LEFT_OUT)
                shutil.copytree(path, Path(folder) / path.name, ignore=ignored)
            elif path.is_file() and path.suffix == ".py":
                shutil.copy(path, folder)
            else:
                raise ValueError(f"a module must be a package's folder or a .py file; {path} is neither.")
            environment["working_dir"] = folder
        yield environment
