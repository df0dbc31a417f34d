"""How every command of this package begins: check the installation, then choose the runtime."""

import contextlib
import io
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..compat import environment_problems
from ..runtime import runtime_problems, selected
from .refuse import refuse


@contextmanager
def started(*, say: bool = True) -> Iterator[None]:
    """Refuse an installation or machine that cannot work, else run the block under the runtime.

    Args:
        say: which runtime it is.
    """
    # Asking about CUDA imports torch, which environment_problems may find missing.
    if problems := environment_problems() or runtime_problems():
        refuse(problems)
    with selected(say=say):
        yield


def alone() -> None:
    """Outside torchrun: a job of one process."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Megatron's start-up listings off the screen; show stdout's if the command fails."""
    listing = io.StringIO()
    # A list of all parameters, for every model.
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(listing):
            yield
    except BaseException as error:
        if not isinstance(error, SystemExit):
            print(listing.getvalue(), file=sys.stderr)
        raise
    finally:
        logging.disable(logging.NOTSET)
