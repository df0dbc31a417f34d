"""Add the lines of patches to a Megatron-LM clone, take them out, or look; make one for a new tag.

    python apply.py check  CLONE [PATCH ...]   exit 0: applied, 1: not all, 2: cannot be applied
    python apply.py apply  CLONE [PATCH ...]   exit 0: applied now or before,   2: refused
    python apply.py revert CLONE [PATCH ...]   exit 0: not applied any more,    2: refused
    python apply.py make   CLONE --tag TAG     exit 0: TAG/pretrain_gpt.patch written, 2: refused

A PATCH is a file, or a folder with some; in its path is the tag it is for. Without one it is the
folder beside this program that knows the clone's ``pretrain_gpt.py``. Standard library only. A file
is changed as a whole or not at all: the new content is written beside it and takes its place in one
rename. Of several patches nothing is changed before all are known to fit.
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
SCRIPT, PATCH = "pretrain_gpt.py", "pretrain_gpt.patch"
# What `make` adds, and behind which line of the script; nothing happens when it is only imported.
BEHIND = b'if __name__ == "__main__":\n'
LINES = b"""\
    # Grove MoE: the --grove-* flags, their checks, the config class and the builder; without CUDA
    # also the CPU runtime. Does nothing under `python -m grove_megatron.run`.
    from grove_megatron.training.clone import install

    install()

"""

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
    """A patch of one file that only adds lines, with the file's git object names.

    Attributes:
        release: the tag it is for.
        path: of the file, in the clone.
        old_blob, new_blob: names of the file before and after.
        insertions: by line.
    """

    release: str
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


def parse(text: bytes, release: str) -> AdditionsPatch:
    """Read a ``git diff -U0 --full-index`` of one file.

    Args:
        text: of the diff.
        release: the tag it is for.

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
    return AdditionsPatch(release, path, old_blob, new_blob, tuple(insertions))


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


@dataclass(frozen=True)
class Inspected:
    """A file to patch: where it is, its content, and :data:`APPLIED` or :data:`NOT_APPLIED`."""

    patch: AdditionsPatch
    file: Path
    content: bytes
    state: str

    def wanted(self, state: str) -> bytes:
        """The content in ``state``."""
        if self.state == state:
            return self.content
        return (self.patch.add if state == APPLIED else self.patch.remove)(self.content)


def series_of(tag: str) -> str:
    """``0.19`` of ``core_v0.19.0``, which calls itself 0.19.1: what can be compared."""
    return ".".join(tag.removeprefix("core_v").split(".")[:2])


def inspect(clone: Path, patch: AdditionsPatch) -> Inspected:
    """Find the file that a patch is for.

    Raises:
        CannotPatchError: another version of Megatron, or a file that somebody changed.
    """
    version, release = clone_version(clone), patch.release
    series = series_of(release)
    if not version.startswith(f"{series}."):
        raise CannotPatchError(
            f"the Megatron in {clone} ({version}) is not of the series ({series}) these patches "
            f"are for; git checkout {release}"
        )
    # A link is followed: the rename would otherwise put a plain file in its place.
    file = (clone / patch.path).resolve()
    if not file.is_file():
        raise CannotPatchError(f"{clone / patch.path} is missing; git checkout {release}")
    content = file.read_bytes()
    state = patch.state(content)
    if state is None:
        raise CannotPatchError(
            f"{clone / patch.path} ({blob_name(content)[:10]}) is neither the file of {release} "
            f"({patch.old_blob[:10]}) nor the patched one ({patch.new_blob[:10]}); restore it "
            f"(git checkout {release} -- {patch.path}), or add the lines by hand"
        )
    return Inspected(patch, file, content, state)


def find(named: list[Path]) -> list[AdditionsPatch]:
    """The patches that are named, as files or by their folders.

    Raises:
        CannotPatchError: there is none, or a path without a tag.
    """
    found = []
    for path in named:
        files = sorted(path.rglob("*.patch")) if path.is_dir() else [path]
        if not files:
            raise CannotPatchError(f"{path} has no .patch file; name one, or a folder with some")
        for file in files:
            tags = [part for part in file.resolve().parts if re.fullmatch(r"core_v[\w.]+", part)]
            if not tags:
                raise CannotPatchError(f"{file} is in no folder of a tag; put it in core_vX.Y.Z")
            found.append(parse(file.read_bytes(), tags[-1]))
    return found


def of_the_clone(clone: Path) -> list[AdditionsPatch]:
    """The patches of the tag that the clone's ``pretrain_gpt.py`` is of.

    Raises:
        CannotPatchError: it is of none.
    """
    folders = sorted(file.parent for file in HERE.glob(f"core_v*/{PATCH}"))
    refused = []
    for folder in folders:
        patches = find([folder])
        try:
            inspect(clone, next(patch for patch in patches if patch.path == SCRIPT))
        except CannotPatchError as error:
            refused.append(str(error))
        else:
            return patches
    raise CannotPatchError("; or: ".join(refused) or f"{HERE} has no core_v*/{PATCH}")


def change(found: list[Inspected], state: str) -> None:
    """Bring all files into ``state``; a failure brings those back that were changed."""
    contents = [one.wanted(state) for one in found]
    changed: list[Inspected] = []
    try:
        for one, content in zip(found, contents, strict=True):
            if one.state != state:
                replace_file(one.file, content)
                changed.append(one)
    except OSError:
        for one in changed:
            replace_file(one.file, one.content)
        raise


def make(clone: Path, tag: str) -> Path:
    """Write the patch of a clone's ``pretrain_gpt.py``, for the tag that is checked out there.

    Raises:
        CannotPatchError: the script has no place for the lines, or one that is not clear.
    """
    if not re.fullmatch(r"core_v\d+\.\d+\.\w+", tag):
        raise CannotPatchError(f"--tag ({tag}) is not like core_v0.19.0; give that of the clone")
    series, version = series_of(tag), clone_version(clone)
    if not version.startswith(f"{series}."):
        raise CannotPatchError(
            f"the Megatron in {clone} ({version}) is not of --tag ({tag}); git checkout {tag}"
        )
    file = clone / SCRIPT
    if not file.is_file():
        raise CannotPatchError(f"{file} is missing; git checkout {tag}")
    old = file.read_bytes()
    lines = _lines(old)
    if b"grove_megatron" in old or lines.count(BEHIND) != 1:
        raise CannotPatchError(
            f"{file} has a call of grove_megatron, or not one line ({BEHIND.decode().rstrip()}); "
            f"git checkout {tag} -- {SCRIPT}, or add the lines by hand"
        )
    after, added = lines.index(BEHIND) + 1, _lines(LINES)
    new = b"".join([*lines[:after], *added, *lines[after:]])
    text = (
        f"diff --git a/{SCRIPT} b/{SCRIPT}\nindex {blob_name(old)}..{blob_name(new)} 100644\n"
        f"--- a/{SCRIPT}\n+++ b/{SCRIPT}\n@@ -{after},0 +{after + 1},{len(added)} @@\n"
    ).encode() + b"".join(b"+" + line for line in added)
    assert parse(text, tag).add(old) == new
    made = HERE / tag / PATCH
    made.parent.mkdir(exist_ok=True)
    beside = made.with_suffix(".new")
    beside.write_bytes(text)
    os.replace(beside, made)
    return made


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
    parser = argparse.ArgumentParser(description="Grove MoE in a Megatron-LM clone.")
    parser.add_argument("command", choices=("check", "apply", "revert", "make"))
    parser.add_argument("clone", type=Path, help="folder of the clone")
    parser.add_argument("patch", type=Path, nargs="*", help="files or folders; not with make")
    parser.add_argument("--tag", help="of make: what is checked out in the clone")
    chosen = parser.parse_args(arguments)
    if (chosen.command == "make") != (chosen.tag is not None) or (chosen.tag and chosen.patch):
        parser.error("make needs --tag and no PATCH, the others take no --tag")
    try:
        if chosen.command == "make":
            print(f"{make(chosen.clone, chosen.tag)}: made")
            return 0
        patches = find(chosen.patch) if chosen.patch else of_the_clone(chosen.clone)
        found = [inspect(chosen.clone, patch) for patch in patches]
        if chosen.command == "check":
            for one in found:
                print(f"{one.file}: {one.state}")
            return 0 if all(one.state == APPLIED for one in found) else 1
        wanted = APPLIED if chosen.command == "apply" else NOT_APPLIED
        change(found, wanted)
    except (CannotPatchError, OSError) as error:
        print(f"cannot {chosen.command}: {error}", file=sys.stderr)
        return 2
    done = "applied" if wanted == APPLIED else "reverted"
    for one in found:
        print(f"{one.file}: {f'{wanted}, nothing to do' if one.state == wanted else done}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
