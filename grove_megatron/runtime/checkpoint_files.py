"""Files of a checkpoint folder that must be right whenever the job may be killed.

``latest_checkpointed_iteration.txt`` (the tracker) names the checkpoint to resume from; the file
``metadata.json``, which Megatron writes last, marks a complete one.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import IO, Any

from ..checkpoint.layout import COMPLETE, INDEX, TRACKER
from ..failure.orphans import end_with_parent


def with_atomic_tracker(original: Any) -> Any:
    """The file access of Megatron's checkpointing, with a tracker that is old or new, never empty.

    Args:
        original: Megatron's ``maybe_msc``.
    """
    from megatron.core.msc_utils import MultiStorageClientFeature

    class AtomicTracker(type(original)):  # type: ignore[misc]
        """Megatron's choice between local files and a storage client."""

        def open(self, path: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
            client = MultiStorageClientFeature.is_enabled()
            if client or mode != "w" or os.path.basename(path) != TRACKER:
                return self.__getattr__("open")(path, mode, *args, **named)
            return _replaced(path)

    return AtomicTracker()


@contextmanager
def _replaced(path: str) -> Iterator[IO[str]]:
    """A text file to write, that takes the place of ``path`` once it is complete."""
    new = f"{path}.new"
    with open(new, "w") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def invalidate_before_save(original: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement of ``dist_checkpointing.save``."""

    def save(sharded_state_dict: Any, checkpoint_dir: Any, *args: Any, **named: Any) -> Any:
        """As Megatron's; a folder that is written over is not complete until it is again."""
        import torch
        from megatron.core.msc_utils import MultiStorageClientFeature

        if torch.distributed.get_rank() == 0 and not MultiStorageClientFeature.is_enabled():
            for name in (COMPLETE, INDEX):
                (Path(checkpoint_dir) / name).unlink(missing_ok=True)
        # No rank may write before.
        torch.distributed.barrier()
        return original(sharded_state_dict, checkpoint_dir, *args, **named)

    return save


def with_manager_that_ends(original: Callable[..., Any]) -> Callable[..., Any]:
    """The queue of the processes that write a checkpoint, whose own process ends with this one."""

    def get_write_results_queue(mp_mode: str = "spawn") -> Any:
        from megatron.core.dist_checkpointing.strategies import filesystem_async

        from . import cpu_is_active

        if filesystem_async._results_queue is None:
            # Spawned, it imports Megatron, for every rank, before the first save goes on. Without
            # CUDA a fork does, if it cannot outlive the sockets it inherits.
            forked = cpu_is_active() and sys.platform == "linux"
            manager = SyncManager(ctx=multiprocessing.get_context("fork" if forked else mp_mode))
            manager.start(end_with_parent)
            # The queue keeps its manager, as Megatron's does.
            filesystem_async._results_queue = manager.Queue()
        return original(mp_mode)

    return get_write_results_queue
