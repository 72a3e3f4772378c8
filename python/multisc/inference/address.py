"""Addresses of the link: which are valid, and which stay on this machine."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from multisc.errors import BadInputError

DEFAULT_ADDRESS = "tcp://127.0.0.1:5555"


@dataclass(frozen=True)
class Address:
    """A TCP end point.

    Args:
        host: an IP address, a host name, or "*" (every interface of this machine).
        port: 0 to 65535; 0 lets the system pick one when binding.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``tcp://HOST:PORT``; an IPv6 host stands in brackets.

        Raises:
            BadInputError: when it is anything else.
        """
        wanted = f"address {text!r}: must be tcp://HOST:PORT, such as {DEFAULT_ADDRESS}"
        host, colon, port = text.removeprefix("tcp://").rpartition(":")
        if not text.startswith("tcp://") or not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise BadInputError(wanted)
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            try:
                ipaddress.IPv6Address(host)
            except ValueError:
                raise BadInputError(wanted) from None
        elif not host or not all(c.isascii() and (c.isalnum() or c in ".-_*") for c in host):
            raise BadInputError(wanted)
        # ZeroMQ binds to numbers only, and the name may resolve to IPv6 first.
        return cls("127.0.0.1" if host == "localhost" else host, int(port))

    def __str__(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if self.is_ipv6 else f"tcp://{self.host}:{self.port}"

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 number."""
        return ":" in self.host

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can be at the other end; False for names other than localhost."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
