"""Scores, selection and weights."""

from .rows import Area, Ignored, Refused, Shown, Works

AREA = Area(
    "Router",
    (
        Works(
            name="topk",
            flags="--moe-router-topk 3",
            compare="math",
            note="with grove scoring 2 or more: the weight of one expert alone has no gradient",
        ),
        Works(name="pre-softmax", flags="--moe-router-pre-softmax", compare="math"),
        Works(name="scaling-factor", flags="--moe-router-topk-scaling-factor 2.5", compare="math"),
        Works(
            name="router-fp64",
            flags="--moe-router-dtype fp64",
            tolerance=1e-5,
            note="fp32 or wider is advised: selection compares scores",
        ),
        Works(
            name="softmax-scoring",
            flags="--moe-router-score-function softmax",
            note="the default; with grove scoring the field is not read",
        ),
        Works(
            name="sigmoid-scoring",
            flags="--moe-router-score-function sigmoid",
            layout="--grove-router-scoring softmax",
            compare="math",
            note="Megatron's own router, with --grove-router-scoring softmax",
        ),
        Works(
            name="group-limited",
            flags="--moe-router-num-groups 4 --moe-router-group-topk 2",
            compare="math",
            note="these groups limit the selection and are not those of the adjugates",
        ),
        Works(
            name="jitter",
            flags="--moe-input-jitter-eps 0.01",
            compare="math",
            note="in training alone; Megatron's router jitters in evaluation too",
        ),
        Works(
            name="force-balance",
            flags="--moe-router-force-load-balancing",
            compare="math",
            note="random logits, for benchmarks",
        ),
        Works(
            name="force-biased",
            flags="--moe-router-force-biased 1.0",
            compare="math",
            note="random bias of logits, for benchmarks",
        ),
        Works(name="replay", flags="--moe-enable-routing-replay"),
        Works(name="trace", flags="--moe-routing-trace-path {tmp}/trace"),
        Works(
            name="trace-more",
            flags="--moe-routing-trace-max-training-iters 2 --moe-routing-trace-capture-logits "
            "--moe-routing-trace-capture-hidden-states --moe-routing-trace-dump-weights",
            layout="--moe-routing-trace-path {tmp}/trace",
        ),
        Shown(
            what="`padding_mask` of a model's forward pass",
            tests=(
                "tests/unit/moe/test_router.py"
                "::test_tokens_are_counted_per_expert_for_the_bias_and_padding_is_not",
                "tests/multirank/test_counts.py::test_padding_is_sent_and_is_no_load",
            ),
            note="no load, and no part in losses or the bias; with an expert bias Megatron's "
            "router fails, or counts wrong where there are as many tokens as experts",
        ),
        Refused(
            setting="moe_router_fusion",
            flags="--moe-router-fusion",
            reason="computes Megatron's score functions, not --grove-router-scoring (grove); "
            "remove it, or use --grove-router-scoring softmax",
            of="scoring",
        ),
        Refused(
            setting="moe_router_score_function",
            flags="--moe-router-score-function sqrtsoftplus",
            reason="is not used by --grove-router-scoring (grove), which selects on sigmoid; "
            "remove it, or use --grove-router-scoring softmax",
            of="scoring",
        ),
        Refused(
            setting="moe_router_padding_for_quantization",
            flags="--moe-router-padding-for-quantization",
            reason="would add routed pairs that no token chose; remove it",
        ),
        Ignored(
            "--moe-router-padding-for-fp8",
            "the old name of --moe-router-padding-for-quantization; Megatron ends the job",
        ),
    ),
)
