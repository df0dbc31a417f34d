"""Ports where the ranks of a job meet."""

import random
import socket

# Below those that the system gives to whoever connects: one of these may be taken in the moment
# between a look at it and its use.
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """One that nobody listens at; several test processes ask at the same time."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
