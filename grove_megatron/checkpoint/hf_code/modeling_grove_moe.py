"""GroveMoE (arXiv 2508.07785) for transformers from 5.2 on: Qwen3-MoE, its experts in groups.

Of another parent it has that one's attention, router and shared expert.

Each group has a small adjugate expert, which computes a token once however many of the group's
experts it has selected. Routed experts are those of transformers, so that whatever implementation
of experts it is told to use is used; attention, caches and parallel plans are Qwen3-MoE's.

Shape suffixes: T tokens, E experts, K experts per token, G groups, P pairs of a token and a group.
"""

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter
from transformers.integrations import use_experts_implementation
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeAttention,
    Qwen3MoeDecoderLayer,
    Qwen3MoeExperts,
    Qwen3MoeForCausalLM,
    Qwen3MoeMLP,
    Qwen3MoeModel,
    Qwen3MoePreTrainedModel,
    Qwen3MoeRMSNorm,
    Qwen3MoeRotaryEmbedding,
    Qwen3MoeSparseMoeBlock,
)
from transformers.utils.output_capturing import OutputRecorder

from .configuration_grove_moe import GroveMoeConfig

OLMOE_PLAN = OlmoeConfig.base_model_tp_plan or {}


class GroveMoeNormOfAllHeads(nn.Module):
    """RMSNorm of [..., heads, width] as one vector; no kernel for norms of each may replace it."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.flatten(-2).to(torch.promote_types(hidden_states.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight * normed.to(hidden_states.dtype)).view_as(hidden_states)


class GroveMoeAttention(Qwen3MoeAttention):
    """With norms and biases of the parent."""

    def __init__(self, config: GroveMoeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if config.qk_norm == "none":
            self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        elif config.qk_norm == "all_heads":
            for name, projection in (("q_norm", self.q_proj), ("k_norm", self.k_proj)):
                eps = config.rms_norm_eps
                setattr(self, name, GroveMoeNormOfAllHeads(projection.out_features, eps=eps))
        if config.qkv_bias:
            for name in ("q_proj", "k_proj", "v_proj"):
                projection = getattr(self, name)
                biased = nn.Linear(projection.in_features, projection.out_features)
                setattr(self, name, biased)


class GroveMoeRouter(nn.Module):
    """Selects by sigmoid(z) + b and weighs by the softmax over the selected z, or over all."""

    def __init__(self, config: GroveMoeConfig) -> None:
        super().__init__()
        self.top_k, self.pre_softmax = config.num_experts_per_tok, config.router_pre_softmax
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))

    def forward(self, x_TH: Tensor, bias_E: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [T, E], weights [T, K] and indices [T, K], in the dtype of the logits."""
        z_TE = nn.functional.linear(x_TH, self.weight)
        wide_TE = z_TE.to(torch.promote_types(z_TE.dtype, torch.float32))
        # Sigmoids of large logits are all 1 in fp32.
        scores_TE = wide_TE.double().sigmoid() if bias_E is not None else wide_TE
        if bias_E is not None:
            scores_TE = scores_TE + bias_E.double()
        index_TK = scores_TE.topk(self.top_k, dim=-1).indices
        if self.pre_softmax:
            weights_TK = wide_TE.softmax(-1).gather(1, index_TK)
        else:
            weights_TK = wide_TE.gather(1, index_TK).softmax(-1)
        return z_TE, weights_TK.to(z_TE.dtype), index_TK


@use_experts_implementation
class GroveMoeExperts(Qwen3MoeExperts):
    """Transformers looks for this decorator before it lets anyone choose an implementation."""


class GroveMoeAdjugates(nn.Module):
    """One small expert for every group."""

    def __init__(self, config: GroveMoeConfig) -> None:
        super().__init__()
        width, hidden = config.parallel_expert_intermediate_size, config.hidden_size
        self.num_groups = config.num_experts // config.num_experts_per_group
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_groups, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(self.num_groups, hidden, width))

    def forward(self, x_TH: Tensor, group_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Sum over the groups a token meets, each with the weight of the token's experts in it."""
        shape = len(x_TH), self.num_groups
        weights_TG = weights_TK.new_zeros(shape).scatter_add(1, group_TK, weights_TK)
        met_TG = torch.zeros(shape, dtype=torch.bool, device=x_TH.device).scatter(1, group_TK, True)
        # Pairs group by group.
        group_P, token_P = met_TG.T.nonzero(as_tuple=True)
        ends_G = met_TG.sum(0).cumsum(0)
        gate, up = _grouped(x_TH[token_P], self.gate_up_proj, ends_G).chunk(2, dim=-1)
        y_PH = _grouped(nn.functional.silu(gate) * up, self.down_proj, ends_G)
        y_PH = y_PH * weights_TG[token_P, group_P].unsqueeze(-1)
        return torch.zeros_like(x_TH).index_add(0, token_P, y_PH.to(x_TH.dtype))


def _grouped(x_PH: Tensor, weight_GFH: Tensor, ends_G: Tensor) -> Tensor:
    """Rows times the matrix of their group; rows of a group end where ``ends_G`` says."""
    # One product takes rows of whole 16 bytes alone, and autocast does not know it.
    in_bf16 = x_PH.dtype == weight_GFH.dtype == torch.bfloat16
    fits = not any(width % 8 for width in weight_GFH.shape[1:])
    if in_bf16 and fits and hasattr(nn.functional, "grouped_mm"):
        columns = weight_GFH.transpose(1, 2)
        return nn.functional.grouped_mm(x_PH, columns, offs=ends_G.to(torch.int32))
    ends = ends_G.tolist()
    parts = [
        nn.functional.linear(x_PH[start:end], weight)
        for start, end, weight in zip([0, *ends[:-1]], ends, weight_GFH, strict=True)
    ]
    return torch.cat(parts)


class GroveMoeSparseMoeBlock(Qwen3MoeSparseMoeBlock):
    """Routed experts and adjugates."""

    def __init__(self, config: GroveMoeConfig) -> None:
        nn.Module.__init__(self)
        self.experts = GroveMoeExperts(config)
        self.gate = GroveMoeRouter(config)
        self.chunk_experts = GroveMoeAdjugates(config)
        self.group_size, self.scale = config.num_experts_per_group, config.small_experts_weight
        bias = torch.zeros(config.num_experts) if config.use_expert_bias else None
        self.register_buffer("expert_bias", bias)
        if width := config.shared_expert_intermediate_size:
            self.shared_expert = Qwen3MoeMLP(config, intermediate_size=width)
            self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        x_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights_TK, index_TK = self.gate(x_TH, self.expert_bias)
        y_TH = self.experts(x_TH, index_TK, weights_TK)
        added_TH = self.chunk_experts(x_TH, index_TK // self.group_size, self.scale * weights_TK)
        y_TH = y_TH + added_TH
        if hasattr(self, "shared_expert"):
            y_TH = y_TH + self.shared_expert_gate(x_TH).sigmoid() * self.shared_expert(x_TH)
        return y_TH.reshape(hidden_states.shape)


class GroveMoeDecoderLayer(Qwen3MoeDecoderLayer):
    """Where there are experts, with adjugates."""

    def __init__(self, config: GroveMoeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = GroveMoeAttention(config, layer_idx)
        if isinstance(self.mlp, Qwen3MoeSparseMoeBlock):
            self.mlp = GroveMoeSparseMoeBlock(config)


class GroveMoePreTrainedModel(Qwen3MoePreTrainedModel):
    config: GroveMoeConfig
    config_class = GroveMoeConfig
    _no_split_modules = ["GroveMoeDecoderLayer"]  # noqa: RUF012
    # It selects: rounded, it would select others.
    _keep_in_fp32_modules_strict = ["expert_bias"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "router_logits": OutputRecorder(GroveMoeRouter, index=0),
        "hidden_states": GroveMoeDecoderLayer,
        "attentions": Qwen3MoeAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, GroveMoeRouter):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, GroveMoeAdjugates):
            nn.init.normal_(module.gate_up_proj, std=std)
            nn.init.normal_(module.down_proj, std=std)
        elif isinstance(module, GroveMoeSparseMoeBlock) and module.expert_bias is not None:
            nn.init.zeros_(module.expert_bias)


class GroveMoeModel(GroveMoePreTrainedModel, Qwen3MoeModel):
    """As Qwen3MoeModel, of other layers."""

    def __init__(self, config: GroveMoeConfig) -> None:
        GroveMoePreTrainedModel.__init__(self, config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList([GroveMoeDecoderLayer(config, layer) for layer in layers])
        self.norm = Qwen3MoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3MoeRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        if config.qk_norm == "all_heads":
            # The norms see all heads: so does OLMoE's plan have it.
            of_attention = {k: v for k, v in OLMOE_PLAN.items() if ".self_attn." in k}
            plan = {k: v for k, v in config.base_model_tp_plan.items() if "_norm" not in k}
            config.base_model_tp_plan = plan | of_attention
        self.post_init()


class GroveMoeForCausalLM(GroveMoePreTrainedModel, Qwen3MoeForCausalLM):
    """As Qwen3MoeForCausalLM, of another model."""

    def __init__(self, config: GroveMoeConfig) -> None:
        GroveMoePreTrainedModel.__init__(self, config)
        self.model = GroveMoeModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.router_aux_loss_coef = config.router_aux_loss_coef
        self.num_experts, self.num_experts_per_tok = config.num_experts, config.num_experts_per_tok
        self.post_init()


def _stacked(name: str) -> list[WeightConverter]:
    """Files have a tensor for every expert; the modules, one for all."""
    pairs = [f"mlp.{name}.*.{which}_proj.weight" for which in ("gate", "up")]
    return [
        WeightConverter(
            source_patterns=pairs,
            target_patterns=f"mlp.{name}.gate_up_proj",
            operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter(
            source_patterns=f"mlp.{name}.*.down_proj.weight",
            target_patterns=f"mlp.{name}.down_proj",
            operations=[MergeModulelist(dim=0)],
        ),
    ]


register_checkpoint_conversion_mapping(
    GroveMoeConfig.model_type, [*_stacked("experts"), *_stacked("chunk_experts")], overwrite=True
)

__all__ = ["GroveMoeForCausalLM", "GroveMoeModel", "GroveMoePreTrainedModel"]
