"""A destination that appears whole or not at all, and work that survives a kill.

Everything is written in ``<destination>.incomplete``, file by file, and renamed into place at the
end. A journal there says which files are done, so that the same command goes on after them.
"""

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

_JOURNAL = "journal.jsonl"


def free_destination(destination: Path) -> Path:
    """Where a folder is to be made: the target if it is a link, onto which nothing can be renamed.

    Raises:
        ValueError: something is there.
    """
    destination = Path(os.path.realpath(destination))
    try:
        there = destination.exists()
        if there and (not destination.is_dir() or any(destination.iterdir())):
            raise ValueError(f"{destination} is there already; remove it, or name another place")
    except OSError as error:
        raise ValueError(f"{destination} cannot be made: {error}") from error
    if os.path.ismount(destination):
        raise ValueError(f"{destination} is a mount point; name a folder in it")
    return destination


class Staging:
    """The temporary place of one destination.

    Args:
        destination: the folder to make; absent or empty.
        job: what is done, JSON: source, options. Work begun for another job is not continued.

    Raises:
        ValueError: the destination is there, cannot be made, or is being made by another process;
            the temporary place is another job's.
    """

    def __init__(self, destination: Path, job: dict[str, Any]):
        destination = free_destination(destination)
        self.destination = destination
        self._place = destination.with_name(destination.name + ".incomplete")
        self.folder = self._place / "content"
        self.done: dict[str, Any] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal = (self._place / _JOURNAL).open("a+", encoding="utf-8")
        except OSError as error:
            raise ValueError(f"{destination} cannot be made: {error}") from error
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise ValueError(f"{self._place} is in use by another process") from error
        try:
            self._continue(hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest())
        except BaseException:
            self.close()
            raise

    def _continue(self, job: str) -> None:
        try:
            lines = self._written()
            same = not lines or lines[0]["job"] == job
            for entry in lines[1:]:
                file = self.folder / entry["file"]
                self.done.pop(entry["file"], None)
                if file.is_file() and file.stat().st_size == entry["size"]:
                    self.done[entry["file"]] = entry["records"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self._place / _JOURNAL} is damaged ({error!r}); remove {self._place}"
            ) from error
        if not same:
            raise ValueError(
                f"{self._place} was begun for another source or with other options; remove it"
            )
        for file in self.folder.rglob("*"):
            if file.is_file() and str(file.relative_to(self.folder)) not in self.done:
                file.unlink()
        if not lines:
            self._log({"job": job})

    def _written(self) -> list[dict[str, Any]]:
        self._journal.seek(0)
        written = self._journal.read()
        # A kill can tear the last line.
        if not written.endswith("\n"):
            self._journal.truncate(len(written[: written.rfind("\n") + 1].encode()))
        return [json.loads(line) for line in written.splitlines(keepends=True) if line[-1] == "\n"]

    def _log(self, entry: dict[str, Any]) -> None:
        self._journal.write(json.dumps(entry) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def temporary(self, name: str) -> Path:
        """Where to write file ``name``; :meth:`finished` gives it its name."""
        path = self.folder / f"{name}.tmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path

    def finished(self, name: str, records: Any) -> None:
        """File ``name`` is complete and on the disk; ``records`` come back after a kill."""
        (self.folder / f"{name}.tmp").rename(self.folder / name)
        size = (self.folder / name).stat().st_size
        self._log({"file": name, "size": size, "records": records})
        self.done[name] = records

    def forget(self, name: str) -> None:
        """File ``name`` has to be written again, if it is complete."""
        if self.done.pop(name, None) is not None:
            # A kill behind this line finds no file that the journal calls complete.
            self._log({"file": name, "size": None, "records": None})
            (self.folder / name).unlink()

    def room(self, needed: int) -> list[str]:
        """A line if ``needed`` bytes, those already there included, do not fit on the disk."""
        there = sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file())
        free = shutil.disk_usage(self.folder).free
        if needed - there <= free:
            return []
        return [
            f"{self.destination} needs {needed - there:,} bytes more, and {free:,} are free; "
            "make room, or name another place"
        ]

    def publish(self) -> None:
        """The content is complete: give it its name."""
        for path in [self.folder, *self.folder.rglob("*")]:
            if str(path.relative_to(self.folder)) not in self.done:
                _sync(path)
        # Replaces an empty folder.
        self.folder.rename(self.destination)
        _sync(self.destination.parent)
        self.close()
        shutil.rmtree(self._place)

    def close(self) -> None:
        self._journal.close()


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
