"""python -m tests.fuzz TARGET... --minutes N: fuzz targets one after the other, each for so long, under atheris.

atheris (libFuzzer for Python) is no dependency of the project: install it where it may be, with the project's packages
in sight, as in `python -m venv --system-site-packages`. Every target has a process of its own; inputs that reach new
code are kept in --corpus and are where the next run begins. A finding is written there as `TARGET-crash-*` and ends
with the exit status 1; `python -m tests.fuzz TARGET --once FILE` shows it again, without atheris. --out FILE keeps what
was done, by target, beside what earlier runs wrote there.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WATCHED = [
    "loader", "scoring.log.schema", "scoring.log.runlog", "scoring.log.snapshots", "scoring.log.history",
    "scoring.table.samples", "scoring.table.draw_counts", "scoring.control_state", "scoring.controls",
    "scoring.replay", "deploy.api.changes", "PIL",
]  # fmt: skip
"""Modules whose branches tell the fuzzer that an input is new."""
INPUT_SECONDS, MEMORY_MB = 20, 3000
LONGEST = 1 << 16


def main() -> int:
    """Fuzz what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("targets", nargs="*", help="names of targets; none means all")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target")
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "tempera-fuzz")
    parser.add_argument("--out", type=Path, help="JSON file of seconds, executions and findings by target")
    parser.add_argument("--once", type=Path, help="run one target on one file, and show what happens")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        fuzz(asked.targets[0], asked.corpus, seconds=round(60 * asked.minutes))
    if asked.once:
        from tests.fuzz.targets import TARGETS

        return 0 if TARGETS[asked.targets[0]](asked.once.read_bytes()) in (True, False) else 1
    return run(asked.targets, asked.corpus, minutes=asked.minutes, out=asked.out)


def run(targets: list[str], corpus: Path, *, minutes: float, out: Path | None = None) -> int:
    """Each target in a process of its own; 1 if any has a finding."""
    from tests.fuzz.seeds import seeds
    from tests.fuzz.targets import TARGETS

    failed = 0
    for target in targets or list(TARGETS):
        folder = corpus / target
        folder.mkdir(parents=True, exist_ok=True)
        for data in seeds(target):
            (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)
        started = time.monotonic()
        status, executions = run_inside(target, corpus, minutes=minutes)
        found = sorted(corpus.glob(f"{target}-crash-*")) + sorted(corpus.glob(f"{target}-timeout-*"))
        done = {
            "seconds": round(time.monotonic() - started),
            "executions": executions,
            "inputs_kept": len(list(folder.iterdir())),
            "findings": len(found),
        }
        sys.stderr.write(f"{target}: {done}, exit {status}, findings: {', '.join(map(str, found)) or 'none'}\n")
        if out is not None:
            before = json.loads(out.read_text()) if out.exists() else {}
            out.write_text(json.dumps(before | {target: done}, indent=1, sort_keys=True) + "\n")
        failed |= status != 0
    return int(failed)


def run_inside(target: str, corpus: Path, *, minutes: float) -> tuple[int, int]:
    """One target in a process of its own: its exit status, and how many inputs it took."""
    command = [sys.executable, "-m", "tests.fuzz", target, "--inside", "--corpus", str(corpus)]
    executions = 0
    with subprocess.Popen([*command, "--minutes", str(minutes)], stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            sys.stderr.write(line)
            if count := re.match(r"stat::number_of_executed_units:\s+(\d+)", line):
                executions = int(count[1])
    return process.returncode, executions


def fuzz(target: str, corpus: Path, *, seconds: int) -> None:
    """Hand this process to libFuzzer."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=WATCHED):
        targets = importlib.import_module("tests.fuzz.targets")
    run_one = targets.TARGETS[target]
    for data in importlib.import_module("tests.fuzz.seeds").seeds(target):
        run_one(data)  # what is imported late is no slow input

    def once(data: bytes) -> None:
        try:
            run_one(data)
        except BaseException:  # written here as well: libFuzzer may be killed before it writes
            (corpus / f"{target}-crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            raise

    limits = [f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MB}"]
    shape = [f"-max_len={LONGEST}", "-len_control=0", "-print_final_stats=1", f"-artifact_prefix={corpus}/{target}-"]
    atheris.Setup([sys.argv[0], *limits, *shape, str(corpus / target)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
