"""What a model is: the sizes that decide its weights, and what it computes with them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from .weights import Weight

GATE_UNITS = 8
"""Hidden units of a router's gate of two layers, a column."""


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), as Megatron's flags.

    Attributes:
        q_lora_rank: width of the compressed queries, None where they are projected in one step.
        kv_lora_rank: width of the compressed keys and values.
        qk_head_dim: width of a head's query and key without its rotary positions.
        qk_pos_emb_head_dim: width of the rotary positions; the heads share those of their keys.
        v_head_dim: width of a head's value.
        whole_compression: has every tensor-parallel rank the projections to these ranks whole, as
            TransformerEngine's layers, or a part of their rows, as local ones?
    """

    q_lora_rank: int | None = None
    kv_lora_rank: int
    qk_head_dim: int
    qk_pos_emb_head_dim: int
    v_head_dim: int
    whole_compression: bool = True

    @property
    def head_dim(self) -> int:
        """Of a query and a key, as attention takes them."""
        return self.qk_head_dim + self.qk_pos_emb_head_dim


@dataclass(frozen=True, kw_only=True)
class Model:
    """A GPT of Megatron's with routed experts in some layers, and groups of them or not.

    Attributes:
        num_layers: decoder layers, as many as ``moe_layers``.
        hidden_size: width of the residual stream.
        num_attention_heads, num_query_groups: query heads, and heads of keys and values.
        head_dim: width of one head; of its query and key where there is ``latent``.
        vocab_size: rows of the embedding, with padding or without; 0 where they are not known, and
            what they would take is left out.
        tied_embeddings: the output layer is the input embedding.
        moe_layers: of every decoder layer, has it experts?
        ffn_hidden_size: width of the layers without; 0 where there are none.
        num_experts, moe_ffn_hidden_size, topk: routed experts of a layer, the width of one, and how
            many a token selects; 0 in a dense model.
        local_experts: what a token selects from besides, and which has no FFN; the constant ones
            among them are ``constant_experts``.
        local_tau: tokens of a routed expert for each of a local one, as training balances them.
        blocks, blocks_chosen: equal, consecutive blocks of experts, of which a token chooses so
            many before it selects experts among them (``--moe-router-num-groups``,
            ``--moe-router-group-topk``); 0 where it selects among all.
        num_groups, adjugate_ffn_hidden_size: groups of experts, each with an adjugate, and its
            width; 0 without Grove.
        expert_bias: is there a selection bias per expert and layer with experts?
        shared_expert_size: width of the shared expert, 0 for none.
        shared_expert_gate: has it a gate of its own?
        part_weights: what else a layer with experts has, of a part of its router.
        mtp_depths: predictions beyond the next token.
        mtp_modules: layers that make them; fewer than depths where one is used repeatedly.
        gated: a SwiGLU-like FFN of three matrices and not two.
        norm_bias: LayerNorm, and not RMSNorm.
        qk_layernorm, attention_output_gate: as Megatron's flags.
        whole_qk_norm: one norm over all heads of the queries, and one of the keys, not of a head.
        softmax_offset: has every head a learned one?
        linear_bias, qkv_bias: have the linear layers a bias, all or that of QKV?
        learned_positions: rows of a learned position embedding, 0 without.
        latent: queries, keys and values are made of compressed ones, None where they are not.
            ``qk_layernorm`` is then of these, and every head has a key and a value of its own.
    """

    num_layers: int = field(init=False)
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool = False
    moe_layers: tuple[bool, ...]
    ffn_hidden_size: int = 0
    num_experts: int = 0
    moe_ffn_hidden_size: int = 0
    topk: int = 0
    local_experts: int = 0
    constant_experts: int = 0
    local_tau: float = 1.0
    blocks: int = 0
    blocks_chosen: int = 0
    num_groups: int = 0
    adjugate_ffn_hidden_size: int = 0
    expert_bias: bool = False
    shared_expert_size: int = 0
    shared_expert_gate: bool = False
    part_weights: tuple[Weight, ...] = ()
    mtp_depths: int = 0
    mtp_modules: int = 0
    gated: bool = True
    norm_bias: bool = False
    qk_layernorm: bool = False
    whole_qk_norm: bool = False
    attention_output_gate: bool = False
    softmax_offset: bool = False
    linear_bias: bool = False
    qkv_bias: bool = False
    learned_positions: int = 0
    latent: LatentAttention | None = None

    def __post_init__(self) -> None:
        latent = self.latent
        assert latent is None or self.head_dim == latent.head_dim, "head_dim is not the latent's"
        object.__setattr__(self, "num_layers", len(self.moe_layers))

    @property
    def is_grove(self) -> bool:
        return self.num_groups > 0

    @property
    def layers_are_alike(self) -> bool:
        """All are MoE layers, or none is: Megatron then keeps them as slices of one tensor."""
        return len(set(self.moe_layers)) == 1

    @property
    def mtp_is_moe(self) -> bool:
        """An MTP layer is one like the last of the decoder."""
        return self.moe_layers[-1]

    @property
    def query_size(self) -> int:
        return self.head_dim * self.num_attention_heads

    @property
    def key_size(self) -> int:
        return self.head_dim * self.num_query_groups

    def count_moe_layers(self, *, mtp: int) -> int:
        """Layers with experts, among them ``mtp`` MTP layers."""
        return sum(self.moe_layers) + mtp * self.mtp_is_moe

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The letters that :class:`.weights.Weight` uses for dimensions."""
        latent = {}
        if self.latent is not None:
            heads = self.num_attention_heads
            latent = {
                "X": self.latent.q_lora_rank or 0,
                "L": self.latent.kv_lora_rank,
                # What keys take from it beside: their positions.
                "M": self.latent.qk_pos_emb_head_dim,
                # Head by head its key without positions and its value.
                "Z": heads * (self.latent.qk_head_dim + self.latent.v_head_dim),
                "O": heads * self.latent.v_head_dim,
            }
        return latent | {
            "V": self.vocab_size,
            "P": self.learned_positions,
            "H": self.hidden_size,
            # Two of it, side by side.
            "J": 2 * self.hidden_size,
            "N": self.num_attention_heads,
            "Q": self.query_size,
            "K": self.key_size,
            "D": self.head_dim,
            "F": self.ffn_hidden_size,
            "E": self.num_experts,
            "R": self.num_experts + self.local_experts,
            # Hidden units of a gate of two layers.
            "W": GATE_UNITS * (self.num_experts + self.local_experts),
            # Queries, keys and values of a gate of attention, one below the other.
            "Y": 3 * (self.num_experts + self.local_experts),
            # Experts of a token.
            "T": self.topk,
            "C": self.constant_experts,
            "B": 2 * self.constant_experts,
            "I": self.moe_ffn_hidden_size,
            # Gate and up, one on top of the other.
            "U": 2 * self.moe_ffn_hidden_size,
            "G": self.num_groups,
            "A": self.adjugate_ffn_hidden_size,
            "S": self.shared_expert_size,
            "1": 1,
            "2": 2,
        }


@dataclass(frozen=True, kw_only=True)
class Architecture(Model):
    """A model whole enough to be written in another format, that of one of :mod:`.families`.

    Attributes:
        max_position_embeddings: longest sequence.
        norm_epsilon: of every norm.
        rotary_base: theta of the rotary embedding.
        normalized_topk: the weights of the selected experts sum to 1.
        adjugate_scale: weight of the adjugates' sum.
        settings: of a layer with experts beyond these, where not the default, by name: what its
            ``local_experts``, ``constant_experts``, ``part_weights`` and ``whole_qk_norm`` come
            from.
    """

    max_position_embeddings: int
    norm_epsilon: float
    rotary_base: float
    normalized_topk: bool = True
    adjugate_scale: float = 0.0
    settings: tuple[tuple[str, Any], ...] = ()

    def described(self) -> dict[str, Any]:
        """Every fact of it once, by name."""
        derived = {"local_experts", "constant_experts", "part_weights", "whole_qk_norm", "settings"}
        # No family has them.
        derived |= {"latent", "blocks", "blocks_chosen"}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in derived}
        return own | dict(self.settings)


def layers_with_experts(frequency: int | Sequence[int], num_layers: int) -> tuple[bool, ...]:
    """Of every decoder layer: has it experts?

    As get_gpt_decoder_layer_specs of Megatron 0.19.2 reads ``--moe-layer-freq``.

    Args:
        frequency: every n-th layer has, from the first; or a number for every layer, 0 for none.
        num_layers: of the decoder.
    """
    if isinstance(frequency, int):
        return tuple(layer % frequency == 0 for layer in range(num_layers))
    return tuple(bool(has_experts) for has_experts in frequency)
