"""Programs that some tests need, and the Debian packages that bring them; without one its tests are skipped."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {
    "chromium": "chromium",
    "nginx": "nginx-light",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "tar": "tar",
}
SYSTEM = "/usr/local/sbin:/usr/sbin"
"""Where servers are; a person's PATH often leaves them out."""


def program(name: str) -> str | None:
    """Where a program is, None where it is not installed."""
    assert name in PACKAGES
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM}")


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test where a program is not installed, and says which package has it."""
    reason = f"{name} (Debian: {PACKAGES[name]}) is not installed"
    return pytest.mark.skipif(program(name) is None, reason=reason)
