"""A run's report: `report.json` with the figures, `report.html` as one self-contained page with its pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.runs.rundir import write_json

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.lead { color: var(--soft); margin-top: .3rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .9rem; border-bottom: 1px solid var(--line); text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; }
figcaption { color: var(--soft); font-size: .9rem; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One part of the page: a heading, an optional table, pictures."""

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    pictures: Mapping[Path, str] = field(default_factory=dict)
    """PNG file -> caption."""


def write_report(
    directory: Path, *, title: str, lead: str, sections: Sequence[Section], data: Mapping[str, Any]
) -> Path:
    """Write report.json, from the JSON-able data, and report.html into an existing folder; return the page's path.

    `lead` is one sentence below the page's title.
    """
    write_json(directory / "report.json", dict(data))
    body = "\n".join(_section(section) for section in sections)
    page = (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>"
        f"<p class=lead>{html.escape(lead)}</p>\n{body}\n</body></html>\n"
    )
    path = directory / "report.html"
    path.write_text(page)
    return path


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.rows:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in section.columns)
        rows = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in section.rows)
        parts.append(f"<table><tr>{head}</tr>{rows}</table>")
    # Pictures are written into the page, so that it can be mailed or opened from anywhere as one file.
    for path, caption in section.pictures.items():
        encoded = base64.b64encode(path.read_bytes()).decode()
        text = html.escape(caption)
        parts.append(
            f"<figure><img alt='{text}' src='data:image/png;base64,{encoded}'><figcaption>{text}</figcaption></figure>"
        )
    return "\n".join(parts)


def _cell(value: object) -> str:
    """Return a value as a cell of the table: four digits of a float, "-" for what is not known."""
    # A bool is an int in Python, but reads as a word.
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return f"<td class=number>{text}</td>"
    return f"<td>{html.escape('-' if value is None else str(value))}</td>"
