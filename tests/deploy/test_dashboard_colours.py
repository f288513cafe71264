"""The colours of the page, without a browser: what is written can be read, in the light and in the dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ASSETS = Path(__file__).parents[2] / "deploy" / "dashboard" / "assets"
LIGHT, DARK = "light", "dark"


def colours(theme: str) -> dict[str, str]:
    """Hexadecimal colours of a theme in tokens.css."""
    text = (ASSETS / "tokens.css").read_text()
    block = text[text.index('[data-theme="dark"] {') :] if theme == DARK else text[: text.index("@media")]
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_and_lines_stand_out_from_what_is_behind_them(theme: str) -> None:
    found = colours(theme)
    for name in ("ink", "ink-soft", "plan", "force", "hand", "bad", "good"):
        for behind in ("page", "card", "raised"):
            assert contrast(found[name], found[behind]) >= 4.5, (name, behind)
    assert contrast(found["warn"], found["warn-back"]) >= 4.5
    assert contrast(found["on-force"], found["force"]) >= 4.5
    for name in ("line-strong", "force-fill"):
        assert contrast(found[name], found["card"]) >= 2.6, name
