"""The layers that are compared, with the same experts and the same weights.

- ``plain``: Megatron's MoELayer and its all-to-all; no adjugates.
- ``naive``: the same, with a second pass that evaluates the adjugate of every selected slot, as
  the authors' own code does.
- ``grove-dispatch``: :class:`GroveMoELayer` without groups (``--grove-dispatch``): plain's model.
- ``grove``: :class:`GroveMoELayer`.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from torch import Tensor

from ..config import GroveTransformerConfig
from ..functional.groups import scale_bound
from ..layer_spec import adapt_spec
from ..moe.adjugate import build_adjugates
from ..moe.experts import GroupedExperts
from ..moe.router import GroveRouter
from .ranks import cuda_is_used
from .shape import Shape

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PAPER_SCALE = 0.05
# An expert implementation, as --grove-kernel names it.
GROVE_KERNEL: dict[str, Any] = {
    "sequential": "megatron",
    "te": "megatron",
    "grouped": "grouped",
    "triton": "triton",
}


class NaiveGroveLayer(MoELayer):
    """Grove on Megatron's own dispatch: every (token, expert) row also visits its adjugate.

    Rows are sorted by local expert and groups are contiguous, so the same rows are sorted by local
    group. A token that selected two experts of a group is evaluated twice.
    """

    config: GroveTransformerConfig

    def __init__(
        self,
        config: GroveTransformerConfig,
        submodules: MoESubmodules | None = None,
        layer_number: int | None = None,
        pg_collection: Any = None,
        is_mtp_layer: bool = False,
        name: str | None = None,
    ) -> None:
        pg_collection = pg_collection or get_default_pg_collection()
        super().__init__(config, submodules, layer_number, pg_collection, is_mtp_layer, name)
        assert config.grove_num_groups, "a Grove layer is only built where the config has groups"
        self.num_local_groups = config.grove_num_groups // pg_collection.ep.size()
        self.adjugate_experts = build_adjugates(
            self.submodules.experts, self.num_local_groups, config, pg_collection, name=None
        )

    def routed_experts_compute(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, None]:
        """Two passes over the received rows [N, H], each weighed by probs [N]."""
        dispatcher = self.token_dispatcher
        x_NH, tokens_per_expert, probs_N = dispatcher.dispatch_postprocess(hidden_states, probs)
        y_NH, _ = self.experts(x_NH, tokens_per_expert, probs_N)
        tokens_per_group = tokens_per_expert.reshape(self.num_local_groups, -1).sum(1)
        scale = self.config.grove_adjugate_scale
        a_NH, _ = self.adjugate_experts(x_NH, tokens_per_group, scale * probs_N)
        return dispatcher.combine_preprocess(y_NH + a_NH), None


def layers(shape: Shape, ranks: int, kernel: str) -> dict[str, MoELayer]:
    """All of them, with one expert implementation and the weights of ``grove``."""
    plain_config, grove_config = (config(shape, ranks, kernel, grove=g) for g in (False, True))
    dispatch_config = config(shape, ranks, kernel, grove=False, dispatch=True)
    built: dict[str, MoELayer] = {
        "plain": MoELayer(plain_config, _submodules(shape, kernel)),
        "naive": NaiveGroveLayer(
            grove_config, replace(_submodules(shape, kernel), router=GroveRouter)
        ),
        # As a model gets them.
        "grove-dispatch": adapt_spec(_spec(shape, kernel), dispatch_config)(config=dispatch_config),
        "grove": adapt_spec(_spec(shape, kernel), grove_config)(config=grove_config),
    }
    built = {name: on_device(layer) for name, layer in built.items()}
    same_experts(built)
    weights = built["grove"].state_dict()
    built["naive"].load_state_dict(weights)
    for name in ("plain", "grove-dispatch"):
        built[name].load_state_dict({k: v for k, v in weights.items() if "adjugate" not in k})
    return built


def layer_with_local_experts(
    shape: Shape, ranks: int, kernel: str, kinds: tuple[int, int, int]
) -> MoELayer:
    """A plain MoE on grove's dispatch, with constant, copy and zero experts: so many of each.

    Every rank must call.
    """
    constant, copied, zero = kinds
    own = {"constant": constant, "copy": copied, "zero": zero}
    local = {f"grove_{kind}_experts": count for kind, count in own.items()}
    return layer_with(shape, ranks, kernel, local)


def layer_with(shape: Shape, ranks: int, kernel: str, more: Mapping[str, Any]) -> MoELayer:
    """A plain MoE on grove's dispatch, with these settings. Every rank must call."""
    made = config(shape, ranks, kernel, grove=False, dispatch=True, more=more)
    return on_device(adapt_spec(_spec(shape, kernel), made)(config=made))


def on_device(layer: MoELayer) -> MoELayer:
    """As a model has it: some weights are made on the CPU, those of routers' parts for one."""
    moved: MoELayer = layer.cuda()
    return moved


def hierarchical_layer(shape: Shape, ranks: int, kernel: str, per_node: int) -> MoELayer:
    """grove with hierarchical dispatch, as if every ``per_node`` ranks were a node.

    Every rank must call. The weights are not those of :func:`layers`.
    """
    made = config(shape, ranks, kernel, grove=True)
    made.grove_hierarchical_dispatch = True
    said = os.environ.get("LOCAL_WORLD_SIZE")
    # The dispatcher asks the launcher's variable, once, when it is built.
    os.environ["LOCAL_WORLD_SIZE"] = str(per_node)
    try:
        layer: MoELayer = adapt_spec(_spec(shape, kernel), made)(config=made)
        layer = on_device(layer)
    finally:
        del os.environ["LOCAL_WORLD_SIZE"]
        if said is not None:
            os.environ["LOCAL_WORLD_SIZE"] = said
    return layer


def same_experts(built: dict[str, MoELayer]) -> None:
    """Refuse to compare different expert implementations."""
    kinds = {type(layer.experts) for layer in built.values()}
    assert len(kinds) == 1, f"one expert implementation for all variants, not {kinds}"


def config(
    shape: Shape,
    ranks: int,
    kernel: str,
    *,
    grove: bool,
    dispatch: bool = False,
    more: Mapping[str, Any] | None = None,
) -> GroveTransformerConfig:
    """The configuration of a layer: SwiGLU experts without biases, no balancing loss; and more."""
    dtype = DTYPES[shape.dtype]
    groups: dict[str, Any] = {"grove_dispatch": dispatch}
    if grove:
        groups |= {
            "grove_num_groups": shape.groups,
            "grove_adjugate_ffn_hidden_size": shape.adjugate_width,
            "grove_adjugate_scale": min(PAPER_SCALE, scale_bound(shape.groups, shape.experts)),
        }
    made = GroveTransformerConfig(
        num_layers=1,
        num_attention_heads=1,
        hidden_size=shape.hidden,
        num_moe_experts=shape.experts,
        moe_ffn_hidden_size=shape.expert_width,
        moe_router_dtype="fp32",
        moe_router_load_balancing_type="none",
        moe_token_dispatcher_type="alltoall",
        moe_grouped_gemm=kernel == "te",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        bias_activation_fusion=cuda_is_used(),
        gradient_accumulation_fusion=False,
        transformer_impl="transformer_engine" if kernel == "te" else "local",
        expert_model_parallel_size=ranks,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        **groups,
        **({"moe_router_topk": shape.topk} | dict(more or {})),
    )
    # Set afterwards: the plain layer has the same experts, but the setting is refused without
    # groups.
    made.grove_kernel = GROVE_KERNEL[kernel]
    return made


def _spec(shape: Shape, kernel: str) -> Any:
    te = kernel == "te"
    return get_moe_module_spec(use_te=te, num_experts=shape.experts, moe_grouped_gemm=te)


def _submodules(shape: Shape, kernel: str) -> MoESubmodules:
    """Megatron's own, with the expert implementation of ``kernel``."""
    submodules: MoESubmodules = _spec(shape, kernel).keywords["submodules"]
    return replace(submodules, experts=experts_of(submodules.experts, kernel))


def experts_of(builder: Any, kernel: str) -> Any:
    """A builder of experts like ``builder``'s, of the implementation that ``kernel`` names."""
    if kernel in ("grouped", "triton"):
        assert builder.func is SequentialMLP, builder
        return partial(GroupedExperts, *builder.args, **builder.keywords)
    return builder
