"""``python -m grove_megatron.agent``: torchrun for one node, which ends as a scheduler expects.

Takes torchrun's options, and not its variables PET_*: what runs is what the command line says. What
else is different:

- SIGTERM is passed on to the ranks, and they are waited for. Where all of them save and end with 0
  the agent does so too, so that nobody takes it for a failure; torchrun then ends with 1. What
  still runs after ``--grace-seconds`` is killed, with all processes that it started. Nothing is
  started again.
- A job that a rank has refused (exit code 2) ends with 2, so that nobody tries it again; torchrun's
  code is 1 for everything.
- ``--end-with-stdin``: the end of the standard input is a SIGTERM. So the ranks of a node end when
  the connection that they were started over is lost.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

_LOOK_SECONDS = 0.1
REFUSED = 2


def main() -> int:
    """Run the agent; its exit code: 0, 1, 2 of a refusal, 143 after SIGTERM."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]  # torchrun's parser takes its defaults from them
    parser = get_args_parser()
    parser.add_argument("--grace-seconds", type=float, default=60.0)
    parser.add_argument("--end-with-stdin", action="store_true")
    # SIGTERM is handled here, the others are torchrun's as ever.
    parser.set_defaults(signals_to_handle="SIGINT,SIGHUP,SIGQUIT")
    launch = parser.parse_args()
    ending = _Ending(launch.grace_seconds)
    signal.signal(signal.SIGTERM, ending.asked)
    if launch.end_with_stdin:
        _end_with_stdin()
    try:
        run(launch)
    except SignalException as ended:
        return 128 + int(ended.sigval)
    except ChildFailedError as failed:
        codes = [failure.exitcode for failure in failed.failures.values()]
        print(failed, file=sys.stderr, flush=True)
        return REFUSED if REFUSED in codes else 1
    return 0


class _Ending:
    """What SIGTERM does; in the main thread, as all handlers of signals."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._began = False

    def asked(self, number: int, frame: FrameType | None) -> None:
        """Have the ranks end, and torchrun after them.

        Raises:
            SignalException: torchrun's own way to end, unless all ranks have ended well.
        """
        from torch.distributed.elastic.multiprocessing import SignalException

        if self._began:
            return
        self._began = True
        ranks = _ranks()
        print(
            f"grove_megatron: SIGTERM; {len(ranks)} ranks of this node have "
            f"{self._grace_seconds:g} s to end",
            file=sys.stderr,
            flush=True,
        )
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_seconds
        # torchrun must not see one that fails now: it would start all again.
        codes = [_code(rank) for rank in ranks]
        while None in codes and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            codes = [_code(rank) for rank in ranks]
        for rank in ranks:
            # torchrun makes each the first of a session: with what it has started itself.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank, signal.SIGKILL)
        if late := codes.count(None):
            print(f"grove_megatron: {late} ranks killed", file=sys.stderr, flush=True)
        if ranks and codes == [0] * len(ranks):
            return
        text = f"process {os.getpid()} got signal {number}"
        raise SignalException(text, signal.Signals(number))


def _ranks() -> list[int]:
    """Processes of the ranks of this node."""
    children: list[int] = []
    for task in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, task.read_text().split())
    found = []
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(child) == child:
                found.append(child)
    return found


def _code(rank: int) -> int | None:
    """Exit code of a child that has ended; torchrun can still ask for it."""
    try:
        ended = os.waitid(os.P_PID, rank, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 1  # asked for in between, and torchrun knows
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status


def _end_with_stdin() -> None:
    """SIGTERM to this process once its standard input ends; the ranks get an empty one."""
    given = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(given, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=read, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
