"""The default: the best of every token, as the slots of scores, limits and weights say."""

from ..part import Part

PARTS = (
    Part(
        slot="selector",
        name="topk",
        help="the best experts of every token, by the scoring below",
        source="arXiv 1701.06538, Eq. 5; megatron-core 0.19.2 moe_utils.py:710",
        formula="e_TK = the K largest of s_TE, best first\n"
        "s_TE = select(scoring.select(z_TE, b_E)); weights by the scoring",
        when="Unless there is a reason for another. A token chooses by itself alone, so training "
        "and evaluation do the same; balance has to come from a loss, an expert bias or a "
        "capacity.",
        is_on=lambda s: s.grove_router_selector == "topk",
        build=lambda config: None,
        reference=lambda config: None,
        tried="--grove-router-selector topk",
    ),
)
