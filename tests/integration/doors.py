"""What a process and its children show to others on the machine: the addresses they listen at, their command lines."""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LISTENING = "0A"
ANSWER_S, MOST_BYTES = 5.0, 8 << 20


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                waiting += map(int, children.read_text().split())
            except OSError:
                continue  # it ended meanwhile
    return found


def listeners(pids: list[int]) -> dict[str, int]:
    """Addresses with ports that these processes listen at over TCP, and one process of each."""
    owners: dict[str, int] = {}
    for pid in pids:
        try:
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                owners[os.readlink(f"/proc/{pid}/fd/{descriptor}")] = pid
        except OSError:
            continue
    found: dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            owner = owners.get(f"socket:[{fields[9]}]")
            if fields[3] == LISTENING and owner is not None:
                found[_address(fields[1])] = owner
    return found


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address with port."""
    ip = ipaddress.ip_address(address.rpartition(":")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def told_to_strangers(addresses: Iterable[str]) -> dict[str, bytes]:
    """What each address answers to who has no token and asks for its front page and its metrics; nothing if it is mute.

    Keys are the address and the path.
    """

    def ask(question: tuple[str, str]) -> bytes:
        host, _, port = question[0].rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=ANSWER_S)
        try:
            connection.request("GET", question[1])
            return connection.getresponse().read(MOST_BYTES)
        except (OSError, http.client.HTTPException):  # it speaks something else, or not at all
            return b""
        finally:
            connection.close()

    questions = [(address, path) for address in addresses for path in ("/", "/metrics")]
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(ask, questions)
        return {address + path: said for (address, path), said in zip(questions, answers, strict=True)}


def shown(pids: list[int]) -> bytes:
    """Command lines, which every user of the machine may read."""
    lines = []
    for pid in pids:
        try:
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        except OSError:
            continue
    return b"\n".join(lines)


def _address(text: str) -> str:
    """An address of /proc/net/tcp: words in the machine's order, then the port."""
    digits, _, port = text.partition(":")
    raw = bytes.fromhex(digits)
    words = b"".join(struct.pack(">I", word) for word in struct.unpack(f"={len(raw) // 4}I", raw))
    kind = socket.AF_INET if len(words) == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(kind, words)}:{int(port, 16)}"
