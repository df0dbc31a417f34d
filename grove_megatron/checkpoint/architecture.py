"""What a model is, whichever format its weights are in."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """A Qwen3-shaped decoder: Grove MoE, Qwen3-MoE, or Qwen3 (dense).

    Args:
        num_layers: decoder layers.
        hidden_size: width of the residual stream.
        num_attention_heads: query heads.
        num_query_groups: key and value heads.
        head_dim: width of one head.
        vocab_size: rows of the embedding, without padding.
        max_position_embeddings: longest sequence.
        norm_epsilon: of every RMSNorm.
        rotary_base: theta of the rotary embedding.
        tied_embeddings: the output layer is the input embedding.
        moe_layers: of every layer, whether it is an MoE layer.
        ffn_hidden_size: width of the layers that are not; None if there are none.
        num_experts: routed experts of an MoE layer; 0 in a dense model.
        moe_ffn_hidden_size: width of one expert.
        topk: experts a token selects.
        normalized_topk: the weights of the selected experts sum to 1.
        num_groups: groups of experts, each with an adjugate; 0 without Grove.
        adjugate_ffn_hidden_size: width of an adjugate.
        adjugate_scale: weight of the adjugates' sum.
        expert_bias: the model has a selection bias per expert and MoE layer.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    rotary_base: float
    tied_embeddings: bool
    moe_layers: tuple[bool, ...]
    ffn_hidden_size: int | None = None
    num_experts: int = 0
    moe_ffn_hidden_size: int = 0
    topk: int = 0
    normalized_topk: bool = True
    num_groups: int = 0
    adjugate_ffn_hidden_size: int = 0
    adjugate_scale: float = 0.0
    expert_bias: bool = False

    @property
    def is_grove(self) -> bool:
        return self.num_groups > 0

    @property
    def layers_are_alike(self) -> bool:
        """All are MoE layers, or none is: Megatron then keeps them as slices of one tensor."""
        return len(set(self.moe_layers)) == 1
