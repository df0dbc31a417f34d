"""The code beside exported weights, by which transformers loads them."""

import shutil
from pathlib import Path
from typing import Any

from ..model.architecture import Architecture

_CODE = Path(__file__).parent / "hf_code"
FILES = ("configuration_grove_moe.py", "modeling_grove_moe.py")
_CONFIGURATION, _MODELING = (file.removesuffix(".py") for file in FILES)


def has_code(architecture: Architecture) -> bool:
    """Of the families that transformers does not know itself, there is code for Grove MoE."""
    return architecture.is_grove


def keys_for_code(architecture: Architecture) -> dict[str, Any]:
    """What ``config.json`` says for it, and for nobody else."""
    names = {
        "AutoConfig": f"{_CONFIGURATION}.GroveMoeConfig",
        "AutoModel": f"{_MODELING}.GroveMoeModel",
        "AutoModelForCausalLM": f"{_MODELING}.GroveMoeForCausalLM",
    }
    return {"auto_map": names} | ({"use_expert_bias": True} if architecture.expert_bias else {})


def write_code(folder: Path) -> None:
    """In place of other code of the same names."""
    for file in FILES:
        shutil.copyfile(_CODE / file, folder / file)


def replaced(hf_files: Path | None) -> list[str]:
    """Files beside the source's config that are other code of the same names."""
    if hf_files is None:
        return []
    there = [file for file in FILES if (hf_files / file).is_file()]
    return [f for f in there if (hf_files / f).read_bytes() != (_CODE / f).read_bytes()]
