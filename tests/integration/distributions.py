"""The source distribution and the wheel, made from what git knows of this repository.

``make release`` runs this: ``python -m tests.integration.distributions runs/dist``. What lies about
in a checkout, an old ``build/`` for one, gets into neither.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SDIST = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"


def files_of_git() -> list[str]:
    """What git knows here, as it is in the working tree; empty where this is no checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return []
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return sorted(name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())


def copy_of(files: list[str], folder: Path) -> Path:
    """These files alone, in a folder that is made."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def build_sdist(source: Path, out: Path) -> Path:
    """By the hook that every build tool calls."""
    out.mkdir(parents=True, exist_ok=True)
    run([sys.executable, "-c", _SDIST, str(out)], source)
    (made,) = out.glob("*.tar.gz")
    return made


def build_wheel(source: Path, out: Path) -> Path:
    """With pip, offline, from a folder or a source distribution."""
    out.mkdir(parents=True, exist_ok=True)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir", "--quiet"]
    run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(out), str(source)], out)
    (made,) = out.glob("*.whl")
    return made


def environment() -> dict[str, str]:
    """Without what would bring this repository into another Python."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(command: list[str], folder: Path) -> str:
    """Its output; what it said is in the error if it fails."""
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def main(out: Path) -> None:
    files = files_of_git()
    if not files:
        raise SystemExit(
            "git (absent, or no checkout) lists no files here; release from a checkout"
        )
    if changed := run(["git", "status", "--porcelain"], ROOT).splitlines():
        listed = "\n".join(changed)
        raise SystemExit(f"files ({len(changed)}) are not committed; commit them:\n{listed}")
    shutil.rmtree(out, ignore_errors=True)
    scratch = out.with_name(f"{out.name}.source")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        sdist = build_sdist(copy_of(files, scratch), out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    # From the source distribution, so that whoever has that alone gets the same.
    print(sdist, build_wheel(sdist, out), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
