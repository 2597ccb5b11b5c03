"""Which URIs may be fetched, and which addresses their hosts may have; no I/O."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

_PORTS = {"http": 80, "https": 443}
# urlsplit drops some characters silently, so that what is checked would not be what is asked for.
_PLAIN = re.compile(r"[\x21-\x7e]+")
_ESCAPED_MARKS = re.compile(r"%(?:2e|2f|5c|00)", re.IGNORECASE)
# Addresses that carry another address inside, which somebody on the way would go on to.
_CARRYING = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
NOT_ALLOWED = "this server's operator does not allow this URI; upload the file and give its artifact_id"


@dataclass(frozen=True)
class UriPolicy:
    """What the operator allows: prefixes of URIs, and networks of hosts besides the public Internet."""

    prefixes: tuple[str, ...]
    networks: tuple[str, ...] = ()

    def refusal(self, uri: str) -> str | None:
        """Returns why the URI may not be fetched, or None."""
        if not self.prefixes:
            return "this server reads no URIs; upload the file and give its artifact_id"
        try:
            parts = parse(uri)
        except ValueError as error:
            return str(error)
        return None if self.prefix_of(parts) is not None else NOT_ALLOWED

    def prefix_of(self, parts: SplitResult) -> SplitResult | None:
        """Returns the allowed prefix that the URI lies under, or None."""
        for prefix in map(urlsplit, self.prefixes):
            if _origin(prefix) == _origin(parts) and parts.path.startswith(prefix.path):
                return prefix
        return None

    def allows_address(self, address: str) -> bool:
        """Whether a host may have this IP address: a public one, or one of the operator's networks."""
        found = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        if any(found in ipaddress.ip_network(network) for network in self.networks):
            return True
        if any(found in network for network in _CARRYING):
            return False
        is_special = found.is_multicast or found.is_reserved or found.is_unspecified or found.is_loopback
        return found.is_global and not is_special and not found.is_link_local and not found.is_private


def parse(uri: str) -> SplitResult:
    """Splits a URI of a file.

    Raises:
        ValueError: it is written so that two readers may understand it differently; says what to change.
    """
    if _PLAIN.fullmatch(uri) is None or "\\" in uri:
        raise ValueError("must be printable ASCII without spaces and backslashes")
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise ValueError("is not a URI") from error
    if "@" in parts.netloc:
        raise ValueError("must not carry a user name or password")
    if "#" in uri:
        raise ValueError("must not have a fragment")
    segments = unquote(parts.path).split("/")
    if _ESCAPED_MARKS.search(parts.path) or {".", ".."} & set(segments):
        raise ValueError("its path must be plain: no `.` or `..`, and no escaped dots and slashes")
    return parts


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(scheme, 0)
