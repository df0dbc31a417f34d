"""A Python that has torch, Triton, numpy and pytest with what these need, and nothing else."""

import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

from grove_megatron.benchmarks.kit import THERE
from grove_megatron.benchmarks.kit.needed import closure


def make(folder: Path) -> Path:
    """An environment of links to this one's packages; returns its Python."""
    venv.create(folder, symlinks=True, with_pip=False)
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    for name in sorted(closure(THERE)):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            link, source = packages / top, Path(str(found.locate_file(top)))
            if source.exists() and not link.exists():
                link.symlink_to(source)
    return folder / "bin" / "python"
