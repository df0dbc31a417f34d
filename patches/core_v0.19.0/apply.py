"""Add the lines of ``pretrain_gpt.patch`` to a Megatron-LM clone, take them out, or look.

    python apply.py check  PATH_TO_CLONE   exit 0: applied, 1: not applied, 2: cannot be applied
    python apply.py apply  PATH_TO_CLONE   exit 0: applied now or before,   2: refused
    python apply.py revert PATH_TO_CLONE   exit 0: not applied any more,    2: refused

Standard library only. The file is changed as a whole or not at all: the new content is written
beside it and takes its place in one rename.
"""

# Why not `git apply --unidiff-zero`: a hunk without context says nothing but a line number, so git
# would insert it into a file it was not made for; inside a repository it skips, with exit code 0,
# files that lie outside the current folder; and a clone in a container image often has no git at
# all. The patch's own `index` line holds the git object names of the file before and after. They
# identify both exactly, which leaves nothing for fuzzy matching to do: insert the lines, compare.

import argparse
import ast
import hashlib
import io
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATCH = HERE / "pretrain_gpt.patch"
RELEASE = "core_v0.19.0"
# The tag calls itself 0.19.1 (megatron/core/package_info.py): the series is what can be compared.
SERIES = (0, 19)

NOT_APPLIED, APPLIED = "not applied", "applied"


class CannotPatchError(Exception):
    """This clone, or this patch, is not one to work with; the message says why and what to do."""


@dataclass(frozen=True)
class Insertion:
    """Lines to insert behind line ``after`` of the original, where they are line ``at`` on."""

    after: int
    at: int
    lines: tuple[bytes, ...]


@dataclass(frozen=True)
class AdditionsPatch:
    """A patch of one file that only adds lines, with the file's git object names."""

    path: str
    old_blob: str
    new_blob: str
    insertions: tuple[Insertion, ...]

    def state(self, content: bytes) -> str | None:
        """:data:`APPLIED`, :data:`NOT_APPLIED`, or None for content the patch does not know."""
        return {self.old_blob: NOT_APPLIED, self.new_blob: APPLIED}.get(blob_name(content))

    def add(self, content: bytes) -> bytes:
        """The patched file, from the original one."""
        old, new, position = _lines(content), [], 0
        for insertion in self.insertions:
            new += [*old[position : insertion.after], *insertion.lines]
            position = insertion.after
        return self._checked(b"".join(new + old[position:]), self.new_blob)

    def remove(self, content: bytes) -> bytes:
        """The original file, from the patched one."""
        lines = _lines(content)
        for insertion in reversed(self.insertions):
            start = insertion.at - 1
            del lines[start : start + len(insertion.lines)]
        return self._checked(b"".join(lines), self.old_blob)

    def _checked(self, content: bytes, blob: str) -> bytes:
        if blob_name(content) != blob:
            raise CannotPatchError(
                f"the lines of the patch give {self.path} ({blob_name(content)[:10]}), its index "
                f"line promises ({blob[:10]}); the patch was edited, take it from the release again"
            )
        return content


def parse(text: bytes) -> AdditionsPatch:
    """Read a ``git diff -U0 --full-index`` of one file.

    Raises:
        CannotPatchError: it removes lines, has context, or is of more than one file.
    """
    path = old_blob = new_blob = ""
    insertions: list[Insertion] = []
    lines = _lines(text)
    while lines:
        line = lines.pop(0).decode().rstrip("\n")
        if match := re.fullmatch(r"index ([0-9a-f]{40})\.\.([0-9a-f]{40})(?: \d+)?", line):
            old_blob, new_blob = match.groups()
        elif match := re.fullmatch(r"\+\+\+ b/(.+)", line):
            if path:
                raise CannotPatchError(f"the patch is of two files ({path}, {match[1]}); one only")
            path = match[1]
        elif match := re.match(r"@@ -(\d+),0 \+(\d+)(?:,(\d+))? @@", line):
            count = int(match[3] or 1)
            added, lines = lines[:count], lines[count:]
            if len(added) < count or any(not one.startswith(b"+") for one in added):
                raise CannotPatchError(f"hunk ({line}) does not consist of {count} added lines")
            after, at = int(match[1]), int(match[2])
            insertions.append(Insertion(after, at, tuple(one[1:] for one in added)))
        elif not line.startswith(("diff --git ", "--- a/")):
            raise CannotPatchError(f"line ({line}) does not fit a patch that only adds lines")
    if not (path and old_blob and insertions):
        raise CannotPatchError("the patch has no file, no full index line or no hunk")
    return AdditionsPatch(path, old_blob, new_blob, tuple(insertions))


def blob_name(content: bytes) -> str:
    """The name git gives a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def clone_version(clone: Path) -> str:
    """The version a clone states, from its text: nothing of the clone is run.

    Raises:
        CannotPatchError: the folder is not a clone of Megatron-LM.
    """
    info = clone / "megatron" / "core" / "package_info.py"
    if not info.is_file():
        raise CannotPatchError(f"{clone} is not a clone of Megatron-LM: it has no {info}")
    stated = {
        target.id: statement.value.value
        for statement in ast.parse(info.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    try:
        return ".".join(str(stated[name]) for name in ("MAJOR", "MINOR", "PATCH"))
    except KeyError as error:
        raise CannotPatchError(f"{info} states no {error.args[0]}") from None


def inspect(clone: Path, patch: AdditionsPatch) -> tuple[Path, bytes, str]:
    """The file to patch, its content, and :data:`APPLIED` or :data:`NOT_APPLIED`.

    Raises:
        CannotPatchError: another version of Megatron, or a file that somebody changed.
    """
    version = clone_version(clone)
    series = ".".join(str(number) for number in SERIES)
    if not version.startswith(f"{series}."):
        raise CannotPatchError(
            f"the Megatron in {clone} ({version}) is not of the series ({series}) these patches "
            f"are for; git checkout {RELEASE}"
        )
    # A link is followed: the rename would otherwise put a plain file in its place.
    file = (clone / patch.path).resolve()
    if not file.is_file():
        raise CannotPatchError(f"{clone / patch.path} is missing; git checkout {RELEASE}")
    content = file.read_bytes()
    state = patch.state(content)
    if state is None:
        raise CannotPatchError(
            f"{clone / patch.path} ({blob_name(content)[:10]}) is neither the file of {RELEASE} "
            f"({patch.old_blob[:10]}) nor the patched one ({patch.new_blob[:10]}); restore it "
            f"(git checkout {RELEASE} -- {patch.path}), or add the lines by hand"
        )
    return file, content, state


def replace_file(file: Path, content: bytes) -> None:
    """Give ``file`` new content, keeping its mode; a failure leaves the old one in place."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        shutil.copymode(file, temporary)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def _lines(content: bytes) -> list[bytes]:
    # bytes.splitlines would also split at a lone carriage return.
    return io.BytesIO(content).readlines()


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code of the table above."""
    parser = argparse.ArgumentParser(description=f"Grove MoE in a Megatron-LM {RELEASE} clone.")
    parser.add_argument("command", choices=("check", "apply", "revert"))
    parser.add_argument("clone", type=Path, help="folder of the clone")
    chosen = parser.parse_args(arguments)
    try:
        patch = parse(PATCH.read_bytes())
        file, content, state = inspect(chosen.clone, patch)
        if chosen.command == "check":
            print(f"{file}: {state}")
            return 0 if state == APPLIED else 1
        wanted = APPLIED if chosen.command == "apply" else NOT_APPLIED
        if state == wanted:
            print(f"{file}: {state}, nothing to do")
            return 0
        replace_file(file, patch.add(content) if wanted == APPLIED else patch.remove(content))
    except (CannotPatchError, OSError) as error:
        print(f"cannot {chosen.command}: {error}", file=sys.stderr)
        return 2
    print(f"{file}: {'applied' if wanted == APPLIED else 'reverted'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
