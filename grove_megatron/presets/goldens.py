"""The goldens: what authors' code computed, in fp64, of small models and layers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CHECKOUT = Path(__file__).parents[2]
DATA = "tests/data"
DEFAULT = "default"


@dataclass(frozen=True, order=True)
class Golden:
    """One that ``grove verify`` compares with.

    Args:
        kind: a whole model in Hugging Face's format, or one MoE layer.
        folder: its name.
        variant: of a layer's router; ``default``, also of a model.
    """

    kind: Literal["layer", "model"]
    folder: str
    variant: str = DEFAULT

    @property
    def name(self) -> str:
        return self.folder if self.variant == DEFAULT else f"{self.folder}:{self.variant}"

    @property
    def path(self) -> str:
        """Of the folder, from the top of the repository."""
        return f"{DATA}/goldens/{self.folder}" if self.kind == "layer" else f"{DATA}/{self.folder}"

    @property
    def file(self) -> str:
        """Of what was computed."""
        if self.kind == "model":
            return f"{self.path}/golden.safetensors"
        variant = "" if self.variant == DEFAULT else f".{self.variant}"
        return f"{self.path}/layer{variant}.safetensors"

    @property
    def words(self) -> list[str]:
        """Of the command that compares, after ``grove``."""
        if self.kind == "model":
            return ["verify", "--hf", self.path, "--golden", self.file]
        variant = [] if self.variant == DEFAULT else ["--variant", self.variant]
        return ["verify", "--layer", self.path, *variant]


def goldens(checkout: Path = CHECKOUT) -> list[Golden]:
    """All there are."""
    return sorted(_found(checkout / DATA))


def _found(data: Path) -> Iterator[Golden]:
    for file in data.glob("*/golden.safetensors"):
        yield Golden("model", file.parent.name)
    for file in data.glob("goldens/*/layer*.safetensors"):
        variant = file.name.removeprefix("layer").removesuffix("safetensors").strip(".")
        yield Golden("layer", file.parent.name, variant or DEFAULT)


OF_PRESETS: dict[str, tuple[str, ...]] = {
    "grovemoe-33b": ("grovemoe-tiny",),
    "mixtral-8x7b": ("mixtral", "mixtral-tiny"),
    "mixtral-8x22b": ("mixtral", "mixtral-tiny"),
    "qwen1.5-moe-a2.7b": ("qwen2_moe", "qwen2_moe-tiny"),
    "qwen3-30b-a3b": ("qwen3_moe",),
    "olmoe-7b": ("olmoe", "olmoe-tiny"),
    "dbrx": ("dbrx",),
    "grok-1": ("grok1",),
    "deepseekmoe-16b": ("deepseek_v2:greedy",),
    "switch-base-128": ("switch", "switch:drop"),
    "moe++-0.6b": ("moepp:paper",),
    "moe++-1b": ("moepp:paper",),
    "moe++-2b": ("moepp:paper",),
    "moe++-7b": ("moepp:mixtral_logits_norm", "moepp:linear_nomul", "moepp-tiny"),
}
"""By preset: the names of those of its system; where none is exactly that, the nearest."""
