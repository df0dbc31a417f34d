"""Auxiliary losses, expert bias, capacity."""

from .rows import Area, Idle, Refused, Works

AREA = Area(
    "Balance and capacity",
    (
        Works(
            name="aux-loss",
            flags="--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.1",
            compare="math",
        ),
        Works(
            name="seq-aux-loss",
            flags="--moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 0.1",
            compare="math",
        ),
        Works(
            name="global-aux-loss",
            flags="--moe-router-load-balancing-type global_aux_loss --moe-aux-loss-coeff 0.1",
            compare="math",
        ),
        Works(
            name="two-aux-losses",
            flags="--moe-router-load-balancing-type aux_loss seq_aux_loss "
            "--moe-aux-loss-coeff 0.1 0.05",
            compare="math",
        ),
        Works(
            name="no-aux-loss",
            flags="--moe-router-load-balancing-type none",
            compare="math",
        ),
        Works(name="z-loss", flags="--moe-z-loss-coeff 0.1", compare="math"),
        Works(
            name="expert-bias",
            flags="--moe-router-enable-expert-bias --moe-router-bias-update-rate 0.01",
            compare="runs",
            beside_megatron=False,
            tests=("tests/multirank/test_balance.py",),
            note="--grove-bias-update-rule says how the bias is updated",
        ),
        Works(
            name="capacity-probs",
            flags="--moe-expert-capacity-factor 1.0 --moe-token-drop-policy probs",
            compare="math",
            note="an adjugate gets the weights of the experts that were not dropped",
        ),
        Works(
            name="capacity-position",
            flags="--moe-expert-capacity-factor 1.0 --moe-token-drop-policy position",
            compare="math",
        ),
        Works(name="per-layer-logging", flags="--moe-per-layer-logging"),
        Refused(
            setting="moe_pad_expert_input_to_capacity",
            flags="--moe-expert-capacity-factor 1.0 --moe-pad-expert-input-to-capacity",
            reason="would count padding as tokens of an adjugate; remove it, dropping alone works",
            of="groups",
        ),
        Refused(
            setting="moe_expert_rank_capacity_factor",
            flags="--moe-expert-rank-capacity-factor 1.0",
            reason="belongs to dispatchers that are not Grove's; use --moe-expert-capacity-factor",
            when=lambda v, _: v is not None,
        ),
        Refused(
            setting="moe_router_load_balancing_type",
            flags="--moe-router-load-balancing-type sinkhorn",
            reason="selects experts itself and so excludes --grove-router-scoring (grove); use "
            "aux_loss, none or an expert bias, or --grove-router-scoring softmax",
            of="scoring",
        ),
        Idle(
            "--moe-aux-loss-coeff",
            " without an aux_loss in --moe-router-load-balancing-type",
            lambda s: "aux_loss" not in str(s.moe_router_load_balancing_type),
        ),
        Idle(
            "--moe-router-quantile-balancing-ema",
            " without --moe-router-load-balancing-type quantile_balancing, which excludes grove "
            "scoring",
            lambda s: "quantile_balancing" not in s.moe_router_load_balancing_type,
        ),
    ),
)
