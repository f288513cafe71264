"""DALI's `.idx` beside a tar (wds2idx v1.2): read, checked against the tar, and written.

Its lines name every sample's members: extension, offset, size, name. An index of an older tar is a common mistake, so
each member is looked up at its place before any line is believed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from loader.shards.tar import BLOCK, ReadAt, TarMember, is_member_header, member_name

log = logging.getLogger(__name__)

_VERSION = "v1.2"


def read_dali_index(path: Path, read_at: ReadAt, total_bytes: int) -> list[TarMember] | None:
    """Return a tar's members as its `.idx` tells them.

    Args:
        path: The `.idx`.
        read_at: Reads a range of the tar.
        total_bytes: Length of the tar.

    Returns:
        The members in the order of the tar; None when there is no such file, when it is of a version without names, or
        when anything in it does not fit the tar. Then the tar has to be walked.
    """
    try:
        # A member takes more of its tar than of the index: one that is longer than the tar is none.
        if not path.is_file() or path.stat().st_size > total_bytes:
            return None
        lines = path.read_text("utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    if not lines or not lines[0].startswith(_VERSION):
        return None
    try:
        members = [member for line in lines[1:] for member in _members(line)]
    except ValueError:
        members = []
    if not members or not _fits(members, read_at, total_bytes):
        log.info("%s does not fit its tar, which is walked instead", path)
        return None
    return members


def write_dali_index(path: Path, bundles: Sequence[Sequence[TarMember]]) -> None:
    """Write the `.idx` of a tar's samples. A folder that cannot be written is no error: only DALI's readers need it."""
    lines = [f"{_VERSION} {len(bundles)}"]
    lines += [" ".join(f"{_extension(m.name)} {m.offset} {m.size} {m.name}" for m in b) for b in bundles]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        log.warning("DALI index not written: %s. Only DALI's own readers need it.", error)


def _members(line: str) -> Iterator[TarMember]:
    fields = line.split(" ")
    if len(fields) % 4:  # a name with a blank cannot be told from two fields
        raise ValueError(line)
    for at in range(0, len(fields), 4):
        yield TarMember(fields[at + 3], int(fields[at + 1]), int(fields[at + 2]))


def _fits(members: list[TarMember], read_at: ReadAt, total_bytes: int) -> bool:
    """Return whether every member is where it should be, nothing lies between them, and the tar ends after them."""
    end = 0
    for member in members:
        # Names in PAX or GNU records, and members of other kinds in between, leave a gap: those tars are walked.
        if member.offset - BLOCK != end or not 0 <= member.size <= total_bytes - member.offset:
            return False
        header = read_at(end, BLOCK)
        if not is_member_header(header, member.size) or member_name(header) != member.name:
            return False
        end = member.offset + -(-member.size // BLOCK) * BLOCK
    return end + BLOCK <= total_bytes and read_at(end, BLOCK) == bytes(BLOCK)


def _extension(name: str) -> str:
    dot = name.find(".", name.rfind("/") + 1)
    return "" if dot < 0 else name[dot + 1 :]
