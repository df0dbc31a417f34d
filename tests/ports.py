"""Ports where the ranks of a job meet."""

import os
import random
import socket

# Below those that the system gives to whoever connects: one of these may be taken in the moment
# between a look at it and its use.
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """One that nobody listens at.

    Several test processes ask at the same time: each has ports of its own, so that none is taken by
    another between a look at it and its use.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = _PORTS[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
    while True:
        port = random.SystemRandom().choice(own)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
