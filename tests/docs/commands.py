"""Whether a command would be understood: its program, its subcommand, and every option it names."""

import ast
import importlib.util
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

import typer
import typer.core
import typer.main

from grove_megatron.cli import app
from grove_megatron.machines.__main__ import own_options
from tests.unit.conftest import parser as job_parser

from .fences import ROOT
from .shell import UNKNOWN, Command

# Programs that are not ours, and why they may stand in a document.
FOREIGN = {
    "pip": "installs; the extras of this package are checked",
    "hf": "of huggingface_hub, downloads weights",
    "git": "clones a repository of somebody else",
    "cd": "of the shell",
    "source": "of the shell",
    "export": "of the shell",
    "head": "of every system",
    "cat": "of every system",
    "unzip": "unpacks a wheel",
    "tail": "of every system",
    "sed": "of every system",
    "wait": "of the shell",
    "torchrun()": "of the shell, the name of a function",
    "}": "of the shell, the end of one",
    "nvcc": "of the CUDA toolkit",
}
# Modules that are run and are not ours.
FOREIGN_MODULES = frozenset({"pip"})
KIT = "runs/gpu-bundle/run.sh"  # of `make gpu-bundle`
LAUNCHED = ROOT / "examples" / "cluster"
# What stands for a script of the reader's, or is Megatron's.
_NOT_HERE = re.compile(r"(path/to/|pretrain_gpt\.py$|my_)")


def problem(command: Command) -> str | None:
    """Why a command would not be understood, or None."""
    try:
        _check(list(command))
    except Wrong as error:
        return f"{' '.join(command)}: {error}"
    return None


class Wrong(Exception):
    """What is wrong with a command."""


def _check(words: list[str]) -> None:
    program, given = words[0], words[1:]
    if program.startswith("--"):
        check_job_flags(words)  # flags alone, to be added to a command
    elif program in ("grove", ".venv/bin/grove"):
        check_grove(given)
    elif program == "torchrun":
        _check_torchrun(given)
    elif program in ("srun", "sbatch"):
        # Some of their options have a value behind them: what is started is a program.
        programs = ("python", "grove", "torchrun", "bash")
        start = (i for i, word in enumerate(given) if word in programs or word.endswith(".sbatch"))
        _check(given[next(start, len(given)) :] or ["cat"])
    elif program == "bash":
        if not given[0].startswith(f"{UNKNOWN}/"):  # of a clone that a variable names
            _check_script(given[0], given[1:])
    elif program == "make":
        _check_make(given)
    elif program == ".ci/run":
        _check_paths([program])
    elif re.fullmatch(r"(\.venv/bin/)?python3?", program):
        _check_python(given)
    elif program == "pip":
        _check_pip(given)
    elif program.endswith((".sh", ".py", ".sbatch")):
        _check_script(program, given)
    elif program not in FOREIGN:
        raise Wrong(f"{program} is no command of ours, and not in the list of others")


def check_grove(words: list[str], *, whole: bool = True) -> None:
    """``grove`` with these words; not ``whole``: what they need beside is not asked."""
    command = typer.main.get_command(app)
    while isinstance(command, typer.core.TyperGroup) and words and not words[0].startswith("-"):
        name, *words = words
        if name not in command.commands:
            raise Wrong(f"{command.name or 'grove'} has no command {name}")
        command = command.commands[name]
    if isinstance(command, typer.core.TyperGroup):
        known = {"--help", *(option for one in command.params for option in one.opts)}
        if not known.issuperset(words):
            raise Wrong(f"{command.name or 'grove'} does not know {' '.join(words)}")
        return
    try:
        made = command.make_context(command.name, [*words], resilient_parsing=not whole)
    except typer.Exit:
        return  # --help
    except (typer.BadParameter.__base__, typer.BadParameter) as error:  # type: ignore[misc]
        raise Wrong(error.format_message()) from None
    if command.name == "doctor" and made.args and not made.args[0].startswith("-"):
        _check(made.args)
    else:
        check_job_flags(made.args)


def check_job_flags(words: Sequence[str]) -> None:
    """Flags of a job: Megatron's parser with ours knows them and takes their values."""
    parser = job_parser()
    # What reads presets is bound to this very parser, so a copy would not do.
    parser.error = _raise  # type: ignore[method-assign]
    try:
        _, unknown = parser.parse_known_args([*words])
    finally:
        del parser.error
    if unknown:
        raise Wrong(f"neither Megatron nor this package knows {' '.join(unknown)}")


def _check_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.error = _raise  # type: ignore[method-assign]
    given = parser.parse_args(words)
    if given.module:
        _check_module(given.training_script, given.training_script_args)
    elif _NOT_HERE.search(given.training_script):
        check_job_flags(given.training_script_args)
    else:
        _check_script(given.training_script, given.training_script_args)


def _raise(message: str) -> NoReturn:
    raise Wrong(message)


def _check_module(name: str, words: list[str]) -> None:
    if name in FOREIGN_MODULES:
        return
    if name == "pytest":
        _check_paths(words)
        return
    if name == "torch.distributed.run":
        _check_torchrun(words)
        return
    if not name.startswith(("grove_megatron", "tests")) or importlib.util.find_spec(name) is None:
        raise Wrong(f"there is no module {name} of ours")
    if name == "grove_megatron":
        check_grove(words)
    elif name == "grove_megatron.pretrain":
        check_job_flags(words)
    elif name == "grove_megatron.machines":
        check_job_flags(own_options(words)[1])
    elif name == "grove_megatron.run":
        if not words:
            raise Wrong("grove_megatron.run needs a script")
        if not _NOT_HERE.search(words[0]):
            _check_paths(words[:1])
        check_job_flags(words[1:])
    else:
        folder = ROOT / name.replace(".", "/")
        files = [*folder.glob("*.py")] if folder.is_dir() else [folder.with_suffix(".py")]
        _check_named(words, files)


def _check_python(words: list[str]) -> None:
    if not words or words[0] == "-":
        return  # a program from the terminal, or a here-document
    if words[0] == "-m":
        _check_module(words[1], words[2:])
    elif words[0] == "-c":
        ast.parse(words[1])
    else:
        _check_script(words[0], words[1:])


def _check_script(name: str, words: list[str]) -> None:
    if _NOT_HERE.search(name):
        return
    if name == KIT:
        return _check_named(words, [*(ROOT / "grove_megatron/benchmarks/kit").glob("*.py")])
    _check_paths([name])
    file = ROOT / name
    if file.name in ("launch.py", "job.sbatch") or file.parent.parent == LAUNCHED:
        # Words of the launcher, and behind -- the program that it starts on every node.
        first = words.index("--") if "--" in words else len(words)
        _check_named(words[:first], [LAUNCHED / "launch.py"])
        job = words[first + 1 :]
        return _check(["python", *job]) if job[:1] == ["-m"] else None
    if file.suffix == ".sh" and not file.stat().st_mode & 0o100:
        raise Wrong(f"{name} cannot be executed")
    if file.suffix == ".sh" and '"$@"' in file.read_text() and "whole_way" not in name:
        check_job_flags(words)
    else:
        # A short shell script hands its words to the program beside it.
        program = file.with_name(file.stem.lstrip("0123456789_") + ".py")
        _check_named(words, [program if program.is_file() else file])


def _check_named(words: Sequence[str], files: Sequence[Path]) -> None:
    """Every option is a word of the program's own."""
    known = {
        node.value
        for file in files
        if file.suffix == ".py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in known:
            raise Wrong(f"{', '.join(file.name for file in files)} has no {option}")


def _check_make(words: list[str]) -> None:
    if "-C" in words:
        return  # a Makefile of somebody else
    targets = _targets()
    for word in words:
        if "=" not in word and word not in targets:
            raise Wrong(f"the Makefile has no {word}")


@cache
def _targets() -> frozenset[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))


def _check_pip(words: list[str]) -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for word in words:
        for extra in re.findall(r"^(?:\.|grove-megatron)\[([\w,-]+)\]$", word):
            missing = [one for one in extra.split(",") if f'"{one}": [' not in setup]
            if missing:
                raise Wrong(f"setup.py has no extra {', '.join(missing)}")


def _check_paths(words: Sequence[str]) -> None:
    for word in words:
        path = word.partition("::")[0]
        if not path.startswith("-") and not (ROOT / path).exists():
            raise Wrong(f"there is no {path}")


CHECKED_INLINE: dict[str, Callable[[list[str]], None]] = {
    "make": _check_make,
    "grove": lambda words: check_grove(words, whole=False),
}
