"""What a family of Hugging Face models calls things."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class Family:
    """A model class and its tensors.

    Args:
        class_name: in ``architectures`` of ``config.json``.
        model_type: there.
        names: the tensors of every weight of :mod:`.model.table`, a name for each of its blocks;
            those of a layer behind ``layer``. ``{index}`` counts experts or groups, ``{constant}``
            is the number of every constant expert, with a tensor of its own.
        cut: of weights that are other tensors than their blocks, the dimensions of each.
        layer: what goes before the names of a layer.
        module: is the class's module said before its name, ``modeling_grove_moe.Grove...``?
        aliases: names that transformers 5 has otherwise in memory, and in files where it saves what
            is in memory: a regular expression for its name, and what files have in its place.
    """

    class_name: str
    model_type: str
    names: Mapping[str, tuple[str, ...]]
    cut: Mapping[str, str] = field(default_factory=dict)
    layer: str = "model.layers.{layer}."
    module: bool = False
    aliases: tuple[tuple[str, str], ...] = ()

    def file_name(self, name: str) -> str:
        """What files call a tensor that transformers 5 holds under ``name``."""
        for held, in_files in self.aliases:
            found = re.fullmatch(held, name)
            if found:
                return found.expand(in_files)
        return name

    @property
    def has_experts(self) -> bool:
        return "mlp.router.weight" in self.names

    @property
    def qk_layernorm(self) -> bool:
        return "self_attention.q_layernorm.weight" in self.names

    def has_class(self, name: object) -> bool:
        """Is this its class?"""
        if self.module:
            return isinstance(name, str) and name.endswith(self.class_name)
        return name == self.class_name


def swiglu(megatron: str, hf: str) -> dict[str, tuple[str, ...]]:
    """The names of an FFN: linear_fc1 is gate_proj and up_proj, linear_fc2 is down_proj."""
    return {
        f"{megatron}.linear_fc1.weight": (f"{hf}.gate_proj.weight", f"{hf}.up_proj.weight"),
        f"{megatron}.linear_fc2.weight": (f"{hf}.down_proj.weight",),
    }
