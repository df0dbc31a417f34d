"""Run tests of Triton kernels in a process of their own.

Triton looks at TRITON_INTERPRET when it is imported and when a kernel is defined, and pytest may
have imported it long before. So the test functions marked here run in a child that has the
variable from its start; this process is left as it is.
"""

import functools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor


def interpreted(test: Callable[..., None]) -> Callable[..., None]:
    """The kernels run as Python on the CPU, and are watched for what memory they touch."""

    @functools.wraps(test)
    def watched(**arguments: object) -> None:
        from .triton_memory import memory_checked

        with memory_checked():
            test(**arguments)

    return _elsewhere(watched, "1")


def compiled(test: Callable[..., None]) -> Callable[..., None]:
    """The kernels are what a GPU gets; they can be compiled without one."""
    return _elsewhere(test, "0")


def _elsewhere(test: Callable[..., None], interpret: str) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**arguments: object) -> None:
        if os.environ.get(_MARK) == interpret:
            test(**arguments)
        else:
            _process(interpret).submit(run, **arguments).result()

    return run


_MARK = "GROVE_TRITON_TEST_PROCESS"


@functools.cache
def _process(interpret: str) -> ProcessPoolExecutor:
    """One for all tests of the kind: importing torch and triton takes seconds."""
    return ProcessPoolExecutor(
        max_workers=1,
        # Not a fork: that would inherit an imported triton.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare,
        initargs=(interpret,),
    )


def _prepare(interpret: str) -> None:
    os.environ.update({"TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1", _MARK: interpret})
