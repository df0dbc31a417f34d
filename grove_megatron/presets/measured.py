"""What ``grove verify`` found of every golden: run, and kept in one file."""

import functools
import hashlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..benchmarks.environment import environment
from .goldens import CHECKOUT, Golden

FILE = CHECKOUT / "docs" / "presets" / "figures.json"
"""``rows``: one of each golden, as :func:`measure` makes them."""


def rows(file: Path = FILE) -> dict[str, dict[str, Any]]:
    """By the golden's name; {} where nothing was measured yet."""
    if not file.is_file():
        return {}
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return {row["golden"]: row for row in found}


def write(found: dict[str, dict[str, Any]], file: Path = FILE) -> None:
    """All rows, by rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"rows": [found[name] for name in sorted(found)]}, indent=1) + "\n"
    beside = file.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)


def checksum(golden: Golden, checkout: Path = CHECKOUT) -> str:
    """Of the file that was compared with."""
    return hashlib.sha256((checkout / golden.file).read_bytes()).hexdigest()


def measure(golden: Golden) -> dict[str, Any]:
    """One row: the command is run as a user runs it.

    Returns:
        ``golden``, ``command``, ``passed`` (the exit code is 0), ``result`` (what ``--json``
        prints), ``tensors`` (names of the gradients that the file has), ``flags`` and ``fields``
        (of a layer: what builds it), where and when, and the file's checksum.

    Raises:
        RuntimeError: it could not compare.
    """
    command = [sys.executable, "-m", "grove_megatron", *golden.words, "--json"]
    run = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1):
        raise RuntimeError(f"{shlex.join(command)} ended with {run.returncode}:\n{run.stderr}")
    here = environment(on_cuda=False)
    return {
        "golden": golden.name,
        "command": shlex.join(["grove", *golden.words]),
        "passed": run.returncode == 0,
        "result": json.loads(run.stdout.splitlines()[-1]),
        "tensors": _tensors(golden),
        **(_built_by(golden) if golden.kind == "layer" else {}),
        "machine": f"{here.processor}, {here.cores} cores",
        "date": here.timestamp[:10],
        "versions": {
            "torch": here.torch,
            "megatron-core": here.megatron_core,
            "Python": here.python,
        },
        "sha256": checksum(golden),
    }


def _tensors(golden: Golden) -> list[str]:
    """Names of the file's gradients, of numbered layers and experts one each."""
    from safetensors import safe_open

    with safe_open(CHECKOUT / golden.file, "numpy") as file:
        names = [name for name in file.keys() if re.match(r"grad[._]", name)]  # noqa: SIM118
    return sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names})


def _built_by(golden: Golden) -> dict[str, Any]:
    from ..verify_layer.golden import Golden as Numbers

    system = Numbers.read(CHECKOUT / golden.path, golden.variant).system
    fields = {name: _called(value) for name, value in system.fields.items()}
    return {"flags": [*system.flags], "fields": fields, "losses": sorted(system.losses)}


def _called(value: Any) -> str:
    if isinstance(value, functools.partial):
        given = ", ".join(f"{name} {word}" for name, word in value.keywords.items())
        return f"{value.func.__name__} ({given})"
    return str(getattr(value, "__name__", value))
