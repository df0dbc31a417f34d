"""Runs on a rank: training in which one rank fails in the middle of an iteration."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAILED_AT = "failed_at"
"""File with the time of the failure."""
SAID = "rank 1 ran into a wall"
CHILD_SECONDS = 60
LATE_SECONDS = 4.0
FOLLOW_SECONDS = 2.0
"""How long rank 0 waits here for others to leave with an exit code."""


def _kill() -> None:
    """A child, as data loaders have, outlives it for a while."""
    # The tests of the launcher wait for the end of every process.
    if "TORCHELASTIC_RUN_ID" not in os.environ and os.fork() == 0:
        time.sleep(CHILD_SECONDS)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def _raise() -> None:
    raise RuntimeError(SAID)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def _leave() -> None:
    sys.exit(7)


def _stop_for_a_while() -> None:
    time.sleep(4)


def _spoil(router: Any) -> None:
    router.weight.data[1, :3] = float("nan")


def _kill_node() -> None:
    """The launcher of this rank, and all ranks it has started."""
    launcher = os.getppid()
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    os.kill(launcher, signal.SIGKILL)
    for pid in sorted(map(int, children), key=lambda pid: pid == os.getpid()):
        os.kill(pid, signal.SIGKILL)


FAILURES: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "kill_node": _kill_node,
    "raise": _raise,
    "terminate": _terminate,
    "interrupt": _interrupt,
    "leave": _leave,
    "sleep": _stop_for_a_while,
}


def train_with_nan(folder: str, argv: list[str], rank: int, layer: int, iteration: int) -> None:
    """``grove_megatron.pretrain`` with NaN in the router of ``layer`` from ``iteration`` on.

    Args:
        rank: where it happens; -1: on all ranks that have the layer.
    """
    from grove_megatron import pretrain
    from grove_megatron.moe.router import GroveRouter

    original = GroveRouter.forward

    def forward(self: Any, *args: Any, **named: Any) -> Any:
        from megatron.training import get_args

        here = rank in (-1, int(os.environ["RANK"])) and self.layer_number == layer
        if here and getattr(get_args(), "curr_iteration", None) == iteration - 1:
            (Path(folder) / FAILED_AT).write_text(str(time.time()))
            _spoil(self)
        return original(self, *args, **named)

    GroveRouter.forward = forward  # type: ignore[method-assign]
    sys.argv = ["pretrain", *argv]
    pretrain.main()


def train(folder: str, argv: list[str], rank: int, iteration: int, how: str) -> None:
    """``grove_megatron.pretrain``, whose ``rank`` fails in the forward pass of ``iteration``.

    The other ranks are, or come to be, in a collective with it. When the ranks are started again,
    rank 0 comes after the others.
    """
    from grove_megatron import pretrain
    from grove_megatron.failure import hub
    from grove_megatron.failure.message import EXIT
    from grove_megatron.moe.layer import GroveMoELayer

    hub.FOLLOW_SECONDS[EXIT] = FOLLOW_SECONDS
    original = GroveMoELayer.routed_experts_compute

    def routed_experts_compute(self: Any, *args: Any) -> Any:
        from megatron.training import get_args

        done = getattr(get_args(), "curr_iteration", None)
        failed_at = Path(folder) / FAILED_AT
        if os.environ["RANK"] == str(rank) and done == iteration - 1 and not failed_at.exists():
            failed_at.write_text(str(time.time()))
            FAILURES[how]()
        return original(self, *args)

    GroveMoELayer.routed_experts_compute = routed_experts_compute  # type: ignore[method-assign]
    if os.environ["RANK"] == "0" and (Path(folder) / FAILED_AT).exists():
        time.sleep(LATE_SECONDS)
    sys.argv = ["pretrain", *argv]
    pretrain.main()


def train_with_others(folder: str, entry: str, argv: list[str], more: list[list[str]]) -> None:
    """``grove_megatron.pretrain`` or ``run``, every rank with flags of its own besides."""
    from grove_megatron import pretrain, run

    sys.argv = [entry, *argv, *more[int(os.environ["RANK"])]]
    {"pretrain": pretrain, "run": run}[entry].main()


if __name__ == "__main__":
    folder, rank, iteration, how, *argv = sys.argv[1:]
    train(folder, argv, int(rank), int(iteration), how)
