"""Which packages the other machine lacks, from what installed packages say they need."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from . import THERE

CARRIED = ("grove-megatron", "pytest-timeout", "einops")
"""What it gets, with all that these need: this package, and what its gpu tests use beside it."""
LEFT_OUT = {
    "wandb": "20 MB, and imported only by a job that logs to it",
    "hf-xet": "4 MB, and only for downloads, of which there are none",
}
"""What Megatron or others name and nothing that the kit runs imports, with why."""


def closure(roots: Iterable[str], without: Iterable[str] = ()) -> set[NormalizedName]:
    """The packages that are needed for some, themselves included, as installed here.

    Args:
        roots: requirements.
        without: names that are not followed.

    Raises:
        ValueError: some are not installed; all at once.
    """
    skipped = {canonicalize_name(name) for name in without}
    todo = [Requirement(root) for root in roots]
    seen: dict[NormalizedName, set[str]] = {}
    missing = []
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        new = {"", *wanted.extras} - seen.get(name, set())
        if not new or name in skipped:
            continue
        seen.setdefault(name, set()).update(new)
        try:
            needs = distribution(name).requires or ()
        except PackageNotFoundError:
            missing.append(name)
            continue
        for each in map(Requirement, needs):
            if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in new):
                todo.append(each)
    if missing:
        raise ValueError(f"packages ({', '.join(sorted(missing))}) are not installed; make install")
    return set(seen)


def pins(constraints: Path) -> dict[NormalizedName, str]:
    """The versions of a constraints file."""
    lines = constraints.read_text(encoding="utf-8").splitlines()
    kept = [line.split("#")[0].strip() for line in lines]
    split = [line.split("==") for line in kept if line]
    return {canonicalize_name(name): version for name, version in split}


def requirements(constraints: Path) -> list[str]:
    """``name==version`` of every wheel to carry, ours left out.

    Raises:
        ValueError: a package is not installed, or has no pin.
    """
    names = closure(CARRIED, LEFT_OUT) - closure(THERE) - {canonicalize_name("grove-megatron")}
    versions = pins(constraints)
    if loose := sorted(names - versions.keys()):
        raise ValueError(
            f"packages ({', '.join(loose)}) have no version in {constraints.name}; add one"
        )
    return [f"{name}=={versions[name]}" for name in sorted(names)]
