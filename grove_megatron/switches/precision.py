"""Number formats."""

from .rows import Area, Idle, Ignored, Refused, Works, idle_without

EP2 = "--expert-model-parallel-size 2"
# Widths and rows that all recipes take.
FP8 = (
    "--bf16 --moe-grouped-gemm --hidden-size 128 --moe-ffn-hidden-size 128 "
    "--grove-adjugate-ffn-hidden-size 128 --seq-length 128 --max-position-embeddings 128"
)
PADDING = "experts and adjugates pad their rows to what the format needs, each after the dispatch"
AREA = Area(
    "Precision",
    (
        Works(
            name="bf16",
            flags="--bf16",
            layout=EP2,
            compare="losses",
            tolerance=1e-2,
            beside_megatron=False,
        ),
        Works(
            name="fp16",
            flags="--fp16 --initial-loss-scale 256",
            layout=EP2,
            compare="losses",
            tolerance=1e-2,
            beside_megatron=False,
        ),
        Works(
            name="bf16-reduction",
            flags="--grad-reduce-in-bf16",
            layout=f"{EP2} --bf16",
            tolerance=5e-2,
            beside_megatron=False,
        ),
        Works(
            name="fp32-reduction",
            flags="--accumulate-allreduce-grads-in-fp32",
            layout=f"{EP2} --bf16",
            beside_megatron=False,
            note="Megatron's default with --bf16",
        ),
        Works(
            name="fp32-residual",
            flags="--fp32-residual-connection",
            layout=f"{EP2} --bf16",
            # Rounds elsewhere, and then some tokens choose other experts.
            compare="losses",
            tolerance=1e-2,
            needs="te",
            beside_megatron=False,
            note="Megatron's local layers multiply in two dtypes and end with an error",
        ),
        Works(name="deterministic", flags="--deterministic-mode", layout=EP2),
        Works(
            name="fp8",
            flags="--fp8-format hybrid --fp8-recipe delayed",
            layout=f"{EP2} {FP8}",
            compare="losses",
            tolerance=5e-2,
            needs="te",
            beside_megatron=False,
            tests=("tests/unit/moe/test_adjugate.py",),
            note=PADDING,
        ),
        Works(
            name="fp8-tensorwise",
            flags="--fp8-format hybrid --fp8-recipe tensorwise",
            layout=f"{EP2} {FP8} --recompute-granularity selective --recompute-modules moe_act",
            compare="losses",
            tolerance=5e-2,
            needs="te",
            beside_megatron=False,
            note=PADDING,
        ),
        Works(
            name="fp8-blockwise",
            flags="--fp8-format e4m3 --fp8-recipe blockwise",
            layout=f"{EP2} {FP8}",
            compare="losses",
            tolerance=5e-2,
            needs="te",
            beside_megatron=False,
            note=PADDING,
        ),
        Works(
            name="mxfp8",
            flags="--fp8-format e4m3 --fp8-recipe mxfp8",
            layout=f"{EP2} {FP8}",
            compare="losses",
            tolerance=5e-2,
            needs="mxfp8",
            beside_megatron=False,
            tests=("tests/unit/moe/test_adjugate.py",),
            note=PADDING,
        ),
        Refused(
            setting="fp4",
            flags="--fp4-format e2m1",
            reason="is not tested with groups; use --fp8-format, or --bf16",
            of="groups",
        ),
        Idle(
            "--fp8-recipe --fp8-quantizer-factory --fp8-margin --fp8-interval "
            "--fp8-amax-history-len --fp8-amax-compute-algo --no-fp8-wgrad --fp8-output-proj "
            "--first-last-layers-bf16",
            " without --fp8-format",
            lambda s: not (s.fp8 or s.fp4),
        ),
        idle_without(
            "first_last_layers_bf16", "--num-layers-at-start-in-bf16 --num-layers-at-end-in-bf16"
        ),
        Ignored(
            "--fp8-param-gather --reuse-grad-buf-for-mxfp8-param-ag --te-precision-config-file",
            "details of --fp8-format, for experts and adjugates alike",
        ),
        Idle("--fp4-recipe --fp4-quantizer-factory", " without --fp4-format", lambda s: not s.fp4),
        Ignored("--fp4-param-gather", "of --fp4-format"),
        Idle(
            "--loss-scale",
            " in fp32",
            lambda s: not (s.fp16 or s.bf16 or s.use_distributed_optimizer),
        ),
        Idle(
            "--initial-loss-scale --min-loss-scale --loss-scale-window --hysteresis",
            " without --fp16, or with --loss-scale, which does not change",
            lambda s: not s.fp16 or s.loss_scale,
        ),
        Idle("--disable-bf16-reduced-precision-matmul", " without --bf16", lambda s: not s.bf16),
        Ignored(
            "--fp16-lm-cross-entropy --batch-invariant-mode",
            "the loss, or all matrices alike",
        ),
    ),
)
