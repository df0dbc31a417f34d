"""Floating-point operations of a token, forward and backward.

As Megatron counts them (training.py:390 num_floating_point_operations @ 0.19.2): matrix products
only, two operations a multiply-add, each product three times (forward, and the gradients of input
and weight), what is recomputed not again. Megatron counts no router and no query or key norm. The
adjugates are added here, one product for each that a token meets. One difference: an FFN with quick
GEGLU has three matrices, of which Megatron counts two.
"""

from ..model.architecture import LatentAttention, Model
from ..model.selection import ffn_per_token
from .traffic import groups_per_token

# Forward, gradient of the input, gradient of the weight.
_PASSES = 3
# A multiplication and an addition.
_FUSED = 2


def adjugate_flops(
    tokens: float, hidden_size: int, width: int, *, gated: bool, groups: float, layers: int
) -> float:
    """Of the adjugates, on top of Megatron's count.

    Args:
        tokens: positions trained on.
        width: FFN width of an adjugate.
        gated: three matrices (SwiGLU) and not two.
        groups: distinct groups that an average token meets in a layer.
        layers: Grove layers that a token passes, MTP layers included, as often as it does.
    """
    matrices = 3 if gated else 2
    return _PASSES * _FUSED * tokens * hidden_size * width * matrices * groups * layers


def flops_per_token(
    model: Model,
    sequence_length: int,
    groups: float | None = None,
    experts: float | None = None,
) -> float:
    """Of a token in a sequence of this length, with causal attention.

    Args:
        groups: distinct groups it meets in a layer; None for the expectation.
        experts: experts with an FFN that it has in a layer, likewise.
    """
    groups = groups_per_token(model) if groups is None else groups
    experts = ffn_per_token(model) if experts is None else experts
    hidden, depths = model.hidden_size, model.mtp_depths
    passed = model.num_layers + depths
    moe = model.count_moe_layers(mtp=depths)
    matrices = 2 + model.gated

    attention = _attention(model, sequence_length)
    dense_ffn = hidden * model.ffn_hidden_size * matrices
    routed = model.moe_ffn_hidden_size * experts
    moe_ffn = hidden * (routed + model.shared_expert_size) * matrices
    mtp = 3 * hidden + 2 * hidden * hidden
    logits = hidden * model.vocab_size * (1 + depths)
    products = (
        passed * attention + (passed - moe) * dense_ffn + moe * moe_ffn + depths * mtp + logits
    )
    return _PASSES * _FUSED * products + adjugate_flops(
        1,
        hidden,
        model.adjugate_ffn_hidden_size,
        gated=model.gated,
        groups=groups,
        layers=moe if model.num_groups else 0,
    )


def _attention(model: Model, sequence_length: int) -> float:
    """Products of a layer."""
    if model.latent is not None:
        return _latent_attention(model, model.latent, sequence_length)
    projections = model.query_size * (2 + model.attention_output_gate) + 2 * model.key_size
    return model.hidden_size * projections + sequence_length * model.query_size


def _latent_attention(model: Model, latent: LatentAttention, sequence_length: int) -> float:
    """The same with one product more for every compressed element, as Megatron has it, norms or
    not (training.py:619 @ 0.19.2)."""
    hidden, heads, compressed = model.hidden_size, model.num_attention_heads, latent.kv_lora_rank
    queries = hidden * model.query_size
    if latent.q_lora_rank is not None:
        queries = latent.q_lora_rank * (hidden + model.query_size + 1)
    values = heads * latent.v_head_dim
    keys_and_values = compressed * (hidden + heads * latent.qk_head_dim + values + 1)
    positions = hidden * latent.qk_pos_emb_head_dim
    # Of the pairs of tokens a causal mask leaves one half.
    core = sequence_length * (model.query_size + values) / 2
    return queries + keys_and_values + positions + values * hidden + core
