"""The diffs for a Megatron-LM clone, and the program that applies them."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TAG, PATCH, SCRIPT = "core_v0.19.0", "pretrain_gpt.patch", "pretrain_gpt.py"
APPLY, FOLDER = ROOT / "patches" / "apply.py", ROOT / "patches" / TAG
DIFFS = ROOT / "examples" / "cluster" / "diffs"
RELEASED = [FOLDER / PATCH, *sorted(DIFFS.rglob("*.patch"))]

# A lone carriage return, a form feed and no newline at the end: bytes that text handling changes.
ORIGINAL = b"import time\r\n\x0c# \xe9\rone line\nif True:\n    pass\nlast line"
PATCHED = (
    b"import time\r\n# added first\r\n\x0c# \xe9\rone line\nif True:\n    # added\n    x = 1\n"
    b"    pass\nlast line"
)
DIFF = b"""\
diff --git a/pretrain_gpt.py b/pretrain_gpt.py
index %(old)s..%(new)s 100644
--- a/pretrain_gpt.py
+++ b/pretrain_gpt.py
@@ -1,0 +2 @@ import time
+# added first\r
@@ -3,0 +5,2 @@ if True:
+    # added
+    x = 1
"""


def git_object_name(content: bytes) -> bytes:
    command = ["git", "hash-object", "--stdin", "--no-filters"]
    return subprocess.run(command, input=content, capture_output=True, check=True).stdout.strip()


class Clone:
    """A folder that looks like a clone, with a copy of ``apply.py`` and a patch for it."""

    def __init__(self, folder: Path, content: bytes = ORIGINAL, diff: bytes | None = None):
        self.root, self.tool = folder / "clone", folder / "patches"
        (self.root / "megatron" / "core").mkdir(parents=True)
        (self.tool / TAG).mkdir(parents=True)
        shutil.copy(APPLY, self.tool)
        self.script = self.root / SCRIPT
        self.script.write_bytes(content)
        self.set_version(0, 19, 1)
        if diff is None:
            old, new = git_object_name(ORIGINAL), git_object_name(PATCHED)
            diff = DIFF % {b"old": old, b"new": new}
        self.patch = self.tool / TAG / PATCH
        self.patch.write_bytes(diff)

    def set_version(self, major: int, minor: int, patch: int) -> None:
        info = self.root / "megatron" / "core" / "package_info.py"
        info.write_text(f"MAJOR = {major}\nMINOR = {minor}\nPATCH = {patch}\nPRE_RELEASE = ''\n")

    def run(self, command: str, *more: str) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-I", str(self.tool / "apply.py"), command, str(self.root), *more]
        return subprocess.run(call, capture_output=True, text=True, check=False)

    def assert_refused(self, command: str, *reasons: str, more: tuple[str, ...] = ()) -> None:
        """Exit code 2, all ``reasons`` named, and not a byte or a file of the clone changed."""
        before = {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        done = self.run(command, *more)
        assert done.returncode == 2, done.stdout
        assert all(reason in done.stderr for reason in reasons), done.stderr
        assert "Traceback" not in done.stderr
        after = {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        assert after == before


@pytest.mark.parametrize("patch", RELEASED, ids=lambda path: path.stem)
def test_released_patches_only_add_lines_and_have_no_context(patch: Path) -> None:
    """Every line of every hunk is an addition, as many as its header says."""
    lines = patch.read_text().splitlines()
    hunks = [i for i, line in enumerate(lines) if line.startswith("@@")]
    assert hunks
    assert [line.split()[0] for line in lines[: hunks[0]]] == ["diff", "index", "---", "+++"]
    for start, end in zip(hunks, [*hunks[1:], len(lines)], strict=True):
        # Behind the second @@ git would put a line of the file.
        header = re.fullmatch(r"@@ -\d+,0 \+\d+(?:,(\d+))? @@", lines[start])
        assert header, lines[start]
        body = lines[start + 1 : end]
        assert len(body) == int(header[1] or 1)
        assert all(line.startswith("+") for line in body)


def test_released_patch_calls_what_exists() -> None:
    from grove_megatron.training import clone

    text = (FOLDER / PATCH).read_text()
    assert "+    from grove_megatron.training.clone import install\n" in text
    assert "+    install()\n" in text
    assert callable(clone.install)


def test_round_trip_restores_every_byte(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    clone.script.chmod(0o750)
    assert clone.run("check").returncode == 1
    applied = clone.run("apply")
    assert (applied.returncode, applied.stderr) == (0, "")
    assert clone.script.read_bytes() == PATCHED
    assert stat.S_IMODE(clone.script.stat().st_mode) == 0o750
    assert clone.run("check").returncode == 0
    assert clone.run("revert").returncode == 0
    assert clone.script.read_bytes() == ORIGINAL
    assert stat.S_IMODE(clone.script.stat().st_mode) == 0o750
    assert sorted(path.name for path in clone.root.iterdir()) == ["megatron", SCRIPT]


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [("apply", PATCHED, "applied, nothing to do"), ("revert", ORIGINAL, "not applied, nothing")],
)
def test_doing_it_twice_changes_nothing(
    tmp_path: Path, command: str, content: bytes, message: str
) -> None:
    clone = Clone(tmp_path, content)
    before = clone.script.stat()
    done = clone.run(command)
    assert done.returncode == 0
    assert message in done.stdout
    assert (clone.script.stat().st_ino, clone.script.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )


def test_it_is_what_git_would_do(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    git = ["git", "-c", "core.autocrlf=false", "apply", "--unidiff-zero", str(clone.patch)]
    # Outside a repository, else git would look for the paths of the repository around it.
    outside = os.environ | {"GIT_CEILING_DIRECTORIES": str(clone.root.parent)}
    subprocess.run(git, cwd=clone.root, env=outside, check=True)
    assert clone.script.read_bytes() == PATCHED


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    real = tmp_path / "elsewhere.py"
    clone.script.rename(real)
    clone.script.symlink_to(real)
    assert clone.run("apply").returncode == 0
    assert clone.script.is_symlink()
    assert real.read_bytes() == PATCHED


@pytest.mark.parametrize("command", ["check", "apply", "revert"])
@pytest.mark.parametrize("content", [ORIGINAL, PATCHED])
def test_another_version_is_refused_by_name(tmp_path: Path, command: str, content: bytes) -> None:
    clone = Clone(tmp_path, content)
    clone.set_version(0, 20, 0)
    clone.assert_refused(command, "(0.20.0)", "(0.19)", "core_v0.19.0")


@pytest.mark.parametrize("command", ["check", "apply", "revert"])
@pytest.mark.parametrize("content", [ORIGINAL, PATCHED])
def test_a_changed_file_is_refused_by_name(tmp_path: Path, command: str, content: bytes) -> None:
    clone = Clone(tmp_path, content + b"\n")
    clone.assert_refused(command, SCRIPT, git_object_name(content + b"\n")[:10].decode())


def test_a_folder_that_is_no_clone_is_refused(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    shutil.rmtree(clone.root / "megatron")
    clone.assert_refused("apply", str(clone.root), "package_info.py")


def test_a_clone_without_the_script_is_refused(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    clone.script.unlink()
    clone.assert_refused("apply", SCRIPT, "missing")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        pytest.param(b"+    x = 1\n", b"+    x = 2\n", "was edited", id="other line"),
        pytest.param(b"+    x = 1\n", b"-    x = 1\n", "added lines", id="removed line"),
        pytest.param(b"+    x = 1\n", b"     x = 1\n", "added lines", id="context line"),
        pytest.param(b"+    x = 1\n", b"", "2 added lines", id="line missing"),
        pytest.param(b"+    x = 1\n", b"+    x = 1\n+more\n", "(+more)", id="line too many"),
        pytest.param(b"-3,0", b"-3,1", "only adds lines", id="hunk that replaces"),
        pytest.param(b"-3,0", b"-2,0", "was edited", id="hunk at another line"),
        pytest.param(b" 100644", b"", "", id="index without a mode is fine"),
    ],
)
def test_an_edited_patch_is_refused(tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    clone = Clone(tmp_path)
    patch = clone.patch
    text = patch.read_bytes()
    assert text.count(old) == 1
    patch.write_bytes(text.replace(old, new))
    if reason:
        clone.assert_refused("apply", reason)
    else:
        assert clone.run("apply").returncode == 0


def test_a_failed_write_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full, say: the old file is whole and the temporary one is gone."""
    import runpy

    def full(*args: object) -> None:
        raise OSError("no space left")

    tool = runpy.run_path(str(APPLY))
    file = tmp_path / SCRIPT
    file.write_bytes(ORIGINAL)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        tool["replace_file"](file, PATCHED)
    assert file.read_bytes() == ORIGINAL
    assert [path.name for path in tmp_path.iterdir()] == [SCRIPT]


# ---------------------------------------------------------------------------- several, and new ones


SHELL = "examples/train.sh"


def with_a_second(clone: Clone) -> Path:
    """A patch of another file of the clone, in a folder of its own with one for the first."""
    script = clone.root / SHELL
    script.parent.mkdir()
    script.write_bytes(b"one\ntwo\n")
    names = [git_object_name(content) for content in (b"one\ntwo\n", b"one\nadded\ntwo\n")]
    folder = clone.tool.parent / "diffs" / TAG
    folder.mkdir(parents=True)
    text = b"diff --git a/%(p)s b/%(p)s\nindex %(o)s..%(n)s 100644\n--- a/%(p)s\n+++ b/%(p)s\n"
    named = {b"p": SHELL.encode(), b"o": names[0], b"n": names[1]}
    (folder / "train.patch").write_bytes(text % named + b"@@ -1,0 +2 @@\n+added\n")
    shutil.copy(clone.patch, folder)
    return folder


def test_patches_of_a_folder_go_together(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    folder = str(with_a_second(clone))
    assert clone.run("check", folder).returncode == 1
    assert clone.run("apply", folder).returncode == 0
    assert clone.script.read_bytes() == PATCHED
    assert (clone.root / SHELL).read_bytes() == b"one\nadded\ntwo\n"
    assert clone.run("check", folder).returncode == clone.run("check").returncode == 0
    # Of one alone: the other stays.
    assert clone.run("revert").returncode == 0
    assert clone.run("check", folder).returncode == 1
    assert (clone.root / SHELL).read_bytes() == b"one\nadded\ntwo\n"
    assert clone.run("revert", folder).returncode == 0
    assert (clone.root / SHELL).read_bytes() == b"one\ntwo\n"


def test_one_that_does_not_fit_keeps_the_others_out(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    folder = with_a_second(clone)
    (clone.root / SHELL).write_bytes(b"one\nother\n")
    clone.assert_refused("apply", SHELL, "neither", more=(str(folder),))


def test_a_write_that_fails_brings_the_others_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import runpy

    clone = Clone(tmp_path)
    folder = with_a_second(clone)
    tool = runpy.run_path(str(APPLY))
    found = [tool["inspect"](clone.root, patch) for patch in tool["find"]([folder])]
    replace = os.replace

    def full(source: object, target: Path) -> None:
        if Path(target).name == "train.sh":
            raise OSError("no space left")
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        tool["change"](found, tool["APPLIED"])
    assert clone.script.read_bytes() == ORIGINAL
    assert (clone.root / SHELL).read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("name", ["empty", "elsewhere/train.patch"])
def test_what_holds_no_patch_of_a_tag_is_refused(tmp_path: Path, name: str) -> None:
    clone = Clone(tmp_path)
    folder = with_a_second(clone)
    (tmp_path / "empty").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(folder / "train.patch", tmp_path / "elsewhere")
    clone.assert_refused("apply", name, more=(str(tmp_path / name),))


MAIN = b'import time\n\nif __name__ == "__main__":\n    pass\n'


def test_a_patch_is_made_for_a_new_tag(tmp_path: Path) -> None:
    clone = Clone(tmp_path, MAIN)
    clone.set_version(0, 20, 1)
    # What was made for another release does not fit it.
    clone.assert_refused("check", "(0.20.1)")
    made = clone.run("make", "--tag", "core_v0.20.0")
    assert (made.returncode, made.stderr) == (0, "")
    assert clone.script.read_bytes() == MAIN
    text = (clone.tool / "core_v0.20.0" / PATCH).read_text()
    assert re.findall(r"^@@.*", text, re.M) == ["@@ -3,0 +4,6 @@"]
    # Now the folder is chosen by the clone's script.
    assert clone.run("check").returncode == 1
    assert clone.run("apply").returncode == 0
    before, _, after = clone.script.read_bytes().partition(b'if __name__ == "__main__":\n')
    assert before == b"import time\n\n"
    assert after.endswith(b"    install()\n\n    pass\n")
    assert clone.run("revert").returncode == 0
    assert clone.script.read_bytes() == MAIN


@pytest.mark.parametrize(
    ("content", "tag", "reason"),
    [
        pytest.param(MAIN, "core_v0.18.0", "(0.19.1) is not of --tag (core_v0.18.0)", id="other"),
        pytest.param(MAIN, "main", "--tag (main) is not like core_v0.19.0", id="branch"),
        pytest.param(ORIGINAL, TAG, "not one line", id="no main"),
        pytest.param(MAIN + MAIN, TAG, "not one line", id="two mains"),
        pytest.param(MAIN + b"import grove_megatron\n", TAG, "has a call", id="patched"),
    ],
)
def test_a_patch_that_cannot_be_made_is_refused(
    tmp_path: Path, content: bytes, tag: str, reason: str
) -> None:
    clone = Clone(tmp_path, content)
    before = clone.patch.read_bytes()
    clone.assert_refused("make", reason, more=("--tag", tag))
    assert clone.patch.read_bytes() == before


# ----------------------------------------------------------------------------------- the real thing


@pytest.fixture
def megatron_lm() -> Path:
    named = os.environ.get("MEGATRON_LM")
    if not named or not (Path(named) / SCRIPT).is_file():
        pytest.skip(f"MEGATRON_LM names no folder with a {SCRIPT}")
    return Path(named)


def test_real_script_round_trips(tmp_path: Path, megatron_lm: Path) -> None:
    original = (megatron_lm / SCRIPT).read_bytes()
    clone = Clone(tmp_path, original, (FOLDER / PATCH).read_bytes())
    assert clone.run("apply").returncode == 0
    patched = clone.script.read_bytes()
    compile(patched, SCRIPT, "exec")
    before, _, main = patched.partition(b'if __name__ == "__main__":\n')
    # Importing the script must go on changing nothing.
    assert b"grove_megatron" not in before
    assert main.index(b"    install()\n") < main.index(b"parse_and_validate_args(")
    assert clone.run("revert").returncode == 0
    assert clone.script.read_bytes() == original
    # Of the released text no byte was written by hand.
    assert clone.run("make", "--tag", TAG).returncode == 0
    assert clone.patch.read_bytes() == (FOLDER / PATCH).read_bytes()


INSTALL = """
import sys
print("above", __name__)
if __name__ == "__main__":
    from grove_megatron.training.clone import install
    install()
    from grove_megatron.config import GroveTransformerConfig
    from grove_megatron.failure.watch import _watch
    from grove_megatron.runtime import cpu_is_active
    from grove_megatron.training import one_job
    from grove_megatron.training.entry import ENTRY
    from megatron.training import argument_utils
    assert ENTRY.active and cpu_is_active()
    assert argument_utils.TransformerConfig is GroveTransformerConfig
    # As under grove_megatron.run: failures are watched for, and folders locked.
    assert _watch.active and one_job._locks is not None
    install()
    print("trains", *sys.argv[1:])
    if sys.argv[1] == "fails":
        raise ValueError("of the script")
    if sys.argv[1] == "exits":
        sys.exit(3)
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [
        pytest.param("ends", 0, marks=pytest.mark.long),
        ("exits", 3),
        pytest.param("fails", 1, marks=pytest.mark.long),
    ],
)
def test_install_hands_the_script_over_once(tmp_path: Path, how: str, code: int) -> None:
    """In a process of its own: what is above the call runs twice, what is below once."""
    script = tmp_path / "script.py"
    script.write_text(INSTALL)
    environment = os.environ | {"GROVE_RUNTIME": "cpu", "PYTHONPATH": str(ROOT)}
    for name in ("RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    command = [sys.executable, str(script), how, "--flag"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith(("above", "trains"))]
    assert said == ["above __main__", "above __main__", f"trains {how} --flag"]
    assert done.stderr.count("grove_megatron: runtime CPU") == 1
    assert ("of the script" in done.stderr) == (how == "fails")


def test_importing_clone_does_nothing() -> None:
    look = "assert not {'torch', 'megatron'} & {*sys.modules}"
    text = f"import sys, grove_megatron.training.clone\n{look}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", text], env=environment, check=True)
