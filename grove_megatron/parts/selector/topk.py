"""The default: the best of every token, as the slots of scores, limits and weights say."""

from ..part import Part

PARTS = (
    Part(
        slot="selector",
        name="topk",
        help="the best experts of every token, by the scoring below",
        source="arXiv 1701.06538, Eq. 5; megatron-core 0.19.2 moe_utils.py:710",
        is_on=lambda s: s.grove_router_selector == "topk",
        build=lambda config: None,
        reference=lambda config: None,
        tried="--grove-router-selector topk",
    ),
)
