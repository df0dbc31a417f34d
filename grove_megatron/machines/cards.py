"""What nvidia-smi says of the GPUs of a node, before the job has touched them."""

import csv
import subprocess
from collections.abc import Callable

from .records import Card

_SECONDS = 30
# Of the reasons for which clocks are held down, those that tell of heat or power:
# nvmlClocksEventReasons of nvml.h.
_SLOWED = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
_ECC, _REASONS = "ecc.errors.uncorrected.volatile.total", "clocks_throttle_reasons.active"
_GPUS = f"--query-gpu=index,uuid,{_ECC},{_REASONS}"
_USERS = "--query-compute-apps=gpu_uuid,pid,process_name,used_memory"

Ask = Callable[[str], str]


def nvidia_smi(query: str) -> str:
    """What it prints to one query, as CSV; empty where it is not there or fails."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def cards(ask: Ask = nvidia_smi) -> tuple[Card, ...]:
    """The GPUs of this node; none where nvidia-smi does not say.

    Args:
        ask: a query of nvidia-smi to what it prints.
    """
    users: dict[str, list[str]] = {}
    for uuid, pid, name, mib in _rows(ask(_USERS), 4):
        users.setdefault(uuid, []).append(f"process {pid} {name} {mib} MiB")
    return tuple(
        Card(
            index=index,
            # torch has it without.
            uuid=uuid.removeprefix("GPU-"),
            uncorrected=int(errors) if errors.isdecimal() else None,
            slowed=_slowed(reasons),
            users=tuple(users.get(uuid, ())),
        )
        for index, uuid, errors, reasons in _rows(ask(_GPUS), 4)
    )


def _rows(printed: str, columns: int) -> list[list[str]]:
    rows = csv.reader(printed.splitlines(), skipinitialspace=True)
    return [row for row in rows if len(row) == columns]


def _slowed(reasons: str) -> tuple[str, ...]:
    try:
        bits = int(reasons, 16)
    except ValueError:  # "[N/A]"
        return ()
    return tuple(name for bit, name in _SLOWED.items() if bits & bit)
