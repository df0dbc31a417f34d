"""Unpack all wheels beside this Python's packages: what the script of the kit starts first.

An environment of its own without pip, and the wheels unpacked into it: a second in place of pip's
ten. This Python's packages (torch, Triton, numpy, pytest) are found behind them.
"""

import hashlib
import json
import os
import site
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from . import COMMIT, THERE
from .parts import joined
from .plan import plan, seconds_of, shown

BUNDLE = "bundle.json"
_USAGE = """usage: run.sh SECONDS [RESULTS]    (RESULTS: a folder, ./grove-kit-results by default)
       run.sh --plan SECONDS"""


def main(arguments: Sequence[str]) -> int:
    """``BUNDLE`` and what ``run.sh`` was given; does not come back if it installs."""
    began = time.time()
    bundle, *given = arguments
    is_plan = given[:1] == ["--plan"]
    given = given[is_plan:]
    if not 1 <= len(given) <= (1 if is_plan else 2) or given[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stderr)
        return 2
    problems = []
    try:
        seconds = seconds_of(given[0])
    except ValueError as error:
        problems.append(str(error))
    folder = Path(bundle)
    results = Path(given[1] if len(given) > 1 else "grove-kit-results").absolute()
    if not is_plan:
        problems += [*_problems(folder, results)]
    if problems:
        for problem in problems:
            print(f"grove_megatron: {problem}", file=sys.stderr)
        return 2
    if is_plan:
        te = find_spec("transformer_engine") or joined(folder, None)
        modules = {"transformer_engine": te, "megatron.bridge": None}
        print(shown(seconds, plan(seconds, there=lambda module: bool(modules.get(module)))))
        return 0
    python = install(folder, _own_environment(folder))
    _start(python, folder, given[0], results, began)


def _problems(folder: Path, results: Path) -> list[str]:
    found = []
    missing = [name for name in THERE if find_spec(name) is None]
    if missing:
        found.append(
            f"Python ({sys.executable}) has no ({', '.join(missing)}), which the kit does not "
            "carry; set PYTHON to one that has"
        )
    if results.exists() and any(results.iterdir() if results.is_dir() else [results]):
        found.append(f"RESULTS ({results}) is there and not empty; name another folder")
    wanted = json.loads((folder / BUNDLE).read_text(encoding="utf-8"))["wheels"]
    lost = [name for name, digest in wanted.items() if _digest(folder / "wheels" / name) != digest]
    if lost:
        found.append(
            f"wheels ({', '.join(lost)}) are missing or damaged in ({folder}); copy it again"
        )
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _own_environment(folder: Path) -> Path:
    """Of this bundle and this Python: a second run finds it made."""
    said = (folder / BUNDLE).read_bytes() + sys.executable.encode()
    name = f"grove-kit-{os.getuid()}-{hashlib.sha256(said).hexdigest()[:12]}"
    return Path(tempfile.gettempdir()) / name


def install(folder: Path, target: Path) -> Path:
    """Make the environment if it is not there; returns its Python.

    Args:
        folder: the bundle.
        target: where it goes; a half-made one is never found there.
    """
    python = target / "bin" / "python"
    if python.exists():
        return python
    with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=target.parent) as made:
        made_here = Path(made) / "environment"
        venv.create(made_here, symlinks=True, with_pip=False)
        scheme = {"base": str(made_here), "platbase": str(made_here)}
        packages = Path(sysconfig.get_path("purelib", "venv", scheme))
        wheels = sorted((folder / "wheels").glob("*.whl"), key=lambda w: -w.stat().st_size)
        engine = joined(folder, Path(made))
        with ThreadPoolExecutor() as threads:
            for _ in threads.map(lambda wheel: unpack(wheel, packages), [*engine, *wheels]):
                pass
        (packages / COMMIT).write_text(
            json.loads((folder / BUNDLE).read_text(encoding="utf-8"))["commit"]
        )
        # Behind its own packages; addsitedir also reads the .pth files that are there.
        lines = [f"import site; site.addsitedir({place!r})" for place in _behind()]
        (packages / "zz_behind.pth").write_text("\n".join([*lines, ""]))
        os.rename(made_here, target)
    return python


def _behind() -> list[str]:
    """Where this Python finds its packages."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    places = [place for place in given if place and not place.endswith(".whl")]
    places += site.getsitepackages()
    if site.ENABLE_USER_SITE:
        places.append(site.getusersitepackages())
    return [place for place in places if Path(place).is_dir()]


def unpack(wheel: Path, packages: Path) -> None:
    """Put a wheel's files where they belong; its scripts are left out.

    Raises:
        ValueError: a file of it would lie outside.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            top, _, rest = name.partition("/")
            if top.endswith(".data"):
                kind, _, rest = rest.partition("/")
                if kind not in ("purelib", "platlib") or not rest:
                    continue
            else:
                rest = name
            if name.endswith("/"):
                continue
            place = packages / rest
            if not place.resolve().is_relative_to(packages.resolve()):
                raise ValueError(f"wheel ({wheel.name}) has a file ({name}) outside; leave it out")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(archive.read(name))


def _start(python: Path, folder: Path, seconds: str, results: Path, began: float) -> NoReturn:
    # Tests are found from here.
    os.chdir(folder)
    # Bytecode is written from here on: many processes import the same.
    unset = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment.setdefault("OMP_NUM_THREADS", "1")
    # torchrun asks for the names of addresses, and no name server answers.
    environment.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
    # A home folder may be small, or on a file system that is slow, or not writable.
    beside = python.parents[1]
    environment.setdefault("TRITON_CACHE_DIR", str(beside.with_name(f"{beside.name}-triton")))
    module = f"{__package__}.run"
    words = [str(python), "-m", module, seconds, str(results), repr(began)]
    os.execve(python, words, environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
