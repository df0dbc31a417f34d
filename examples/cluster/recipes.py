"""What ``grove doctor`` says of every recipe beside this file: write it, or look whether it is so.

    python examples/cluster/recipes.py --write
    python examples/cluster/recipes.py --check    exit 1 and the difference, where a file is stale

A recipe ``recipes/NAME.sh`` is not started: bash says which command it would become, and doctor
takes the number of GPUs and the flags of that. Its answer is in ``recipes/NAME.txt``, without the
notes that are about the machine doctor ran on.
"""

import argparse
import difflib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "recipes"
DEVICE, GPU_MEMORY = "cuda", 80.0
_MODULE = ["-m", "grove_megatron.pretrain"]
# How notes begin, or what they say, that another machine would not have.
_OF_THIS_MACHINE = ("on this machine:", "with what is installed here:", "there is no CUDA here")
_OF_THIS_DISK = " has room for "
# In place of `exec`, which bash looks for after functions: the words, each ended by a null byte.
_SHOW = 'exec() { printf "%s\\0" "$@"; exit; }; script=$1; shift; source "$script"'


@dataclass(frozen=True)
class Recipe:
    """A job as its script starts it: nodes, GPUs of a node, and flags of the module."""

    name: str
    nodes: int
    per_node: int
    flags: list[str]

    @property
    def world_size(self) -> int:
        """Processes of the job, one for each GPU."""
        return self.nodes * self.per_node


def recipes(folder: Path = FOLDER) -> list[Recipe]:
    """All of a folder, by name."""
    return [read_recipe(script) for script in sorted(folder.glob("*.sh"))]


def read_recipe(script: Path, **variables: str) -> Recipe:
    """The command that a script ends in, as bash makes it.

    Args:
        script: of the recipe.
        variables: CKPT and DATA, where they are to be set.

    Raises:
        ValueError: it ends in another command than launch.py with grove_megatron.pretrain.
    """
    outside = {k: v for k, v in os.environ.items() if k not in ("CKPT", "DATA")} | variables
    show = ["bash", "-c", _SHOW, "bash", str(script)]
    shown = subprocess.run(show, env=outside, capture_output=True, text=True, check=False)
    words = shown.stdout.split("\0")[:-1]
    if shown.returncode or not words or Path(words[0]).name != "launch.py" or "--" not in words:
        raise ValueError(f"{script} does not end in exec launch.py ... -- ...: {shown.stderr}")
    launcher, job = words[1 : words.index("--")], words[words.index("--") + 1 :]
    if job[:2] != _MODULE:
        raise ValueError(f"{script} starts ({' '.join(job[:2])}), not ({' '.join(_MODULE)})")
    parser = argparse.ArgumentParser(prog=str(script), exit_on_error=False)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus-per-node", type=int, required=True)
    asked = parser.parse_args(launcher)
    return Recipe(script.stem, asked.nodes, asked.gpus_per_node, job[2:])


def diagnosis(recipe: Recipe) -> Any:
    """What ``grove doctor --device cuda --gpu-memory 80`` finds; Megatron is imported."""
    from grove_megatron.training.doctor import diagnose

    return diagnose(
        recipe.flags,
        recipe.world_size,
        DEVICE,
        per_node=recipe.per_node,
        gpu_memory=GPU_MEMORY,
    )


def page(recipe: Recipe, found: Any) -> str:
    """The text of ``NAME.txt``: the command, then the answer as the command line has it.

    Raises:
        ValueError: doctor has problems with it.
    """
    if found.problems:
        lines = [f"  {n}. {problem}" for n, problem in enumerate(found.problems, 1)]
        raise ValueError("\n".join([f"{recipe.name} is no job that starts:", *lines]))
    notes = [
        f"note: {line}"
        for line in found.notices
        if not line.startswith(_OF_THIS_MACHINE) and _OF_THIS_DISK not in line
    ]
    command = (
        f"$ grove doctor --world-size {recipe.world_size} --device {DEVICE} "
        f"--gpu-memory {GPU_MEMORY:g} <flags of {recipe.name}.sh>"
    )
    heading = f"grove_megatron: no problem found, {found.world_size} processes on {found.device}"
    return "\n".join([command, heading, *found.plan, *notes]) + "\n"


def pages(folder: Path = FOLDER) -> dict[Path, str]:
    """File -> what has to be in it, of every recipe."""
    from grove_megatron.training.start import quiet, started

    with started(say=False), quiet():
        return {folder / f"{r.name}.txt": page(r, diagnosis(r)) for r in recipes(folder)}


def stale(expected: dict[Path, str], folder: Path = FOLDER) -> list[str]:
    """Lines of a difference, of files that are missing or not as they should be, or too many."""
    lines = [f"{extra}: no recipe" for extra in sorted({*folder.glob("*.txt")} - {*expected})]
    for file, text in expected.items():
        there = file.read_text(encoding="utf-8") if file.exists() else ""
        old, new = there.splitlines(), text.splitlines()
        lines += difflib.unified_diff(old, new, file.name, "now", lineterm="")
    return lines


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--write", action="store_true", help="write the files")
    chosen.add_argument("--check", action="store_true", help="exit 1 where one is stale")
    given = parser.parse_args()
    try:
        expected = pages()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if given.write:
        for file, text in expected.items():
            file.write_text(text, encoding="utf-8")
        return 0
    lines = stale(expected)
    print("\n".join(lines) or f"{len(expected)} files are as doctor has them")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
