"""python -m tests.hostile.corpus OUT: writes the hostile corpus, the same bytes every time, and what must come of it.

OUT/manifest.json lists the inputs: name, place where it is given, file, verdict, and what the message must say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.hostile import canaries, images, indexes, tars, values
from tests.hostile.case import Case, Family

FAMILIES: tuple[Family, ...] = (tars.cases, indexes.cases, images.cases, canaries.cases, values.cases)


def cases() -> list[Case]:
    """Every case; their bytes are not made yet."""
    found = [case for family in FAMILIES for case in family()]
    assert len({case.name for case in found}) == len(found), "every case has a name of its own"
    return found


def write(out: Path) -> list[Case]:
    """Write the files and the manifest, and return the cases."""
    (out / "files").mkdir(parents=True, exist_ok=True)
    listed, found = [], cases()
    for number, case in enumerate(found):
        path = out / "files" / f"{number:04d}{case.suffix}"
        path.write_bytes(case.make())
        facts = {name: getattr(case, name) for name in ("name", "place", "verdict", "says")}
        listed.append({**facts, "file": str(path.relative_to(out))})
    (out / "manifest.json").write_text(json.dumps(listed, indent=1))
    return found


if __name__ == "__main__":
    sys.stderr.write(f"{len(write(Path(sys.argv[1])))} hostile inputs\n")
