"""What the network gives: pairs of nodes, pairs of ranks of a node, and the job's all-to-all.

Every byte is compared with what its sender was to send. Ranks begin every round together, so that
pairs of one do not meet those of another.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

_TIMED = 5
_MOST_TIMED = 20
_STEP = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What this rank measured with another.

    Attributes:
        seconds: of a message each way, the median of several.
        wrong: did other bytes arrive than were sent?
    """

    other: int
    seconds: float
    wrong: bool


def send_receive(out: Tensor, into: Tensor, other: int) -> None:
    """A message to another rank while one comes back; on CUDA until it has arrived.

    Args:
        out, into: [N] int64, what is sent and where what comes is put.
    """
    both = [dist.P2POp(dist.isend, out, other), dist.P2POp(dist.irecv, into, other)]
    for work in dist.batch_isend_irecv(both):
        work.wait()
    _finish(out.device)


def all_to_all(out: Tensor, into: Tensor, group: dist.ProcessGroup) -> None:
    """Equal parts to and from every rank of a group; on CUDA until they have arrived.

    Args:
        out, into: [ranks x N] int64, by rank.
    """
    dist.all_to_all_single(into, out, group=group)
    _finish(out.device)


def measure_pairs(
    rounds: Sequence[dict[int, int]], message: int, seconds: float, device: torch.device
) -> tuple[list[Heard], int]:
    """Pairs of ranks, round by round, as many as there is time for; every rank must call.

    Args:
        rounds: the partner of every rank that has one, see :mod:`.rounds`.
        message: bytes, each way.
        seconds: after which no round is begun but the first.

    Returns:
        What this rank measured, and how many rounds there were.
    """
    rank, begun, found, done = dist.get_rank(), time.monotonic(), [], 0
    for partners in rounds:
        if _latest(time.monotonic() - begun, device) > seconds and done:
            break
        if rank in partners:
            found.append(_measure_pair(partners[rank], message, device))
        done += 1
    return found, done


def _measure_pair(other: int, message: int, device: torch.device) -> Heard:
    rank, times, wrong = dist.get_rank(), [], False
    out, expected = _pattern(rank, other, message, device), _pattern(other, rank, message, device)
    into = torch.empty_like(expected)
    for turn in range(1 + _TIMED):
        into.zero_()
        _finish(device)
        begun = time.perf_counter()
        send_receive(out, into, other)
        # The first connects, and lets both begin the next together.
        times += [time.perf_counter() - begun] if turn else []
        wrong |= not torch.equal(into, expected)
        # Not what came before, kept somewhere on the way.
        out += _STEP
        expected += _STEP
    return Heard(other=other, seconds=median(times), wrong=wrong)


def measure_crossing(
    groups: Sequence[Sequence[int]], message: int, seconds: float, device: torch.device
) -> tuple[float, list[int]]:
    """The all-to-all of all expert-parallel groups at once, as in training; every rank must call.

    Args:
        groups: ranks, each in one of them.
        message: bytes from every rank to every other of its group.
        seconds: to be spent, about; at least one is measured.

    Returns:
        Seconds of one, the median on this rank, and the ranks that other bytes came from.
    """
    rank = dist.get_rank()
    (mine,) = (list(ranks) for ranks in groups if rank in ranks)
    group = dist.new_group(mine, use_local_synchronization=True)
    assert group is not None
    out = torch.cat([_pattern(rank, other, message, device) for other in mine])
    expected = torch.cat([_pattern(other, rank, message, device) for other in mine])
    into = torch.empty_like(expected)
    wrong: set[int] = set()

    def once() -> float:
        into.zero_()
        _finish(device)
        begun = time.perf_counter()
        all_to_all(out, into, group)
        took = time.perf_counter() - begun
        pieces = zip(mine, into.chunk(len(mine)), expected.chunk(len(mine)), strict=True)
        wrong.update(other for other, got, sent in pieces if not torch.equal(got, sent))
        return took

    once()  # connects
    _latest(0.0, device)
    first = once()
    # Everybody the same number of times.
    left = int(seconds / max(_latest(first, device), 1e-6))
    times = [first] + [once() for _ in range(min(left, _MOST_TIMED))]
    dist.destroy_process_group(group)
    return median(times), sorted(wrong)


def _pattern(source: int, target: int, count: int, device: torch.device) -> Tensor:
    """[N] int64 of ``count`` bytes, 8 at least, that no other pair of ranks sends."""
    words = torch.arange(max(1, count // 8), dtype=torch.int64, device=device)
    return words * 2_654_435_761 + (source << 42) + (target << 21)


def _latest(seconds: float, device: torch.device) -> float:
    """The largest of all ranks, once all have come."""
    largest = torch.tensor([seconds], dtype=torch.float64, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest.item())


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
