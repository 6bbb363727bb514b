"""Images behind addresses: of listed hosts alone, in one step, and no further than a limit."""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from palate.data.images import TOO_MANY_BYTES, ImageError

NO_ADDRESS = "no address of http or https"
NOT_LISTED = "an address whose host `images.allow_hosts` does not list: it is not fetched"
NOT_PUBLIC = (
    "an address whose host is not on the public network: only an address that "
    "`images.allow_hosts` lists itself may be private"
)
UNKNOWN_HOST = "an address whose host is not known"
LATE = "an address that did not answer within images.fetch_seconds"

_ENTRY = re.compile(r"(\[.+\]|[^:]+)(?::(\d+))?")
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Resolve = Callable[..., list[tuple[Any, ...]]]


def fetch(
    url: str,
    hosts: Sequence[str],
    *,
    max_bytes: int,
    deadline: float,
    resolve: Resolve = socket.getaddrinfo,
) -> bytes:
    """What lies at an address.

    A host is looked up once, and what was looked up is what is asked: a name whose answer changes
    leads nowhere else. Redirects are not followed, and no proxy of the environment is used.

    Args:
        hosts: that may be asked, each with a port where it is not that of the scheme.
        max_bytes: of the answer. deadline: by `time.monotonic`.
        resolve: for tests.

    Raises:
        ImageError: it is not to be fetched, or cannot be.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ImageError(NO_ADDRESS) from None
    host = parsed.raw_host.decode("ascii").lower()
    if parsed.scheme not in _PORTS or not host or parsed.userinfo:
        raise ImageError(NO_ADDRESS)
    port = parsed.port or _PORTS[parsed.scheme]
    if not any(is_listed(entry, host, port, parsed.scheme) for entry in hosts):
        raise ImageError(NOT_LISTED)
    try:
        answers = resolve(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ImageError(UNKNOWN_HOST) from None
    addresses = [str(answer[4][0]) for answer in answers]
    if not addresses:
        raise ImageError(UNKNOWN_HOST)
    if not _is_literal(host) and not all(map(is_public, addresses)):
        raise ImageError(NOT_PUBLIC)
    return _read(parsed, addresses[0], max_bytes, deadline)


def is_listed(entry: str, host: str, port: int, scheme: str) -> bool:
    """Whether an entry of `images.allow_hosts` lists a host at a port."""
    parts = _ENTRY.fullmatch(entry.lower())
    assert parts is not None
    return parts[1].strip("[]") == host and port == int(parts[2] or _PORTS[scheme])


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network, and holds none that is not."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inside = [ip.ipv4_mapped, ip.sixtofour, ip.teredo[1] if ip.teredo else None]
        if ip in _NAT64:
            inside.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        inner = [str(address) for address in inside if address is not None]
        if inner:
            return all(map(is_public, inner))
    return ip.is_global and not ip.is_multicast


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _read(url: httpx.URL, address: str, max_bytes: int, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise ImageError(LATE)
    # Its own name is what the host is told, and what its certificate must be of.
    headers = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"}
    told = {"sni_hostname": url.raw_host.decode("ascii")} if url.scheme == "https" else {}
    content = bytearray()
    try:
        with (
            httpx.Client(trust_env=False, follow_redirects=False, timeout=left) as client,
            client.stream(
                "GET", url.copy_with(host=address), headers=headers, extensions=told
            ) as answer,
        ):
            if answer.status_code != 200:
                raise ImageError(f"an address that answers {answer.status_code}")
            for piece in answer.iter_raw():
                content += piece
                if len(content) > max_bytes:
                    raise ImageError(TOO_MANY_BYTES)
                if time.monotonic() > deadline:
                    raise ImageError(LATE)
    except httpx.TimeoutException:
        raise ImageError(LATE) from None
    except httpx.HTTPError as error:
        raise ImageError(f"an address that cannot be fetched ({type(error).__name__})") from None
    return bytes(content)
