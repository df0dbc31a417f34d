"""Registers GroveMoE when it is imported, which needs Megatron-Bridge; see :func:`.register`.

Written against megatron-bridge 0.6.2 (0.6.0 has the same methods). Paths in docstrings are below
megatron/bridge/models there.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.param_mapping import (
    AutoMapping,
    GatedMLPMapping,
    MegatronParamMapping,
    QKVMapping,
    ReplicatedMapping,
    RowParallelMapping,
)
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.utils.instantiate_utils import register_allowed_target_prefix
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.utils import get_model_config
from torch.nn import functional as F
from transformers import AutoConfig, PretrainedConfig

from ..checkpoint.hf_config import RELEASED, architecture_of, ignored_by_release
from ..checkpoint.source import refuse_parts
from ..config import GroveTransformerConfig
from ..layer_spec import grove_layer_spec
from ..model.architecture import Architecture
from ..model.families import is_buffer
from ..model.families.grove_moe import GROVE_MOE
from ..moe.kernel_choice import takes_grouped_experts
from .names import (
    ADJUGATES,
    BridgeRow,
    globally,
    in_common_order,
    names_on_ranks,
    table,
    without_row,
)
from .settings import architecture_of_provider, hf_config_of, provider_settings

_log = logging.getLogger(__name__)
_GROVE = GROVE_MOE


class GroveMoeConfig(PretrainedConfig):
    """Reads the ``config.json`` of a GroveMoE model as it stands.

    transformers has no such class. The released file has no keys for the groups; a file written by
    Megatron-Bridge keeps keys that its reference has, so here they are always there.
    """

    model_type = _GROVE.model_type

    def __init__(self, **keys: Any) -> None:
        super().__init__(**(RELEASED | keys))


# ----------------------------------------------------------------------------------------- provider


@dataclass
class GroveMoeModelProvider(GPTModelProvider, GroveTransformerConfig):
    """Megatron-Bridge's GPT provider with the Grove settings and layers.

    Its ``__post_init__`` does nothing, as that of every provider; :meth:`finalize` has the checks.
    """

    transformer_layer_spec: Callable[..., Any] = grove_layer_spec

    grove_kernel: Literal["auto", "megatron", "grouped", "triton"] = "megatron"
    """Other values may stack the experts in one parameter, of which Megatron-Bridge knows nothing.
    With TransformerEngine's experts there is nothing to stack, and ``auto`` is the same."""

    # Adjugates have a copy of the config, and hooks hold on to the checkpoint that is loaded
    # (AutoBridge.to_megatron_provider, conversion/auto_bridge.py:1689).
    _NO_COPY_KEYS = GPTModelProvider._NO_COPY_KEYS | {"_pre_wrap_hooks", "_post_wrap_hooks"}

    def finalize(self) -> None:
        """Megatron's checks and derived fields, then those of Grove; may be called again.

        Raises:
            ValueError: the settings do not fit together.
        """
        # It runs TransformerConfig.__post_init__ by name, past ours (transformer_config.py:182).
        super().finalize()
        GroveTransformerConfig.__post_init__(self)
        if self.grove_placement is not None:
            raise ValueError(
                f"grove_placement ({self.grove_placement}) moves experts to ranks where "
                "Megatron-Bridge does not look for them; remove it"
            )
        if takes_grouped_experts(self):
            raise ValueError(
                f"grove_kernel ({self.grove_kernel}) stacks the experts of transformer_impl "
                f"({self.transformer_impl}) in one parameter, which Megatron-Bridge cannot convert;"
                " use grove_kernel (megatron)"
            )


# ------------------------------------------------------------------------------------------ weights


class _OfAdjugates(MegatronParamMapping):
    """What Megatron-Bridge reads off an expert's name, for adjugates.

    Their names are numbered on their rank: ``_megatron_local_name_to_global`` changes names with
    ``.experts.`` in them alone (conversion/model_bridge.py:308).
    """

    num_groups: int | None = None

    @property
    def is_expert(self) -> bool:
        """Adjugates are split over the expert-parallel ranks (param_mapping.py:206)."""
        return True

    def resolve(self, captures: tuple[str, ...]) -> MegatronParamMapping:
        """The mapping of one adjugate: numbers on the rank become those over the whole model.

        With no captures it is a copy of what has been resolved (mapping_registry.py:205).
        """
        if captures:
            captures = globally(
                captures, ep_rank=self.ep_rank, ep_size=self.ep_size, num_groups=self.num_groups
            )
        resolved = super().resolve(captures)
        resolved.num_groups = self.num_groups
        return resolved

    def gather_from_ep_ranks(
        self,
        megatron_weights: torch.Tensor | None,
        megatron_module: Any,
        hf_param_name: str | None,
    ) -> dict[str, torch.Tensor]:
        """Tensors of all expert-parallel ranks (param_mapping.py:727 counts experts)."""
        name = str(hf_param_name)
        if self.ep_size == 1:
            return {name: megatron_weights}
        assert self.num_groups is not None, "resolve has refused it"
        names = names_on_ranks(name, ep_size=self.ep_size, num_groups=self.num_groups)
        assert names[self.ep_rank] == name, (names, name)
        weights = [torch.empty_like(megatron_weights) for _ in names]
        torch.distributed.all_gather(weights, megatron_weights.contiguous(), group=self.ep_group)
        return dict(zip(names, weights, strict=True))

    def gather_from_ep_ranks_scale(self, *args: Any) -> dict[str, torch.Tensor]:
        """Scales of quantized weights; not written (param_mapping.py:821 counts experts)."""
        raise ValueError(
            f"{self.megatron_param} cannot be exported quantized; export it without quantization"
        )


class AdjugateGateUp(_OfAdjugates, GatedMLPMapping):
    """linear_fc1 of an adjugate."""


class AdjugateDown(_OfAdjugates, RowParallelMapping):
    """linear_fc2 of an adjugate; AutoMapping would make a mapping that goes by the name again."""


def _mapping(row: BridgeRow, num_groups: int | None) -> MegatronParamMapping:
    if row.of_adjugates:
        mapping = (AdjugateGateUp if row.kind == "gated" else AdjugateDown)(row.megatron, *row.hf)
        mapping.num_groups = num_groups
        return mapping
    kinds = {
        "auto": AutoMapping,
        # AutoMapping goes by the name of the module's class and knows no GroveRouter.
        "replicated": ReplicatedMapping,
        "qkv": QKVMapping,
        "gated": GatedMLPMapping,
    }
    return kinds[row.kind](row.megatron, *row.hf)


# ------------------------------------------------------------------------------------------- bridge


class GroveMoeBridge(MegatronModelBridge):
    """GroveMoeForCausalLM <-> GPTModel with Grove layers."""

    def provider_bridge(self, hf_pretrained: Any) -> GroveMoeModelProvider:
        """The provider of a model, or of a config without weights."""
        provider = super().provider_bridge(hf_pretrained)
        architecture = _architecture(hf_pretrained.config)
        architecture = replace(architecture, expert_bias=_has_expert_bias(hf_pretrained))
        for name, value in provider_settings(architecture).items():
            setattr(provider, name, value)
        return provider

    @classmethod
    def megatron_to_hf_config(cls, provider: Any) -> dict[str, Any]:
        """``config.json`` of a provider's model."""
        architecture = architecture_of_provider(
            provider, is_silu=provider.activation_func in (F.silu, "silu")
        )
        for line in ignored_by_release(architecture):
            _log.warning("grove_megatron: %s", line)
        dtype = "bfloat16" if provider.bf16 else "float16" if provider.fp16 else "float32"
        return hf_config_of(architecture, dtype)

    def mapping_registry(self) -> MegatronMappingRegistry:
        """The table of names; with a config it also knows the number of groups."""
        num_groups = None if self.hf_config is None else _architecture(self.hf_config).num_groups
        return MegatronMappingRegistry(*(_mapping(row, num_groups) for row in table()))

    def build_conversion_tasks(
        self, hf_pretrained: Any, megatron_model: Any, weight_dtype: torch.dtype | None = None
    ) -> list[Any]:
        """The list of conversions (conversion/model_bridge.py:1665).

        Raises:
            ValueError: the checkpoint lacks tensors. Megatron-Bridge logs that and goes on, with
                initial weights in their place. Or the model has parts that no Hugging Face model
                has.
        """
        models = megatron_model if isinstance(megatron_model, list) else [megatron_model]
        for model in models:
            refuse_parts(get_model_config(model), "the model's configuration")
        tasks: list[Any] = super().build_conversion_tasks(
            hf_pretrained, megatron_model, weight_dtype=weight_dtype
        )
        source = _source(hf_pretrained)
        if source is not None:
            _check_complete(tasks, set(source.get_all_keys()))
        return tasks

    def build_adapter_conversion_tasks(self, megatron_model: Any, *args: Any, **kwargs: Any) -> Any:
        """Conversions of LoRA adapters (conversion/peft_bridge.py).

        Raises:
            ValueError: an adjugate has an adapter; is_expert_linear (megatron/bridge/peft/utils.py)
                takes it for an expert's, and counts it as one.
        """
        models = megatron_model if isinstance(megatron_model, list) else [megatron_model]
        for model in models:
            for name, _ in model.named_parameters():
                if ADJUGATES in name and ".adapter." in name:
                    raise ValueError(
                        f"{name} is an adapter of an adjugate, which cannot be exported; leave "
                        "adjugate_experts out of the adapters' target_modules"
                    )
        return super().build_adapter_conversion_tasks(megatron_model, *args, **kwargs)

    def _megatron_global_param_names_all_pp_ranks(self, megatron_model: Any) -> list[str]:
        """All parameters, in the order they are converted in (conversion/model_bridge.py:800).

        Raises:
            ValueError: the model has parameters that are in no row of the table.
        """
        names = super()._megatron_global_param_names_all_pp_ranks(megatron_model)
        unknown = without_row(self._get_lora_unwrapped_name(name) for name in names)
        if unknown:
            raise ValueError(
                f"{_some(unknown)} cannot be converted: no GroveMoE model of Hugging Face has it"
            )
        return in_common_order(names)


def _architecture(hf_config: Any) -> Architecture:
    name = getattr(hf_config, "name_or_path", "") or "no file"
    return architecture_of(hf_config.to_dict(), f"the Hugging Face config ({name})")


def _source(hf_pretrained: Any) -> Any:
    """Where the weights are; None for a config alone (moe_experts_stored_packed does the same)."""
    return getattr(getattr(hf_pretrained, "state", None), "source", None)


def _has_expert_bias(hf_pretrained: Any) -> bool:
    source = _source(hf_pretrained)
    return source is not None and any(map(is_buffer, source.get_all_keys()))


def _check_complete(tasks: list[Any], there: set[str]) -> None:
    needed = {name for task in tasks for name in _tensors(task.mapping.hf_param)}
    # Absent, the bias is zero.
    missing = sorted(n for n in needed - there if not is_buffer(n))
    if missing:
        raise ValueError(f"{_some(missing)} is not in the checkpoint; name a complete one")


def _tensors(hf_param: str | dict[str, str]) -> Iterable[str]:
    return [hf_param] if isinstance(hf_param, str) else hf_param.values()


def _some(names: list[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


# ------------------------------------------------------------------------------------- registration


def _register() -> None:
    AutoConfig.register(_GROVE.model_type, GroveMoeConfig, exist_ok=True)
    # Checkpoints of Megatron-Bridge name the provider and its spec (instantiate_utils.py:132).
    register_allowed_target_prefix("grove_megatron.")
    # The released config has the file before the class; the last name is the one that is written.
    for source in (f"modeling_{_GROVE.model_type}.{_GROVE.class_name}", _GROVE.class_name):
        MegatronModelBridge.register_bridge(
            source=source,
            target=GPTModel,
            provider=GroveMoeModelProvider,
            model_type=_GROVE.model_type,
        )(GroveMoeBridge)


_register()
