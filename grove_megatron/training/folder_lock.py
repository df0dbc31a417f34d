"""One job at a time writes into a folder: a file in it names the job that does.

Two jobs with one ``--save`` overwrite each other's checkpoints, and both say "successfully saved".
Whether the owner of a lock still lives is known at once on its own machine, from the kernel.
Elsewhere a small process beside the owner (:mod:`.lock_beat`) counts in the file every few seconds,
and whoever sees it unchanged for ``GONE_SECONDS`` takes it over: clocks of machines are not
compared, and no lock outlives its job. A process of its own, as a thread of Python can stand still
for minutes while a dataset is indexed. An owner that was taken for dead and is not hears of it and
ends, before both write.
"""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..checks.problem import Problem
from . import lock_beat

BEAT_SECONDS = 5.0
# File systems of a network may tell what they knew a minute ago.
GONE_SECONDS = 120.0
_LOOK_SECONDS = 0.5
_SETTLE_SECONDS = 1.0
"""Of two that take over one lock, the last to write has it: time for both to have written."""
_JOB_NUMBERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "TORCHELASTIC_RUN_ID")


@dataclass(frozen=True)
class Owner:
    """Who writes into a folder.

    Args:
        job: what the scheduler or launcher calls it, "" if neither names it.
        host: of rank 0.
        machine: the kernel and the set of process numbers that ``pid`` is of.
        pid: of rank 0.
        started: of that process, as the kernel counts; numbers of processes are used again.
        since: UTC, to be read.
        token: of this lock alone.
    """

    job: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    token: str

    def __str__(self) -> str:
        job = f"{self.job}, " if self.job else ""
        return f"{job}process {self.pid} on {self.host}, since {self.since}"

    def has_this_machine(self) -> bool:
        return self.machine == _machine()

    def runs_here(self) -> bool:
        """Does the process run? Known on its own machine alone."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's
        return _started(self.pid) in (self.started, "")


def look(folder: Path, say: Callable[[str], None], *, wait: bool = True) -> Owner | None:
    """The owner of ``folder`` if it lives.

    Args:
        folder: need not exist.
        say: told, in a line, when this takes a while.
        wait: for a sign of life of an owner on another machine; without, it counts as living.
    """
    seen = _read(folder)
    if seen is None:
        return None
    if seen.has_this_machine():
        return seen if seen.runs_here() else None
    if not wait:
        return seen
    say(
        f"{folder / lock_beat.LOCK} names a job of another machine ({seen}); waiting up to "
        f"{GONE_SECONDS:.0f} s to see whether it lives"
    )
    before = _content(folder)
    deadline = time.monotonic() + GONE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        if _content(folder) != before:
            return _read(folder)  # None: it has just ended
    return None


class FolderLocks:
    """The folders this process holds, until :meth:`release`.

    Args:
        lost: told, in a line and in a thread, if another job has taken one of them over.
    """

    def __init__(self, lost: Callable[[str], object] = print) -> None:
        self._ours = _this_process()
        self._lost = lost
        self._held: dict[Path, str] = {}
        self._made: list[Path] = []
        self._beat: subprocess.Popen[bytes] | None = None
        self._releasing = threading.Lock()

    def take(self, folders: Mapping[str, Path], say: Callable[[str], None]) -> list[Problem]:
        """Hold all ``folders``, or none.

        Args:
            folders: by the flag that names it.
            say: told, in a line, what is taken over and what takes a while.

        Returns:
            Why not.
        """
        problems = []
        before = len(self._held)
        for flag, folder in folders.items():
            if self.holds(folder):
                continue
            try:
                owner = self._take(folder, say)
            except OSError as error:
                text = f"cannot be written on {self._ours.host} ({error}); give a folder that can"
                problems.append(Problem(flag, folder, text))
                continue
            if owner is not None:
                problems.append(in_use(flag, folder, owner))
            else:
                self._held[folder] = flag
        if problems:
            self.release()
        elif len(self._held) > before:
            self._end_beat()
            self._beat = lock_beat.start([*self._held], self._ours.token, BEAT_SECONDS)
            threading.Thread(target=self._mind, args=[self._beat], daemon=True).start()
        return problems

    def holds(self, folder: Path) -> bool:
        return folder in self._held

    def _take(self, folder: Path, say: Callable[[str], None]) -> Owner | None:
        """Hold ``folder``; its owner if that lives.

        Raises:
            OSError: it cannot be written.
        """
        if not folder.is_dir():
            try:
                folder.mkdir(parents=True)
                self._made.append(folder)
            except FileExistsError:
                # Of two that start together, the other has made it.
                if not folder.is_dir():
                    raise
        file = folder / lock_beat.LOCK
        text = json.dumps(asdict(self._ours))
        while True:
            if _created(file, text):
                return None
            before = _read(folder)
            owner = look(folder, say)
            if owner is not None:
                return owner
            # Another may have come first while this one looked.
            if before is None or _read(folder) != before:
                continue
            beside = file.with_name(f"{file.name}.{self._ours.token}")
            beside.write_text(text)
            beside.replace(file)
            time.sleep(_SETTLE_SECONDS)
            if _read(folder) == self._ours:
                say(f"{file} is of a job that is gone ({before}); this one takes it over")
                return None

    def release(self) -> None:
        """Hold nothing any more; also where another thread is about to see to it."""
        if self._ours.pid != os.getpid():
            return  # in a forked child
        with self._releasing:
            self._end_beat()
            for folder in self._held:
                if _read(folder) == self._ours:
                    (folder / lock_beat.LOCK).unlink(missing_ok=True)
            for folder in self._made:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # where nothing has been written
            self._held, self._made = {}, []

    def _end_beat(self) -> None:
        if self._beat is not None:
            self._beat.kill()
            self._beat.wait()
            self._beat = None

    def _mind(self, beat: "subprocess.Popen[bytes]") -> None:
        if beat.wait() != lock_beat.LOST:
            return
        for folder, flag in self._held.items():
            if (owner := _read(folder)) not in (None, self._ours):
                self._lost(
                    f"{flag} ({folder}) has been taken over by another job ({owner}), which saw no "
                    f"sign of life of this one for {GONE_SECONDS:.0f} s; this one ends, before "
                    "both write"
                )
                return


def in_use(flag: str, folder: Path, owner: Owner) -> Problem:
    """The problem."""
    text = (
        f"is written to by another job ({owner}); wait for its end or end it, or give another "
        f"folder (the lock is {folder / lock_beat.LOCK})"
    )
    return Problem(flag, folder, text)


def _created(file: Path, text: str) -> bool:
    """Whole or not at all, so that nobody reads half of it; False if it is there already."""
    beside = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        beside.write_text(text)
    except OSError:
        beside.unlink(missing_ok=True)  # half of it, on a full disk
        raise
    try:
        os.link(beside, file)
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links.
        return _created_in_place(file, text)
    finally:
        beside.unlink()
    return True


def _created_in_place(file: Path, text: str) -> bool:
    try:
        with file.open("x") as created:
            created.write(text)
    except FileExistsError:
        return False
    return True


_UNKNOWN = Owner("", "an unknown host", "", 0, "", "an unknown time", "")
"""Of a lock that cannot be read: half written, or of another version."""


def _read(folder: Path) -> Owner | None:
    text = _content(folder)
    if text is None:
        return None
    try:
        return Owner(**json.loads(text.partition("\n")[0]))
    except (ValueError, TypeError):
        return _UNKNOWN


def _content(folder: Path) -> str | None:
    """The owner in a line, and behind it what changes as long as it lives; None: no lock."""
    try:
        return (folder / lock_beat.LOCK).read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _this_process() -> Owner:
    named = [(name, os.environ.get(name, "")) for name in _JOB_NUMBERS]
    return Owner(
        # torchrun's id is "none" where nobody gave it another.
        job=next((f"{name} {value}" for name, value in named if value not in ("", "none")), ""),
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        token=secrets.token_hex(8),
    )


def _machine() -> str:
    """What process numbers are numbers of: a boot of a kernel, and a container in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """When the kernel started ``pid``, in its own count; "" if it does not tell."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if status[0] == "Z" else status[19]
