"""How every command of this package begins: check the installation, then choose the runtime."""

import contextlib
import io
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..checks.problem import Problem
from ..compat import environment_problems
from ..runtime import runtime_problems, selected
from .launchers import announce, take_ranks
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


# What launchers that are not known here say of a process's job, which Megatron does not read.
_LAUNCHERS = ("WORLD_SIZE", "PMI_SIZE")


def alone() -> None:
    """Outside torchrun: a rank of srun's or mpirun's, or a job of one process.

    Started several times by a launcher that is not known here, each process would train a model of
    its own, into the same folder: that is refused.
    """
    found, line, problems = take_ranks(os.environ)
    if problems:
        refuse(problems)
    if found:
        os.environ |= found
        announce(found, line)
    if "RANK" in os.environ:
        return
    for name in _LAUNCHERS:
        if os.environ.get(name, "1") not in ("", "1"):
            text = (
                f"is needed beside {name} ({os.environ[name]}); start the job with torchrun, or "
                "set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT of every process"
            )
            refuse([Problem("RANK", "unset", text)])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
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
