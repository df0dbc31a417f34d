"""Write the kit: ``python -m grove_megatron.benchmarks.kit.build [FOLDER] [--te WHEELS]``."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from ..environment import PACKAGE, commit
from .carried_tests import files
from .install import BUNDLE
from .needed import LEFT_OUT, requirements
from .parts import split

LIMIT_BYTES = 60_000_000
FOLDER = "runs/gpu-bundle"
# manylinux of every age that a current machine has: pip takes no older tag for a newer one.
_PLATFORMS = tuple(f"manylinux_2_{n}_x86_64" for n in (28, 27, 26, 24, 17, 12, 5))
_OURS = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "grove_megatron")


def build(repository: Path, target: Path, te: Path | None) -> None:
    """Write the bundle to ``target``, which is replaced, and the parts of ``te`` beside it.

    Raises:
        ValueError: a wheel cannot be had, or the bundle is too large.
    """
    engine = target.with_name(f"{target.name}-te")
    with tempfile.TemporaryDirectory(dir=_made(target.parent)) as folder:
        made = Path(folder) / "bundle"
        wheels = _made(made / "wheels")
        wanted = requirements(repository / ".ci" / "constraints.txt")
        # Ours first, which needs no network: what is wrong with it is not worth a download.
        _pip(
            [
                "wheel",
                "--no-deps",
                "--no-build-isolation",
                "-w",
                str(wheels),
                _ours(repository, folder),
            ]
        )
        _download(wanted, wheels)
        for path in files(repository):
            shutil.copy2(repository / path, _made((made / path).parent))
        script = shutil.copy2(Path(__file__).with_name("run.sh"), made)
        os.chmod(script, 0o755)
        _describe(made, repository)
        if (size := _size(made)) > LIMIT_BYTES:
            raise ValueError(
                f"bundle ({size / 1e6:.1f} MB) is above ({LIMIT_BYTES / 1e6:.0f} MB); leave out "
                f"what takes most:\n{largest(made)}"
            )
        parts = split(te, Path(folder) / "te") if te else []
        for new, place in ((made, target), (Path(folder) / "te", engine)):
            if new.exists():
                shutil.rmtree(place, ignore_errors=True)
                new.rename(place)
    count = len(list((target / "wheels").iterdir()))
    print(f"{target}: {size / 1e6:.1f} MB, {count} wheels")
    for name, why in LEFT_OUT.items():
        print(f"left out: {name} ({why})")
    if parts:
        print(f"{engine}: {len(parts)} parts; carry them to te/ in the bundle or beside it")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _ours(repository: Path, folder: str) -> str:
    """A copy of what the wheel is made of: setuptools writes beside its sources."""
    copy = _made(Path(folder) / "source")
    for name in _OURS:
        source = repository / name
        if source.is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(source, copy / name, ignore=unwanted)
        else:
            shutil.copy2(source, copy)
    return str(copy)


def _download(wanted: Sequence[str], wheels: Path) -> None:
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    kind = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.12"]
    where = ["--implementation", "cp", *platforms, "--dest", str(wheels)]
    _pip(["download", *kind, *where, *wanted])


def _pip(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr]
        raise ValueError(
            f"pip {arguments[0]} failed ({' '.join(said[-2:]).strip()}); it needs a network or an "
            "index that has every pinned wheel"
        )


def _describe(made: Path, repository: Path) -> None:
    wheels = sorted((made / "wheels").iterdir())
    said = {
        "commit": commit(PACKAGE) if repository == PACKAGE.parent else "unknown",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "left out": LEFT_OUT,
        "wheels": {w.name: hashlib.sha256(w.read_bytes()).hexdigest() for w in wheels},
    }
    (made / BUNDLE).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def largest(folder: Path, count: int = 8) -> str:
    """The largest files, a line each."""
    sizes = {p.relative_to(folder): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    most = sorted(sizes, key=lambda p: -sizes[p])[:count]
    return "\n".join(f"{sizes[path] / 1e6:8.1f} MB  {path}" for path in most)


def main(arguments: Sequence[str]) -> int:
    """Returns an exit code."""
    from argparse import ArgumentParser

    parser = ArgumentParser(prog="python -m grove_megatron.benchmarks.kit.build")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(FOLDER))
    parser.add_argument("--te", type=Path, help="a folder of TransformerEngine's wheels")
    given = parser.parse_args(arguments)
    if not (PACKAGE.parent / "tests" / "gpu").is_dir():
        print(f"grove_megatron: package ({PACKAGE}) is not in a checkout; use one", file=sys.stderr)
        return 2
    try:
        build(PACKAGE.parent, given.folder.absolute(), given.te)
    except ValueError as error:
        print(f"grove_megatron: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
