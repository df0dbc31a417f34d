"""Where the ranks of one attempt meet: a part of the job's store that no earlier attempt has used.

torchrun keeps its store when it starts all ranks again (``--max-restarts``), with everything the
ended ranks wrote. A rank that asks it for another's address, or for NCCL's id, gets the answer of a
process that is gone, unless that other came first. The restart counts of torchrun's agents do not
tell attempts apart: an agent whose ranks are started again because another's failed counts nothing.
So every rank says hello with a word that nobody has said before, and rank 0 answers that word.
"""

import secrets
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

_PREFIX = "grove_megatron/attempt"
_HELLOS = f"{_PREFIX}/hellos"
_LOOK_SECONDS, _LOOK_SECONDS_OF_MANY = 0.05, 0.4


def store_of_attempt(
    store: Any,
    rank: int,
    world_size: int,
    timeout: timedelta,
    *,
    first: Mapping[str, str] | None = None,
    everybody: bool = True,
) -> Any:
    """A part of ``store`` for this attempt; every rank must call, and gets the same.

    Args:
        store: of the launcher; an earlier attempt may have used it.
        timeout: how long to wait for the other ranks.
        first: what rank 0 puts into the part, to be found by every rank that comes.
        everybody: wait for all ranks; else, on a rank but the first, for rank 0 alone.

    Raises:
        torch.distributed.DistError: they did not come.
    """
    if rank:
        return _part(store, _join(store, rank, timeout, everybody))
    name = secrets.token_hex(8)
    part = _part(store, name)
    for key, value in (first or {}).items():
        part.set(key, value)
    _gather(store, name, world_size, timeout)
    return part


def _part(store: Any, name: str) -> Any:
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    return PrefixStore(f"{_PREFIX}/{name}/store", store)


def _gather(store: Any, name: str, world_size: int, timeout: timedelta) -> None:
    """Rank 0: answer everybody who comes until all of this attempt have heard it."""
    import torch.distributed as dist

    deadline = time.monotonic() + timeout.total_seconds()
    answered: set[str] = set()
    store.append(_HELLOS, "")
    while (come := store.add(_came(name), 0)) < world_size - 1:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(
                f"{world_size - 1 - come} of {world_size} ranks did not come within {timeout}"
            )
        for word in _words(store.get(_HELLOS).decode().split()) - answered:
            store.set(_answer(word), name)
            answered.add(word)
        time.sleep(_LOOK_SECONDS)
    store.set(_all(name), "")


def _words(hellos: Iterable[str]) -> set[str]:
    """The last word of every rank; those before it are of ended attempts."""
    return set(dict(hello.split(":") for hello in hellos).values())


def _join(store: Any, rank: int, timeout: timedelta, everybody: bool) -> str:
    """Say hello, and hear the answer of a rank 0, that then sees ``everybody``."""
    import torch.distributed as dist

    deadline = time.monotonic() + timeout.total_seconds()
    word = secrets.token_hex(8)
    store.append(_HELLOS, f"{rank}:{word} ")
    store.wait([_answer(word)], timeout)
    heard: set[str] = set()
    pause = _LOOK_SECONDS
    while True:
        # Again, as the rank 0 that gave it may have ended; another gives another answer.
        name: str = store.get(_answer(word)).decode()
        if name not in heard:
            store.add(_came(name), 1)
            heard.add(name)
        # store.wait would log every time in vain.
        if not everybody or store.check([_all(name)]):
            return name
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"not all ranks came within {timeout}")
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_SECONDS_OF_MANY)


def _answer(word: str) -> str:
    return f"{_PREFIX}/answer/{word}"


def _came(name: str) -> str:
    return f"{_PREFIX}/{name}/came"


def _all(name: str) -> str:
    return f"{_PREFIX}/{name}/all"
