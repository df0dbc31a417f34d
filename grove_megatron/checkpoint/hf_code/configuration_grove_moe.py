"""Configuration of GroveMoE (arXiv 2508.07785) for transformers from 5.2 on."""

from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.utils.versions import require_version

# Read first; the model's code would fail without saying of what.
require_version("transformers>=5.2", "GroveMoE needs it: pip install --upgrade transformers")


class GroveMoeConfig(Qwen3MoeConfig):
    r"""Qwen3-MoE with groups of experts, each with an adjugate; defaults are those of the release.

    Args:
        num_experts_per_group (`int`, *optional*, defaults to 2):
            Routed experts of a group; divides `num_experts`.
        parallel_expert_intermediate_size (`int`, *optional*, defaults to 128):
            Width of an adjugate.
        small_experts_weight (`float`, *optional*, defaults to 0.05):
            Weight of the adjugates' sum.
        use_expert_bias (`bool`, *optional*, defaults to `False`):
            Has the checkpoint a bias per expert, by which experts are selected and not weighed?
        router_pre_softmax (`bool`, *optional*, defaults to `False`):
            Weighs experts by the softmax over all of them, not over the selected ones.
        qk_norm (`str`, *optional*, defaults to `"head"`):
            Queries and keys are normalised by `"head"`, over `"all_heads"` as in OLMoE, or not,
            `"none"`, as in Mixtral and Qwen2-MoE.
        qkv_bias (`bool`, *optional*, defaults to `False`):
            Have queries, keys and values a bias? Without their norm alone.
        shared_expert_intermediate_size (`int`, *optional*):
            Width of an expert that computes every token, with a gate as in Qwen2-MoE.
    """

    model_type = "grove_moe"

    num_experts_per_group: int = 2
    parallel_expert_intermediate_size: int = 128
    small_experts_weight: float = 0.05
    use_expert_bias: bool = False
    router_pre_softmax: bool = False
    qk_norm: str = "head"
    qkv_bias: bool = False
    shared_expert_intermediate_size: int | None = None
    # Its router renormalises whatever the config says.
    norm_topk_prob: bool = True


__all__ = ["GroveMoeConfig"]
