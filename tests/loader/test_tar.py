from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.errors import BadShardError
from loader.shards.tar import TarMember, is_member_header, walk_tar
from tests.programs import needs
from tests.samples import tar_of, with_size_field


def walk(data: bytes) -> list[TarMember]:
    return list(walk_tar(lambda offset, size: data[offset : offset + size], len(data), url="shard.tar"))


def members_by_tarfile(tar: bytes) -> list[TarMember]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        return [TarMember(m.name, m.offset_data, m.size) for m in file]


FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("kind", FORMATS)
def test_members_are_those_of_tarfile(kind):
    tar = tar_of({"a.jpg": b"x" * 700, "b/c.cls": b"", "d.png": b"y" * 512}, format=FORMATS[kind])
    assert walk(tar) == members_by_tarfile(tar)


@pytest.mark.parametrize("kind", ["gnu", "pax"])
@pytest.mark.parametrize("name", ["n" * 300 + ".jpg", "d/" * 120 + "x.jpg", "\u00fc\u4e2d" * 60 + ".jpg"])
def test_long_and_foreign_names_are_read(kind, name):
    tar = tar_of({name: b"1", "after.jpg": b"22"}, format=FORMATS[kind])
    assert [(m.name, m.size) for m in walk(tar)] == [(name, 1), ("after.jpg", 2)]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 2000), min_size=1, max_size=8),
    length=st.integers(1, 260),
    kind=st.sampled_from(["gnu", "pax"]),
)
def test_offsets_agree_with_tarfile(sizes, length, kind):
    members = {f"{i}" + "k" * length: bytes(size) for i, size in enumerate(sizes)}
    tar = tar_of(members, format=FORMATS[kind])
    assert walk(tar) == members_by_tarfile(tar)


@needs("tar")
@pytest.mark.parametrize("kind", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_tars_of_the_tar_command_are_read(tmp_path: Path, kind):
    (tmp_path / "in" / "dir").mkdir(parents=True)
    (tmp_path / "in" / "dir" / "a.jpg").write_bytes(b"a" * 1000)
    (tmp_path / "in" / "link.jpg").symlink_to("dir/a.jpg")
    subprocess.run(["tar", f"--format={kind}", "-cf", "out.tar", "in"], cwd=tmp_path, check=True)
    data = (tmp_path / "out.tar").read_bytes()
    assert [(m.name, data[m.offset : m.offset + m.size]) for m in walk(data)] == [("in/dir/a.jpg", b"a" * 1000)]


@needs("tar")
@pytest.mark.parametrize("kind", ["gnu", "oldgnu", "pax"])
def test_sparse_files_are_refused(tmp_path: Path, kind):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"x")
    subprocess.run(["tar", f"--format={kind}", "--sparse", "-cf", "out.tar", "a.jpg"], cwd=tmp_path, check=True)
    with pytest.raises(BadShardError, match=r"holds '.*a\.jpg' as a sparse file.*without --sparse"):
        walk((tmp_path / "out.tar").read_bytes())


def test_only_regular_files_are_yielded():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"odd-{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("real.jpg"))
    assert [m.name for m in walk(buffer.getvalue())] == ["real.jpg"]


def test_a_pax_size_record_overrides_the_header():
    tar = tar_of({"big.jpg": b"12345"}, pax_headers={"size": "5"}, format=tarfile.PAX_FORMAT)
    assert [m.size for m in walk(tar)] == [5]


def test_base_256_sizes_are_read():
    tar = tar_of({"a.jpg": b"x" * 600})
    assert [m.size for m in walk(with_size_field(tar, b"\x80" + (600).to_bytes(11, "big")))] == [600]


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (lambda tar: tar[:900], "truncated"),
        (lambda tar: tar[:1536], "no end-of-archive marker"),
        (lambda tar: tar[:300], "truncated"),
        (lambda tar: b"", "truncated"),
        (lambda tar: b"garbage!" * 1000, "checksum"),
        (lambda tar: tar[:1536] + b"\xff" * 512 + tar[2048:], "checksum"),
        (lambda tar: with_size_field(tar, b"\xff" * 12), "unreadable member size"),
        (lambda tar: with_size_field(tar, b"\x80" + (2**80).to_bytes(11, "big")), "does not fit"),
        (lambda tar: with_size_field(tar, b"77777777777\0"), "does not fit"),
        (lambda tar: with_size_field(tar, b"12 words 12\0"), "unreadable member size"),
    ],
)
def test_a_bad_tar_is_an_error_that_says_what_is_wrong(spoiled, message):
    tar = tar_of({"a.jpg": b"x" * 700, "b.jpg": b"y" * 700})
    with pytest.raises(BadShardError, match=message):
        walk(spoiled(tar))


def test_a_huge_name_record_is_refused_before_it_is_read():
    tar = tar_of({"n" * 300: b"1"}, format=tarfile.GNU_FORMAT)
    huge = with_size_field(tar, b"\x80" + (2**21).to_bytes(11, "big")) + bytes(2**22)
    with pytest.raises(BadShardError, match="name record"):
        walk(huge)


def test_a_malformed_pax_record_is_an_error():
    tar = tar_of({"n" * 300: b"1"}, format=tarfile.PAX_FORMAT)
    with pytest.raises(BadShardError, match="PAX"):
        walk(tar.replace(b" path=", b" pathx", 1))


def test_a_member_header_is_recognised():
    tar = tar_of({"a.jpg": b"x" * 600})
    assert is_member_header(tar[:512], 600)
    assert not is_member_header(tar[:512], 601)
    assert not is_member_header(tar[512:1024], 600)
    assert not is_member_header(tar[:100], 600)
