"""What this rank, and this node, has: asked of the system, of torch and of the files."""

import contextlib
import fcntl
import hashlib
import os
import resource
import shutil
import socket
import struct
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch

from ..checkpoint.layout import is_remote, read_tracker
from ..checks.flags import flag_of
from ..compat import megatron_version
from ..failure.job_store import node, world
from ..training.data_files import prefixes
from .records import Card, Gpu, Node, Rank

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_CHOOSE = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
# Of a file, at its two ends: an index may be gigabytes.
_LOOKED_AT = 2**20
_SIOCGIFADDR = 0x8915


def this_rank(args: Namespace, device: str, cards: tuple[Card, ...], *, speaks: bool) -> Rank:
    """Of this process.

    Args:
        args: Megatron's, parsed.
        device: ``cpu`` or ``cuda``.
        cards: what was asked before any rank touched a GPU.
        speaks: for its node?
    """
    same = {"device": device}
    gpu = None
    if device == "cuda":
        gpu = _gpu()
        same |= {
            "kind of GPU": gpu.name,
            "GPUs of a rank": str(gpu.count),
            "memory of a GPU": f"{gpu.total / 2**30:.1f} GiB",
            "version of CUDA": str(torch.version.cuda),
            "version of NCCL": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
        }
    return Rank(
        rank=world()[0],
        node=node(),
        machine=_machine(),
        same=same,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        gpu=gpu,
        says=_this_node(args, device, cards) if speaks else None,
    )


def _gpu() -> Gpu:
    free, total = torch.cuda.mem_get_info()
    major, minor = torch.cuda.get_device_capability()
    return Gpu(
        name=f"{torch.cuda.get_device_name()}, {major}.{minor}",
        free=free,
        total=total,
        count=torch.cuda.device_count(),
        uuid=str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid),
    )


def _machine() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()


def _this_node(args: Namespace, device: str, cards: tuple[Card, ...]) -> Node:
    hostname = socket.gethostname()
    try:
        resolves = socket.gethostbyname(hostname)
    except OSError:
        resolves = ""
    address = _address_towards(os.environ.get("MASTER_ADDR", "127.0.0.1"))
    shm = Path("/dev/shm")
    return Node(
        hostname=hostname,
        resolves=resolves,
        address=address,
        interface=_interface_of(address),
        chosen={name: os.environ[name] for name in _CHOOSE if name in os.environ},
        memory=_memory(),
        shared_memory=shutil.disk_usage(shm).free if shm.is_dir() else None,
        same=dict(_same(args, device)),
        cards=cards,
    )


def _address_towards(host: str) -> str:
    """Where packets to ``host`` leave from; none is sent."""
    try:
        family, kind, _, _, there = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(there)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def _interface_of(address: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            asked = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)
            except OSError:  # without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


def _memory() -> int:
    """What the system can give, and what the container may still have of it."""
    available = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
    }["MemAvailable"]
    groups = _left_in_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return min([available, *groups])


def _left_in_groups(mine: Path, root: Path) -> Iterator[int]:
    """What the control groups around this process leave it, such as that of a step of Slurm.

    Args:
        mine: says which group it is in; version 2 has one line, ``0::/path``.
        root: where groups are mounted.
    """
    try:
        paths = [line.removeprefix("0::/") for line in mine.read_text().splitlines()]
    except OSError:
        paths = []
    group = root / (paths[0] if len(paths) == 1 else "")
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):
            most = int((folder / "memory.max").read_text())  # or "max"
            used = int((folder / "memory.current").read_text())
            # What is cached of files goes when it is wanted.
            held = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield most - used + int(held.get("inactive_file", 0))
        if folder == root:
            return


def _same(args: Namespace, device: str) -> Iterator[tuple[str, str]]:
    """What has to be the same on every node, by name."""
    package = Path(__file__).parents[1]
    yield "code of grove_megatron", _digest(sorted(package.rglob("*.py")), package)
    megatron = _megatron()
    yield "code of megatron", f"{megatron_version()} {_digest(megatron, Path('/'))}"
    if device == "cuda":
        yield "driver", _driver()
    # By their own names: nodes may mount one folder in different places.
    for flag, path in _files(args):
        yield f"{flag}: {os.path.basename(path)}", _ends(Path(path))
    for flag in ("load", "pretrained_checkpoint"):
        folder = getattr(args, flag)
        if folder and not is_remote(args, folder):
            there = "there" if Path(folder).is_dir() else "not there"
            tracker = read_tracker(folder)
            yield flag_of(flag), f"iteration {tracker}" if tracker else there


def _digest(paths: list[Path], root: Path) -> str:
    """Of the names and the text of files."""
    found = hashlib.sha256()
    for path in paths:
        found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _megatron() -> list[Path]:
    """Where ranks and experts are numbered and rows are sent: what nodes must agree on."""
    import megatron.core

    core = Path(megatron.core.__file__).parent
    return [core / "parallel_state.py", *sorted((core / "transformer").rglob("*.py"))]


def _driver() -> str:
    try:
        said = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError:
        return "not known"
    return " ".join(said.split())


def _files(args: Namespace) -> Iterator[tuple[str, str]]:
    """Flags and files that ranks read, each on its own node."""
    for prefix in dict.fromkeys(prefixes(args)):
        if is_remote(args, prefix):
            continue
        whole = [prefix] if os.path.isfile(prefix) else [prefix + end for end in (".idx", ".bin")]
        yield from (("--data-path", path) for path in whole)
    for name in ("data_args_path", "per_split_data_args_path", "tokenizer_model"):
        path = getattr(args, name, None)
        if path and not is_remote(args, path) and os.path.isfile(path):
            yield flag_of(name), path


def _ends(path: Path) -> str:
    """Size, and a digest of both ends; tokens by size alone, which are many files of gigabytes."""
    try:
        size = path.stat().st_size
        if path.suffix == ".bin":
            return f"{size} bytes"
        with path.open("rb") as file:
            found = hashlib.sha256(file.read(_LOOKED_AT))
            file.seek(max(0, size - _LOOKED_AT))
            found.update(file.read())
    except OSError as error:
        return error.strerror or str(error)
    return f"{size} bytes, {found.hexdigest()[:12]}"
