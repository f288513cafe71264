"""Which shard URLs may be opened, and which network addresses a connection may go to.

Only known schemes, no shell pipes, no brace patterns, and no private, loopback, link-local or metadata address unless
its host was allowed by name. Connections go to the addresses that were checked, so a name that resolves differently a
moment later (DNS rebinding) changes nothing.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final
from urllib.parse import SplitResult, urlsplit

from loader.errors import StorageUnavailable

SCHEMES: Final = ("file", "https", "s3", "gs")
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that hold an IPv4 one in their last 32 bits (RFC 6052)."""
_COMPATIBLE: Final = ipaddress.ip_network("::/96")
"""The same in their first form (RFC 4291, deprecated)."""


def check_form(url: str, *, allow_hosts: tuple[str, ...] = ()) -> SplitResult:
    """Return the parts of a shard's URL. Its host is not looked up.

    Raises:
        ValueError: If its scheme or form is refused.
    """
    # webdataset's own syntax: "pipe:" would run a shell command, and braces stand for many shards.
    if re.match(r"\s*pipe:", url, re.IGNORECASE) or "\0" in url or re.search(r"\{[^}]*(\.\.|,)[^}]*\}", url):
        raise ValueError(f"pipes and brace patterns are not shards; got {url[:100]!r}. List the shards one by one.")
    parts = urlsplit(url)
    if "://" not in url:
        return SplitResult("file", "", url, "", "")
    if parts.scheme in ("http", "https") and not parts.hostname:
        raise ValueError(f"shard URLs must name a host; got {url[:100]!r}")
    if "@" in parts.netloc:
        raise ValueError(
            f"shard URLs must not name a user; got one for {parts.netloc.rpartition('@')[2][:100]!r}. Set "
            "credentials in the environment."
        )
    if parts.scheme not in SCHEMES and not (parts.scheme == "http" and parts.hostname in allow_hosts):
        raise ValueError(f"shard URLs must be {', '.join(SCHEMES)}; got {parts.scheme!r} in {url[:100]!r}")
    return parts


def checked_addresses(parts: SplitResult, *, allow_hosts: tuple[str, ...]) -> list[tuple[str, int]]:
    """Resolve the host of an http or https URL, and return the addresses to connect to, as (IP address, port).

    Raises:
        ValueError: If one of them is not on the public internet and the host was not allowed by name.
        StorageUnavailable: If the name does not resolve.
    """
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StorageUnavailable(f"host {host!r} cannot be resolved: {error}") from error
    addresses = [(str(address[0]), port) for *_, address in found]
    # All of them are checked, not only the first: a connection may go to any.
    for address, _ in addresses:
        if host not in allow_hosts and not _is_public(address.split("%")[0]):
            raise ValueError(
                f"{host!r} is {address}, which is not a public address. If that is intended, allow the host by name."
            )
    return addresses


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        # An IPv6 address that holds an IPv4 one may lead to it, so the inner address decides.
        inside = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64 or ip in _COMPATIBLE:
            inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inside is not None:
            return inside.is_global and not inside.is_multicast
        if ip.is_site_local:  # deprecated, private, and global to Python
            return False
    return ip.is_global and not ip.is_multicast
