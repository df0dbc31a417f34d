"""What a conversion wrote: a checksum per tensor, counts, and where it came from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..model.families import is_buffer
from .checked import Plan
from .safetensors_io import NAME_OF

NAME = "grove_manifest.json"


@dataclass(frozen=True)
class Manifest:
    """Every tensor under its Hugging Face name, so that those of two formats can be compared.

    Args:
        made_by: the command, its source and its options.
        architecture: of the model.
        tensors: name -> dtype, shape, bytes, sha256 (of its bytes in Hugging Face's layout), file.
        skipped: tensors named by ``--skip``: zeros here, or left out.
        generated: tensors that the source does not have, and how they were made.
    """

    made_by: dict[str, Any]
    architecture: dict[str, Any]
    tensors: dict[str, dict[str, Any]]
    skipped: list[str]
    generated: dict[str, Any]

    @property
    def counts(self) -> dict[str, int]:
        return {
            "tensors": len(self.tensors),
            "parameters": sum(
                prod(t["shape"]) for name, t in self.tensors.items() if not is_buffer(name)
            ),
            "bytes": sum(t["bytes"] for t in self.tensors.values()),
        }

    def write(self, folder: Path) -> None:
        content = {"counts": self.counts, **asdict(self)}
        (folder / NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def described(
    plans: Mapping[str, Plan], checksums: Mapping[str, str], files: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The ``tensors`` of a manifest."""
    return {
        name: {
            "dtype": NAME_OF[plan.dtype],
            "shape": list(plan.shape),
            "bytes": plan.bytes,
            "sha256": checksums[name],
            "file": files[name],
        }
        for name, plan in plans.items()
    }


def read_checksums(folder: Path) -> dict[str, tuple[str, str]]:
    """(dtype, sha256) of every tensor by the manifest in a folder; empty if there is none.

    Raises:
        ValueError: it is damaged.
    """
    file = folder / NAME
    if not file.is_file():
        return {}
    try:
        tensors = json.loads(file.read_text(encoding="utf-8"))["tensors"]
        return {name: (t["dtype"], t["sha256"]) for name, t in tensors.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); remove it to go without it") from error
