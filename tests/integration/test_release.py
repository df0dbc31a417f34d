"""What ``make release`` makes: whole, and enough by itself.

A wheel is built from the working tree, and installed (``tests/integration/installed_wheel.py`` says
beside what). The long tests compare it with what lies in the folder ``GROVE_DIST``, or with what
they build.
"""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

from grove_megatron import __version__

from .distributions import ROOT, build_sdist, build_wheel, copy_of, environment, files_of_git
from .installed_wheel import Installed, install, without
from .launching import tiny_model

NAME = f"grove_megatron-{__version__}"
# What setuptools adds to a source distribution.
OF_SETUPTOOLS = {
    *("PKG-INFO", "setup.cfg", "grove_megatron.egg-info/PKG-INFO"),
    *(
        f"grove_megatron.egg-info/{name}.txt"
        for name in ("SOURCES", "dependency_links", "entry_points", "requires", "top_level")
    ),
}
OF_A_WHEEL = {
    f"{NAME}.dist-info/{name}"
    for name in (
        *("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"),
        "licenses/LICENSE",
    )
}
# Of the extras and of the tests; nothing that a wheel requires brings one.
NOT_REQUIRED = ("matplotlib", "scipy", "pyarrow", "zstandard", "datasets", "tensorboard", "pytest")
HELP = """
import sys
import typer
from grove_megatron.cli import app

def helped(command, words):
    try:
        command.main([*words, "--help"], prog_name="grove", standalone_mode=False)
    except SystemExit as end:
        assert not end.code, words
    print("HELPED", *words)

def walk(command, words=()):
    helped(top, words)
    for name, inner in getattr(command, "commands", {}).items():
        walk(inner, (*words, name))

top = typer.main.get_command(app)
walk(top)
print("IMPORTED", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@dataclass(frozen=True)
class Built:
    """A wheel, and a folder of the files it was made of."""

    files: list[str]
    source: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    files = files_of_git()
    if not files:
        pytest.skip("no git checkout, which says what belongs to a release")
    folder = tmp_path_factory.mktemp("release")
    source = copy_of(files, folder / "source")
    return Built(files, source, build_wheel(source, folder / "wheel"))


@pytest.fixture(scope="module")
def released(built: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel made of it."""
    if given := os.environ.get("GROVE_DIST"):
        (sdist,) = Path(given).glob("*.tar.gz")
        (wheel,) = Path(given).glob("*.whl")
    else:
        folder = tmp_path_factory.mktemp("dist")
        sdist = build_sdist(built.source, folder)
        wheel = build_wheel(sdist, folder)
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(built.wheel, tmp_path_factory.mktemp("installed"))


def sums(wheel: Path) -> dict[str, int]:
    """Names and checksums of its files."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return message_from_string(archive.read(f"{NAME}.dist-info/METADATA").decode())


def test_a_source_distribution_lists_the_repository(built: Built) -> None:
    """The list that setuptools makes for it, which a wheel leaves behind too."""
    listed = (built.source / "grove_megatron.egg-info" / "SOURCES.txt").read_text("utf-8")
    assert set(listed.splitlines()) - OF_SETUPTOOLS == set(built.files)


@pytest.mark.long
def test_a_source_distribution_is_the_repository(built: Built, released: tuple[Path, Path]) -> None:
    sdist, _ = released
    assert sdist.name == f"{NAME}.tar.gz"
    with tarfile.open(sdist) as archive:
        members = {m.name.removeprefix(f"{NAME}/"): m for m in archive if m.isfile()}
        assert set(members) - set(built.files) == OF_SETUPTOOLS
        assert set(built.files) - set(members) == set()
        for name in built.files:
            held = archive.extractfile(members[name])
            assert held is not None
            assert held.read() == (ROOT / name).read_bytes(), name
            # Scripts stay executable.
            assert members[name].mode & 0o100 == (ROOT / name).stat().st_mode & 0o100, name


def test_a_wheel_is_the_package(built: Built) -> None:
    assert built.wheel.name == f"{NAME}-py3-none-any.whl"
    package = {name for name in built.files if name.startswith("grove_megatron/")}
    assert set(sums(built.wheel)) - package == OF_A_WHEEL
    assert package - set(sums(built.wheel)) == set()
    assert "grove_megatron/py.typed" in package


@pytest.mark.long
def test_a_wheel_of_the_repository_is_that_of_the_source_distribution(
    built: Built, released: tuple[Path, Path]
) -> None:
    _, wheel = released
    assert wheel.name == built.wheel.name
    assert sums(wheel) == sums(built.wheel)


def test_the_metadata_say_what_a_user_has(built: Built) -> None:
    found = metadata(built.wheel)
    assert found["Version"] == __version__
    assert found["License-Expression"] == "Apache-2.0"
    description = str(found.get_payload())
    assert (ROOT / "README.md").read_text(encoding="utf-8").strip() in description
    # It names the folders of the repository that are not in a wheel, and where they are.
    before = description.partition("# grove_megatron")[0]
    folders = {name.partition("/")[0] for name in built.files if not name.startswith(".")}
    folders = {name for name in folders if (ROOT / name).is_dir()} - {"grove_megatron"}
    assert {name for name in folders if f"`{name}/`" not in before} == set()
    assert "source distribution" in before


def test_what_runs_is_the_wheel_and_no_extra_is_there(installed: Installed) -> None:
    files = installed.code(
        "import grove_megatron, importlib.metadata as m; print(grove_megatron.__file__);"
        "print(m.distribution('grove-megatron').locate_file(''))"
    ).split()
    assert all(Path(file).is_relative_to(installed.folder) for file in files)
    look = "import importlib.util as u; print([n for n in {} if u.find_spec(n)])"
    assert installed.code(look.format(NOT_REQUIRED)).strip() == "[]"
    assert installed.code(look.format(("torch", "tests"))).strip() == "['torch']"


def test_the_command_is_there(installed: Installed) -> None:
    assert installed("grove", "--version").splitlines()[0] == f"grove-megatron {__version__}"


def test_every_command_has_help_without_any_extra(installed: Installed) -> None:
    lines = installed.code(without("transformers") + HELP).splitlines()
    helped = {line for line in lines if line.startswith("HELPED")}
    assert {f"HELPED {name}" for name in "import export verify doctor report".split()} < helped
    assert {f"HELPED {name}" for name in ("generate", "bench layer", "data")} < helped
    imported = next(line for line in lines if line.startswith("IMPORTED")).split()
    assert {"torch", "megatron", "transformers"} & set(imported) == set()


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("report run", "report"),
        ("data text.parquet --output out --tokenizer words", "data"),
        ("data text.jsonl.zst --output out --tokenizer words", "data"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(
    installed: Installed, command: str, extra: str
) -> None:
    for name in ("text.parquet", "text.jsonl.zst"):
        (installed.elsewhere / name).write_bytes(b"of some bytes")
    said = installed.refused(*command.split())
    assert re.search(rf"\(not installed\)[^;]*; pip install 'grove-megatron\[{extra}\]'", said)


@pytest.mark.long
def test_types_are_seen_from_outside(installed: Installed) -> None:
    program = installed.elsewhere / "uses.py"
    program.write_text(
        "from grove_megatron.printable import printable\n\nprintable('a')\nprintable(1)\n"
    )
    mypy = [sys.executable, "-m", "mypy", "--python-executable", installed.python]
    done = subprocess.run(
        [*mypy, "--cache-dir", os.devnull, str(program)],
        cwd=installed.elsewhere,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "uses.py:4: error: " in done.stdout, done.stdout + done.stderr
    assert 'has incompatible type "int"; expected "str"' in done.stdout
    assert "Found 1 error" in done.stdout


@pytest.mark.long
def test_a_job_is_planned_and_trains_and_pages_are_made(installed: Installed) -> None:
    """Where every file that the package reads is read, but for those of weights."""
    flags = [*tiny_model(), "--train-iters", "1", "--num-layers", "1"]
    assert "no problem found" in installed("grove", "doctor", "--device", "cpu", *flags)
    log = installed("python", "-m", "grove_megatron.pretrain", *flags)
    assert "iteration        1/       1" in log
    for package in ("parts", "switches"):
        text = installed("python", "-m", f"grove_megatron.{package}")
        assert text == (ROOT / "grove_megatron" / package / "README.md").read_text("utf-8")
    tables = "from grove_megatron.benchmarks.tables import DOCUMENTS, filled\n"
    page = "print(filled(DOCUMENTS[0].read_text(), DOCUMENTS[0].parent), end='')"
    text = (ROOT / "grove_megatron" / "benchmarks" / "README.md").read_text("utf-8")
    assert installed.code(tables + page) == text


@pytest.mark.long
def test_generating_from_text_names_the_extra_that_it_needs(installed: Installed) -> None:
    words = installed.elsewhere / "words"
    words.mkdir()
    (words / "tokenizer.json").write_text("{}")
    command = ["generate", "--hf", str(ROOT / "tests" / "data" / "grovemoe-tiny"), "--prompt", "a"]
    said = installed.refused(*command, "--tokenizer", str(words), hidden=("transformers",))
    assert "needs transformers (not installed); pip install 'grove-megatron[hf]'" in said
