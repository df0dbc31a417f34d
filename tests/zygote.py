"""Start ranks by forking a process that has already imported Megatron.

Importing Megatron takes 10 to 18 seconds a process; forking takes none. The zygote reads one JSON
job per line from stdin, forks the ranks, waits, and answers with one JSON line of exit codes.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback

from tests.ports import free_port
from tests.sources import read_sources_once

GRACE_SECONDS = 60.0


def _serve() -> None:
    from grove_megatron.runtime.gpu_packages import hide_gpu_packages

    if os.environ["GROVE_RUNTIME"] == "cpu":
        # The ranks enter the CPU runtime when Megatron is imported already.
        hide_gpu_packages()
    # What every training imports on its way, tokenizers with transformers above all.
    import megatron.core.datasets.gpt_dataset
    import megatron.core.tokenizers.text.text_tokenizer
    import megatron.training  # noqa: F401
    import torch

    import grove_megatron.training.launch  # noqa: F401

    torch.set_num_threads(1)
    # A shell has what it starts with & ignore it, and every rank would.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _spare_the_ranks()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answer, flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), file=answer, flush=True)


def _spare_the_ranks() -> None:
    """What costs every rank a second and computes nothing that a test is about."""
    import gc

    from grove_megatron.runtime.__main__ import patch_sets
    from grove_megatron.training.megatrons_flags import megatrons_flags

    read_sources_once()
    megatrons_flags()
    # Sources of what is patched.
    for patches in patch_sets():
        patches.check()
    # A collection of garbage in a rank would visit, and so copy, all that was imported.
    gc.collect()
    gc.freeze()


def _run(job: dict) -> list[int]:
    port = free_port()
    children = [_fork(job, rank, port) for rank in range(job["ranks"])]
    return _wait(children, job["timeout"])


def _fork(job: dict, rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        log = os.open(f"{job['folder']}/rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(job["ranks"]),
            "LOCAL_WORLD_SIZE": str(job["ranks"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **job["env"],
        }
        module, _, function = job["target"].partition(":")
        getattr(importlib.import_module(module), function)(*job["args"])
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _wait(children: list[int], timeout: float) -> list[int]:
    """Exit codes of all ranks; once one has failed the others get a grace period."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout
    while len(codes) < len(children):
        for pid in children:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    if codes[pid]:
                        deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if time.monotonic() > deadline:
            for pid in set(children) - set(codes):
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.02)
    for pid in children:
        # What a rank started, such as the manager process of a checkpoint, goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return [codes[pid] for pid in children]


if __name__ == "__main__":
    _serve()
