"""A fresh environment with a wheel and what ``setup.py`` requires for it: no extra, no repository.

What is required is not installed again: the environment sees a folder of links to it.
"""

import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from grove_megatron.benchmarks.kit.needed import closure

from .distributions import environment, run

_HIDE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in {hidden} else self.finder.find_spec(name, *more)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def without(*modules: str) -> str:
    """Code after which these are as if they were not installed."""
    return _HIDE.format(hidden=modules)


@dataclass(frozen=True)
class Installed:
    """The environment, and a folder outside of the repository to run commands in."""

    folder: Path
    elsewhere: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def __call__(self, *command: str) -> str:
        """What a command of the environment prints."""
        return run([str(self.folder / "bin" / command[0]), *command[1:]], self.elsewhere)

    def code(self, lines: str) -> str:
        """What a program prints."""
        return self("python", "-c", lines)

    def refused(self, *command: str, hidden: tuple[str, ...] = ()) -> str:
        """What a ``grove`` command says that ends with an error."""
        main = "from grove_megatron.cli import main; main()"
        done = subprocess.run(
            [self.python, "-c", without(*hidden) + main, *command],
            cwd=self.elsewhere,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 2, (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
        return " ".join((done.stdout + done.stderr).split())


def install(wheel: Path, folder: Path) -> Installed:
    """The wheel alone by pip, and links to what it requires."""
    made = Installed(folder / "venv", folder / "elsewhere")
    made.elsewhere.mkdir(parents=True)
    venv.create(made.folder, symlinks=True)
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "--python", made.python]
    run([*pip, "install", *options, str(wheel)], made.elsewhere)
    links = folder / "required"
    links.mkdir()
    for entry in sorted(entries(requires_of(made))):
        (links / entry.name).symlink_to(entry)
    (site,) = made.folder.glob("lib/python3.*/site-packages")
    (site / "required.pth").write_text(f"{links}\n")
    return made


def requires_of(made: Installed) -> list[str]:
    """What the installed wheel says that it needs without any extra."""
    code = "from importlib.metadata import requires; print(*requires('grove-megatron'), sep='\\n')"
    lines = made.code(code).splitlines()
    return [line for line in lines if "extra ==" not in line]


def entries(needed: list[str]) -> set[Path]:
    """Files and folders of ``site-packages`` that belong to these and to what they need."""
    found: set[Path] = set()
    for name in closure(needed):
        installed = distribution(name)
        tops = {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}
        found |= {Path(str(installed.locate_file(top))) for top in tops if top[-4:] != ".pth"}
    return found
