"""The address that the page is served on."""

from __future__ import annotations

import errno
import ipaddress
import socket

from ..errors import one_line


def check_address(host: str, port: int) -> None:
    """Check the values of --host and --port.

    Raises:
        ValueError: one of them is not accepted.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port: expected 0 to 65535, got {port}; change it.")
    if not host.strip():
        raise ValueError("--host: expected an address, got an empty one; use 127.0.0.1.")


def free_port(host: str, port: int) -> int:
    """Return the port if a server can use it; for port 0 any free one.

    Raises:
        OSError: the port is in use or not allowed, or the host is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
            return listener.getsockname()[1]
    except (OSError, UnicodeError) as error:
        raise unusable_address(host, port, error) from None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def unusable_address(host: str, port: int, error: Exception) -> OSError:
    """Return the error that names the option to change, for an error of a server that cannot start."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRNOTAVAIL or isinstance(error, (socket.gaierror, UnicodeError)):
        return OSError(
            f"--host {host}: expected an address of this machine, got another one; use 127.0.0.1, or 0.0.0.0 for all "
            "addresses."
        )
    if number == errno.EACCES:
        return OSError(
            f"--port {port}: expected a port that you may use, got one that only root may use; choose one above 1023."
        )
    if number in (errno.EADDRINUSE, None):  # None: Gradio's error
        return OSError(
            f"--port {port}: expected a free port, got one that another program uses; stop that program, choose "
            "another port, or pass --port 0 for any free one."
        )
    return OSError(f"--port {port}: cannot be used on {host} ({one_line(error)}); choose another one.")
