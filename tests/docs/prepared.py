"""What a program of a document finds in its folder: by the name that the document has for it."""

import shutil
from collections.abc import Callable
from pathlib import Path

from .fences import ROOT

TINY = ROOT / "tests" / "data" / "grovemoe-tiny"
TINY_MOEPP = ROOT / "tests" / "data" / "moepp-tiny"
Run = Callable[[list[str], Path], str]


def prepare(text: str, folder: Path, run: Run) -> None:
    """Make what a text names, in ``folder``.

    Args:
        run: a ``grove`` command in a folder, and what it prints.
    """
    for name in ("tests", "examples"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    for name, make in _MAKERS.items():
        if name in text and not (folder / name).exists():
            make(folder, run)


def _damaged(folder: Path, run: Run) -> None:
    """A copy with one tensor removed, one cut and one added."""
    import torch
    from safetensors.torch import load_file, save_file

    copy = folder / "damaged"
    shutil.copytree(TINY, copy)
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.0.mlp.chunk_experts.3.up_proj.weight"]
    gate = "model.layers.1.mlp.gate.weight"
    tensors[gate] = tensors[gate][:-1].clone()
    tensors["model.rotary.inv_freq"] = torch.ones(4)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})


def _qwen(folder: Path, run: Run) -> None:
    """By the program of the page itself, which stands before the command."""
    from .fences import fences

    (program,) = (one for one in fences("python") if 'save_pretrained("qwen")' in one.text)
    run(["python", program.text], folder)


def _exported(folder: Path, run: Run) -> None:
    run(["grove", "import", "--hf", str(TINY), "--save", "ckpt/exported"], folder)
    export = ["grove", "export", "--load", "ckpt/exported", "--hf-config", str(TINY)]
    run([*export, "--hf", "GroveMoE-mine"], folder)


def _pickles(folder: Path, run: Run) -> None:
    """A released model in two files of pickles."""
    import torch
    from safetensors.torch import load_file

    made = folder / "MoE-Plus-Plus-7B"
    made.mkdir()
    tensors = [*load_file(TINY_MOEPP / "model.safetensors").items()]
    for number, some in enumerate((tensors[::2], tensors[1::2]), 1):
        torch.save(dict(some), made / f"pytorch_model-{number}.bin")


def _records(folder: Path, run: Run) -> None:
    from tests.unit.report.jobs import a_run, recorded

    for number, name in enumerate(("run", "other"), 1):
        recorded(folder / "ckpt" / name / "grove_metrics", a_run(name), number)


def _sets(folder: Path, run: Run) -> None:
    """A record whose tokens prefer a set of groups in one layer, and nothing in the other."""
    from tests.unit.placing.routings import (
        a_record,
        a_run,
        an_interval,
        planted,
        scattered,
        uniform,
    )

    made = a_run(128, 64, 8, layers=2)
    sets = scattered(128, 4, unit=2)
    tokens = [
        [planted(4000, 128, 8, n, 4.0, sets), uniform(4000, 128, 8, n + 100)] for n in range(6)
    ]
    intervals = [an_interval(made, chosen, 10 * (n + 1)) for n, chosen in enumerate(tokens)]
    a_record(folder / "ckpt" / "sets" / "grove_metrics", made, intervals)


_MAKERS: dict[str, Callable[[Path, Run], None]] = {
    "damaged": _damaged,
    "hf qwen": _qwen,
    "GroveMoE-mine": _exported,
    "MoE-Plus-Plus-7B": _pickles,
    "ckpt/run": _records,
    "ckpt/sets": _sets,
}
