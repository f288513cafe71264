"""A Ray for the tests of one file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TRIES = 5
TOO_SLOW = "timed out during startup"
"""Ray gives its own processes 30 seconds to start, and no setting changes that: on a busy machine they need more."""


@contextmanager
def local_ray(*, num_cpus: int = 2, **options: Any) -> Iterator[Any]:
    """Start Ray on this machine for as long as the block lasts, with what `ray.init` takes; yields the module."""
    import ray

    for number in range(TRIES):
        try:
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, **options)
            break
        except Exception as error:
            ray.shutdown()
            if TOO_SLOW not in str(error) or number == TRIES - 1:
                raise
            time.sleep(5)
    try:
        yield ray
    finally:
        ray.shutdown()
