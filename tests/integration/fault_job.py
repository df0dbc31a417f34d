"""Runs on a rank: training into which one fault is put, at one iteration, on one rank.

Ranks can take themselves for a node of their own, so that each log has to have the message. Times
are of the clock that all processes of a machine share.
"""

import ctypes
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ITERATION = 3
SECONDS = 6.0
"""How long what stands still does so, where the job is to go on."""
HAPPENED = "happened"
"""File with the time of the fault."""
SHIFT = 3600.0


class Fault:
    """What happens on this rank: once, and noted."""

    def __init__(self, folder: Path, how: str, options: dict[str, str]) -> None:
        self.folder, self.how, self.options = folder, how, options
        self.due = True

    def now(self) -> bool:
        """Is this the iteration, for the first time?"""
        from megatron.training import get_args

        if self.due and getattr(get_args(), "curr_iteration", None) == ITERATION - 1:
            self.happens()
            return True
        return False

    def happens(self) -> None:
        self.due = False
        (self.folder / HAPPENED).write_text(str(time.monotonic()))


def train(folder: str, argv: list[str], rank: int, how: str, options: dict[str, str]) -> None:
    """``grove_megatron.pretrain`` with the fault ``how`` on ``rank``; -1: on all ranks."""
    from megatron.core.datasets.gpt_dataset import MockGPTLowLevelDataset

    from grove_megatron import pretrain

    here = int(os.environ["RANK"])
    os.environ["GROUP_RANK"] = str(here % int(options["nodes"]))
    MockGPTLowLevelDataset.size = 1000
    sys.argv = ["pretrain", *argv]
    if rank in (here, -1):
        HOW[how](Fault(Path(folder), how, options))
    pretrain.main()


# --------------------------------------------------------------------- what the forward pass does


def _in_forward(act: Callable[[Fault], None]) -> Callable[[Fault], None]:
    def install(fault: Fault) -> None:
        from grove_megatron.moe.layer import GroveMoELayer

        original = GroveMoELayer.routed_experts_compute

        def routed_experts_compute(self: Any, *args: Any) -> Any:
            if fault.now():
                act(fault)
            return original(self, *args)

        GroveMoELayer.routed_experts_compute = routed_experts_compute  # type: ignore[method-assign]

    return install


def _on_output(act: Callable[[Any], Any]) -> Callable[[Fault], None]:
    """``act`` on the gradient of a layer's output."""

    def install(fault: Fault) -> None:
        from grove_megatron.moe.layer import GroveMoELayer

        original = GroveMoELayer.routed_experts_compute

        def routed_experts_compute(self: Any, *args: Any) -> Any:
            y, bias = original(self, *args)
            if fault.now():
                y.register_hook(act)
            return y, bias

        GroveMoELayer.routed_experts_compute = routed_experts_compute  # type: ignore[method-assign]

    return install


def _kill(_: Fault) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(_: Fault) -> None:
    """Another process wakes this one up again."""
    wake = "import os, signal, sys, time; time.sleep(float(sys.argv[1])); "
    wake += "os.kill(int(sys.argv[2]), signal.SIGCONT)"
    subprocess.Popen([sys.executable, "-c", wake, str(SECONDS), str(os.getpid())])
    os.kill(os.getpid(), signal.SIGSTOP)


def _terminate(_: Fault) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _raise(_: Any) -> None:
    raise RuntimeError("ran into a wall")


def _loop(_: Fault) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        pass


def _memory(_: Fault) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    bytearray(2**30)


def _cuda_memory(_: Fault) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _leave(_: Fault) -> None:
    sys.exit(0)


def _leave_at_once(_: Fault) -> None:
    os._exit(0)


def _close_stdout(_: Fault) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def _drop_connection(_: Fault) -> None:
    """The kernel drops every packet that comes from rank 0's hub, acknowledgements too."""
    from grove_megatron.failure import watch

    member = watch._watch.member
    assert member is not None
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
    program = struct.pack("HL", 1, ctypes.addressof(nothing))
    so_attach_filter = 26
    member.lines.connection.setsockopt(socket.SOL_SOCKET, so_attach_filter, program)


def _read_only(fault: Fault) -> None:
    remount = ["mount", "-o", "remount,ro", fault.options["disk"]]
    subprocess.run(remount, check=True)


def _fill(fault: Fault) -> None:
    with open(f"{fault.options['disk']}/filling", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def _cut_data(fault: Fault) -> None:
    os.truncate(fault.options["data"], 0)


def _other_size(fault: Fault) -> None:
    """Both ranks call it; one gives more."""
    import torch

    mine = 64 if os.environ["RANK"] == fault.options["rank"] else 16
    torch.distributed.all_reduce(torch.ones(mine))


# ------------------------------------------------------------------------------------ elsewhere


def _nan_weights(fault: Fault) -> None:
    from grove_megatron.moe.router import GroveRouter

    original = GroveRouter.forward

    def forward(self: Any, *args: Any, **named: Any) -> Any:
        if fault.now():
            self.weight.data[1, :3] = float("nan")
        return original(self, *args, **named)

    GroveRouter.forward = forward  # type: ignore[method-assign]


def _in_hook(fault: Fault) -> None:
    from grove_megatron.moe import layer

    original = layer.GroveMoELayer.__init__

    def __init__(self: Any, *args: Any, **named: Any) -> None:
        original(self, *args, **named)
        self.register_forward_hook(lambda *_: _raise(None) if fault.now() else None)

    layer.GroveMoELayer.__init__ = __init__  # type: ignore[method-assign]


def _in_data(fault: Fault) -> None:
    """Each rank reads as many samples an iteration as there are microbatches; rank by rank."""
    from megatron.core.datasets.gpt_dataset import GPTDataset

    original = GPTDataset.__getitem__
    of_iteration = int(fault.options["samples"])

    def __getitem__(self: Any, index: Any) -> Any:
        if index is not None and index >= of_iteration * (ITERATION - 1) and fault.due:
            fault.happens()
            raise RuntimeError("ran into a wall")
        return original(self, index)

    GPTDataset.__getitem__ = __getitem__


def _in_optimizer(fault: Fault) -> None:
    from megatron.core.optimizer import optimizer

    for kind in (optimizer.FP32Optimizer, optimizer.Float16OptimizerWithFloat16Params):
        original = kind.step_with_ready_grads

        def step(self: Any, original: Any = original) -> Any:
            if fault.now():
                _raise(None)
            return original(self)

        kind.step_with_ready_grads = step


def _slow_disk(fault: Fault) -> None:
    """The second save's writer sleeps before it writes, as one that a disk does not serve."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    write = filesystem_async.FileSystemWriterAsync.write_preloaded_data
    state = {"save": 0}

    def slow(*args: Any, **named: Any) -> Any:
        if state["save"] == 2:
            time.sleep(SECONDS)
        return write(*args, **named)

    _at_saves(fault, state)
    filesystem_async.FileSystemWriterAsync.write_preloaded_data = staticmethod(slow)


def _full_disk(fault: Fault) -> None:
    """There is room for one checkpoint: the second save meets the end of it."""
    _at_saves(fault, {"save": 0})


def _at_saves(fault: Fault, state: dict[str, int]) -> None:
    """The second is the fault's; ``state`` counts them."""
    from megatron.training import training

    save = training.save_checkpoint

    def save_checkpoint(*args: Any, **named: Any) -> Any:
        state["save"] += 1
        if state["save"] == 2:
            fault.happens()
        return save(*args, **named)

    training.save_checkpoint = save_checkpoint


def _flags(fault: Fault) -> None:
    fault.happens()
    sys.argv += ["--lr", "1e-4"]


def _version(fault: Fault) -> None:
    from grove_megatron.training import same_flags

    original = same_flags.installed_version
    fault.happens()
    same_flags.installed_version = lambda name: "2.99.0" if name == "torch" else original(name)


def _clock(fault: Fault) -> None:
    fault.happens()
    now = time.time
    time.time = lambda: now() + SHIFT


def _before(fault: Fault) -> None:
    """What is wrong was so before the start."""
    fault.happens()


HOW: dict[str, Callable[[Fault], None]] = {
    "kill": _in_forward(_kill),
    "stop": _in_forward(_stop),
    "terminate": _in_forward(_terminate),
    "raise": _in_forward(_raise),
    "raise_backward": _on_output(_raise),
    "nan_gradient": _on_output(lambda gradient: gradient * float("nan")),
    "loop": _in_forward(_loop),
    "memory": _in_forward(_memory),
    "cuda_memory": _in_forward(_cuda_memory),
    "leave": _in_forward(_leave),
    "leave_at_once": _in_forward(_leave_at_once),
    "close_stdout": _in_forward(_close_stdout),
    "drop_connection": _in_forward(_drop_connection),
    "read_only": _in_forward(_read_only),
    "fill": _in_forward(_fill),
    "cut_data": _in_forward(_cut_data),
    "other_size": _in_forward(_other_size),
    "nan_weights": _nan_weights,
    "hook": _in_hook,
    "data": _in_data,
    "optimizer": _in_optimizer,
    "slow_disk": _slow_disk,
    "full_disk": _full_disk,
    "flags": _flags,
    "version": _version,
    "clock": _clock,
    "before": _before,
}
