"""Where this rank is in its work, found when it is asked for: until then nothing is kept of it.

The main thread's Python stack says stage, layer and line; torch's flight recorder says which
collectives have not ended; and the sequence numbers of the process groups say how many have been
called. Reading them takes no lock of the main thread, which may wait for ever.
"""

import contextlib
import json
import math
import os
import re
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

RECORDED = "2000"
"""Entries of torch's flight recorder, as torch has it by itself, from some release on."""

_STORING = ("save", "load", "datasets")
"""Stages in which bytes of files are progress; elsewhere a log file would be."""
_CALLED_BYTES = 1 << 20
"""So many of any read or write are progress: a day of questions for a mark reads less."""

# What encloses others, then what is looked for from the innermost frame on.
_PHASES = (
    ("save", r":(save_checkpoint|maybe_finalize_async_save)$"),
    ("load", r":load_checkpoint$"),
    ("datasets", r":build_train_valid_test_data_iterators$"),
)
_PIPELINE = "pipeline stages"
_STAGES = (
    ("router", r"/moe/.*(\.route|Router\.forward)$"),
    ("dispatch", r"/moe/.*\.(preprocess|dispatch|dispatch_\w+|token_dispatch)$"),
    ("experts", r"/moe/.*\.routed_experts_compute$"),
    ("shared experts", r"/moe/.*\.shared_experts_compute$"),
    ("combine", r"/moe/.*\.(combine|combine_\w+|token_combine|postprocess)$"),
    ("attention", r"/transformer/.*Attention\.forward$"),
    ("dense layer", r"/transformer/mlp\.py:MLP\.forward$"),
    ("data loading", r"torch/utils/data/|/core/datasets/|:get_batch\w*$|_dataset\.py:"),
    ("optimizer", r"/core/optimizer/|torch/optim/"),
    # Its forward encloses that of the model.
    ("gradients between ranks", r"/core/distributed/(?!.*\.forward$)"),
    (_PIPELINE, r"/pipeline_parallel/p2p_communication\.py:"),
    ("forward", r"/pipeline_parallel/schedules\.py:forward_step$"),
    ("backward", r"/pipeline_parallel/schedules\.py:backward_step\w*$"),
    ("model", r":setup_model_and_optimizer$"),
    ("start", r":initialize_megatron$"),
    ("training loop", r"/training/training\.py:train(_step)?$"),
)
_PASSES_ON = r"/torch/|/grove_megatron/runtime/|/python3\.\d+/(?!site-packages)|^<"
_BYTES = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2}
_P2P = "send or receive"
_P2P_GROUP = "PIPELINE"
"""In the names of Megatron's groups for sends and receives, which count in their sequence too."""


def record_collectives() -> None:
    """Have torch's flight recorder on, before there is a process group; a user's value holds."""
    # The older name counts too, and torch warns of it.
    if "TORCH_NCCL_TRACE_BUFFER_SIZE" not in os.environ:
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", RECORDED)


def mark(args: Namespace) -> list[Any]:
    """What changes while this rank makes progress, in JSON: compared, and never read.

    Args:
        args: Megatron's, in use.

    Returns:
        what only grows, the iteration and the collectives called so far; while files are written or
        read, a number that grows with their bytes, else 0; and the place: stage, microbatch and
        iteration of an evaluation. So a long save makes progress, and an endless loop none.
    """
    frames = [*_frames()]
    stage = _stage([*map(_place, frames)])
    stored = _bytes_of_files() if stage.rpartition(", ")[2] in _STORING else 0
    # No layer: to look at the locals of its frames keeps tensors alive that the layer lets go of.
    place = f"{stage}, {_microbatch(frames)}, {_local(frames, 'evaluate', 'iteration')}"
    return [[_iteration(args), sum(_sequences(alone=True).values())], stored, place]


def position(args: Namespace) -> dict[str, Any]:
    """The same to be read: what :class:`.stall_table.Row` takes, beside rank and host.

    Args:
        args: Megatron's, in use.
    """
    frames = [*_frames()]
    places = [_place(frame) for frame in frames]
    return {
        "iteration": _iteration(args),
        "microbatch": _microbatch(frames),
        "layer": _layer(frames),
        "stage": _stage(places),
        "at": _line(frames, places),
        "waits": [*_waits(places)],
        "called": {
            group: number for group, number in _sequences().items() if _P2P_GROUP not in group
        },
    }


def _iteration(args: Namespace) -> int:
    """The one that runs, from 1; 0 before training."""
    done = getattr(args, "curr_iteration", None)
    return 0 if done is None else int(done) + 1


# ----------------------------------------------------------------------------------- the stack


def _frames() -> Iterator[FrameType]:
    """The main thread's, innermost first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_code.co_qualname}"


def _stage(places: list[str]) -> str:
    evaluates = any(place.endswith("/training/training.py:evaluate") for place in places)
    before = "evaluation, " if evaluates else ""
    if phase := next(filter(None, map(_phase_of, places)), ""):
        return phase
    return before + (next(filter(None, map(_stage_of, places)), "") or "elsewhere")


@lru_cache(maxsize=4096)
def _phase_of(place: str) -> str:
    return next((name for name, pattern in _PHASES if re.search(pattern, place)), "")


@lru_cache(maxsize=4096)
def _stage_of(place: str) -> str:
    return next((name for name, pattern in _STAGES if re.search(pattern, place)), "")


def _line(frames: list[FrameType], places: list[str]) -> str:
    """File, line and function, of the innermost that only passes on what another calls."""
    ours = (
        frame
        for frame, place in zip(frames, places, strict=True)
        if not re.search(_PASSES_ON, place)
    )
    frame = next(ours, frames[0] if frames else None)
    if frame is None:
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


def _layer(frames: list[FrameType]) -> int | None:
    for frame in frames:
        if "self" in frame.f_code.co_varnames[:1]:
            number = getattr(frame.f_locals.get("self"), "layer_number", None)
            if isinstance(number, int):
                return number
    return None


def _microbatch(frames: list[FrameType]) -> int | None:
    """The one whose forward pass runs, from 0."""
    return _local(frames, "forward_step", "current_microbatch")


def _local(frames: list[FrameType], function: str, name: str) -> int | None:
    """A number that ``function`` of Megatron counts with, if it runs."""
    for frame in frames:
        if frame.f_code.co_name == function:
            number = frame.f_locals.get(name)
            if isinstance(number, int):
                return number
    return None


def _bytes_of_files() -> int:
    """Grows with what this process, and the children that write for it, read and write."""
    pid = os.getpid()
    with contextlib.suppress(OSError):
        children = Path(f"/proc/self/task/{pid}/children").read_text().split()
        return sum(_bytes_of(one) for one in (str(pid), *children))
    return 0


def _bytes_of(pid: str) -> int:
    with contextlib.suppress(OSError):
        said = dict(
            line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines() if line
        )
        # What tmpfs, FUSE and the page cache serve is in no block; asking for the number reads too.
        called = int(said["rchar"]) + int(said["wchar"])
        return int(said["read_bytes"]) + int(said["write_bytes"]) + called // _CALLED_BYTES
    return 0


# ----------------------------------------------------------------------------- process groups


def _groups() -> Iterator[tuple[str, Any, list[int]]]:
    """Of this rank: a name that all its ranks know, the group, its ranks."""
    distributed = sys.modules.get("torch.distributed.distributed_c10d")
    if distributed is None or not distributed.is_initialized():
        return
    world = distributed._world
    for group, name in [*world.pg_names.items()]:
        ranks = world.pg_group_ranks.get(group)
        if ranks:
            yield f"{group.group_desc} {name}", group, sorted(ranks)


def _sequences(*, alone: bool = False) -> dict[str, int]:
    """How many collectives have been called in each group that has seen one.

    Args:
        alone: of groups of one rank too.
    """
    found = {}
    for name, group, ranks in _groups():
        if alone or len(ranks) > 1:
            # A backend without numbers has none.
            with contextlib.suppress(RuntimeError):
                if number := int(group._get_sequence_number_for_group()):
                    found[name] = number
    return found


def _waits(places: list[str]) -> Iterator[dict[str, Any]]:
    """What has not ended, the oldest of each group: as :class:`.stall_table.Wait` takes it."""
    ranks = {name: of for name, _, of in _groups()}
    seen = set()
    for entry in open_calls(_recorded()):
        name, desc = entry["process_group"]
        group = "" if entry["is_p2p"] else f"{desc} {name}"
        if group in seen:
            continue
        seen.add(group)
        seconds = max(0.0, time.time() - int(entry["time_created_ns"]) / 1e9)
        if not group:
            yield {"name": _P2P, "seconds": seconds}
            continue
        yield {
            "name": str(entry["profiling_name"]).rpartition(":")[2],
            "group": group,
            "ranks": _as_ranges(ranks.get(group, [])),
            "size": _size(entry),
            "number": int(entry["collective_seq_id"]),
            "seconds": seconds,
        }
    if seen:
        return
    # Sends and receives of gloo are not recorded; without a recorder nothing is.
    for place in places:
        file, _, name = place.rpartition(":")
        if file.endswith("/distributed_c10d.py") and not name.startswith("_"):
            yield {"name": name.rpartition(".")[2]}
            return
    if _stage(places) == _PIPELINE:
        yield {"name": _P2P}


def _recorded() -> list[dict[str, Any]]:
    """What torch's flight recorder has: of NCCL, and of the others."""
    if "torch.distributed" not in sys.modules:
        return []
    from torch._C import _distributed_c10d

    found: list[dict[str, Any]] = []
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):
        dump = getattr(_distributed_c10d, name, None)  # a torch built without that backend
        if dump is not None:
            with contextlib.suppress(RuntimeError, ValueError):
                found += json.loads(dump(True, False)).get("entries", [])
    return found


def open_calls(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the recorder's that have not ended, the oldest first.

    A call of several at once (``batch_isend_irecv``) has an entry for each, which nobody ends, and
    then one for all, with the same number.
    """
    calls = {}
    for one in sorted(entries, key=lambda one: int(one["time_created_ns"])):
        number = one["p2p_seq_id"] if one["is_p2p"] else one["collective_seq_id"]
        calls[(*one["process_group"], one["is_p2p"], number)] = one
    return [one for one in calls.values() if not one["retired"] and one["state"] != "completed"]


def _as_ranges(ranks: Iterable[int]) -> list[list[int]]:
    """Begin, end and step of each: a group of thousands of ranks is a few of them."""
    found: list[list[int]] = []
    for rank in ranks:
        if found and found[-1][1] == found[-1][0] + 1:
            found[-1][1:] = [rank + 1, rank - found[-1][0]]
        elif found and rank == found[-1][1] - 1 + found[-1][2]:
            found[-1][1] = rank + 1
        else:
            found.append([rank, rank + 1, 1])
    return found


def _size(entry: Mapping[str, Any]) -> int:
    """Bytes that go in."""
    return sum(
        math.prod(shape) * _BYTES.get(dtype, 1)
        for shape, dtype in zip(entry["input_sizes"], entry["input_dtypes"], strict=False)
    )
