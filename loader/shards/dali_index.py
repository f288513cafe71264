"""DALI's `.idx` beside a tar (wds2idx v1.2): read, checked against the tar, and written.

Each line names one sample's members: extension, offset, size, name. The `.idx` of an older version of the tar is a
common mistake, so every member's header is read at its place before any line is believed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from loader.shards.tar import BLOCK, ReadAt, TarMember, is_member_header, member_name, split_name

log = logging.getLogger(__name__)

_VERSION = "v1.2"


def read_dali_index(path: Path, read_at: ReadAt, total_bytes: int) -> list[TarMember] | None:
    """Return the members that a tar's `.idx` lists.

    Args:
        path: The `.idx`.
        read_at: Reads a range of the tar.
        total_bytes: Length of the tar.

    Returns:
        The members in the order of the tar. None when there is no such file, when its version has no names, or when
        anything in it does not fit the tar: then the tar has to be walked.
    """
    try:
        # A member takes more bytes of the tar than of the `.idx`, so one that is longer than its tar is refused unread.
        if not path.is_file() or path.stat().st_size > total_bytes:
            return None
        lines = path.read_text("utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    if not lines or not lines[0].startswith(_VERSION):
        return None
    members: list[TarMember] = []
    try:
        for line in lines[1:]:
            fields = line.split(" ")
            if len(fields) % 4:  # a name with a blank looks like two fields
                raise ValueError(line)
            members += [
                TarMember(fields[at + 3], int(fields[at + 1]), int(fields[at + 2])) for at in range(0, len(fields), 4)
            ]
    except ValueError:
        members = []  # an unreadable line is treated like the index of another tar
    if not members or not _fits(members, read_at, total_bytes):
        log.info("%s does not fit its tar, which is walked instead", path)
        return None
    return members


def write_dali_index(path: Path, samples: Sequence[Sequence[TarMember]]) -> None:
    """Write the `.idx` of a tar's samples; if that is impossible, warn, since only DALI's own readers need it."""
    lines = [f"{_VERSION} {len(samples)}"]
    lines += [" ".join(f"{split_name(m.name)[1]} {m.offset} {m.size} {m.name}" for m in sample) for sample in samples]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        log.warning("DALI index not written: %s. Only DALI's own readers need it.", error)


def _fits(members: list[TarMember], read_at: ReadAt, total_bytes: int) -> bool:
    """Return whether every member is at its place, nothing lies between them, and the tar ends after them."""
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
