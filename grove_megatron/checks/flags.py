"""How a setting is spelled on a command line."""

from collections.abc import Mapping
from typing import Any

# Where it has not the setting's name.
_SPELLED = {
    "fp4": "--fp4-format",
    "fp8": "--fp8-format",
    "layernorm_epsilon": "--norm-epsilon",
    "layernorm_zero_centered_gamma": "--apply-layernorm-1p",
    "metadata_path": "--tokenizer-metadata",
    "microbatch_group_size_per_vp_stage": "--microbatch-group-size-per-virtual-pipeline-stage",
    "nccl_ub": "--use-nccl-ub",
}


def flag_of(setting: str) -> str:
    """The flag of a setting: of a field of a configuration, or an attribute of the arguments."""
    return _SPELLED.get(setting, f"--{setting.replace('_', '-')}")


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words of a command line; one that is True is a switch."""
    return [
        word
        for name, value in settings.items()
        for word in ([flag_of(name)] if value is True else [flag_of(name), str(value)])
    ]
