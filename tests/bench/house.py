"""Measures how the code reads: `python -m tests.bench.house [ROOT]` prints one JSON object.

Lines of Python, functions by length, comments in 100 lines, one-line docstrings, private helpers that are called once,
functions over 60 lines and modules over 300, and the folders of one package that import each other both ways.
"""

from __future__ import annotations

import ast
import io
import json
import re
import statistics
import sys
import tokenize
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

PACKAGES = ("loader", "scoring", "trainer", "deploy")


def measure(root: Path) -> dict[str, Any]:
    """Return the figures of a checkout."""
    files = {path: path.read_text() for package in PACKAGES for path in sorted((root / package).rglob("*.py"))}
    lengths, comments, code_lines, one_liners, helpers = [], 0, 0, 0, []
    long_functions, names = [], Counter()
    for path, text in files.items():
        tree = ast.parse(text)
        code_lines += sum(bool(line.strip()) for line in text.splitlines())
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments += sum(t.type == tokenize.COMMENT and "noqa" not in t.string for t in tokens)
        names.update(re.findall(r"\w+", text))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                lengths.append(length)
                doc = ast.get_docstring(node)
                one_liners += doc is not None and "\n" not in doc
                if length > 60:
                    long_functions.append(f"{path.relative_to(root)}:{node.name} {length}")
                if node.name.startswith("_") and not node.name.startswith("__") and length <= 8:
                    helpers.append(node.name)
    tests = sum(len(path.read_text().splitlines()) for path in (root / "tests").rglob("*.py"))
    return {
        "product_lines": sum(len(text.splitlines()) for text in files.values()),
        "product_files": len(files),
        "test_lines": tests,
        "lines_by_package": {
            p: sum(len(t.splitlines()) for f, t in files.items() if f.is_relative_to(root / p)) for p in PACKAGES
        },
        "function_median_lines": statistics.median(lengths),
        "comments_per_100_lines": round(100 * comments / code_lines, 2),
        "one_line_docstrings": one_liners,
        "short_private_helpers_called_once": sum(names[name] == 2 for name in helpers),
        "functions_over_60_lines": long_functions,
        "modules_over_300_lines": sorted(
            f"{path.relative_to(root)} {len(text.splitlines())}"
            for path, text in files.items()
            if len(text.splitlines()) > 300
        ),
        "mutual_imports": mutual_imports(root, files),
        "readme_words": len((root / "README.md").read_text().split()),
    }


def mutual_imports(root: Path, files: dict[Path, str]) -> list[str]:
    """Return the pairs of rooms (folders and modules of one package) that import each other."""
    modules = {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files}
    arrows = set()
    for path, text in files.items():
        here = ".".join(path.relative_to(root).with_suffix("").parts)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    there = full if full in modules else node.module
                    if there.split(".")[0] == here.split(".")[0]:
                        arrows.add((room(here), room(there)))
    pairs = combinations(sorted({end for arrow in arrows for end in arrow}), 2)
    return [f"{a} - {b}" for a, b in pairs if (a, b) in arrows and (b, a) in arrows]


def room(module: str) -> str:
    """Return the folder or top module of a package that a module is in."""
    return ".".join(module.split(".")[:2])


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()), indent=1))
