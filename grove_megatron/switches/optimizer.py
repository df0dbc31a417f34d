"""Optimizers, and how gradients and parameters get to them."""

from typing import Any

from .rows import Area, Idle, Ignored, Works, idle_without

EP2 = "--expert-model-parallel-size 2"
DISTRIBUTED = "--use-distributed-optimizer"


def _has_lion_beside_muon(args: Any) -> bool:
    """Muon leaves what is no matrix to another optimizer."""
    return "muon" in args.optimizer and args.muon_scalar_optimizer == "lion"


AREA = Area(
    "Optimizer",
    (
        Works(name="distributed-optimizer", flags=DISTRIBUTED, layout=EP2, ranks=4),
        Works(
            name="overlap-grad-reduce",
            flags="--overlap-grad-reduce",
            layout=f"{EP2} {DISTRIBUTED}",
            ranks=4,
        ),
        Works(
            name="overlap-param-gather",
            flags="--overlap-grad-reduce --overlap-param-gather",
            layout=f"{EP2} {DISTRIBUTED}",
            ranks=4,
        ),
        Works(
            name="small-buckets",
            flags="--ddp-bucket-size 1000 --overlap-grad-reduce",
            layout=f"{EP2} {DISTRIBUTED}",
            ranks=4,
        ),
        Works(
            name="num-buckets",
            flags="--ddp-num-buckets 3 --overlap-grad-reduce",
            layout=f"{EP2} {DISTRIBUTED}",
            ranks=4,
        ),
        Works(
            name="average-in-collective",
            flags="--ddp-average-in-collective",
            layout=f"{EP2} {DISTRIBUTED}",
            ranks=4,
        ),
        Works(
            name="two-instances",
            flags="--num-distributed-optimizer-instances 2",
            layout=DISTRIBUTED,
            ranks=4,
            needs="einops",
        ),
        Works(name="per-token-loss", flags="--calculate-per-token-loss", layout=EP2),
        Works(
            name="check-gradients",
            flags="--check-for-large-grads",
            layout=EP2,
        ),
        Works(name="sgd", flags="--optimizer sgd --sgd-momentum 0.9", layout=EP2, compare="math"),
        Works(
            name="muon",
            flags="--optimizer muon",
            layout=f"{EP2} --grove-kernel megatron",
            compare="runs",
            needs="cuda",
            note="wants one matrix for each expert: --grove-kernel megatron, or auto",
        ),
        Ignored(
            "--clip-grad --no-weight-decay-cond-type --use-precision-aware-optimizer "
            "--main-grads-dtype --main-params-dtype --exp-avg-dtype --exp-avg-sq-dtype "
            "--optimizer-cpu-offload --optimizer-cuda-graph --dump-param-to-param-group-map",
            "the same for every matrix, adjugates included: tests/multirank/test_layer.py shows "
            "that the optimizer takes them for experts",
        ),
        Ignored(
            "--ddp-param-name-patterns-for-fp32-local-accumulation "
            "--overlap-param-gather-with-optimizer-step --no-gradient-accumulation-fusion "
            "--no-check-for-nan-in-loss-and-grad",
            "when and in what pieces buffers of all parameters are reduced",
        ),
        Ignored(
            "--decoupled-lr",
            "of the embedding and the output layer",
        ),
        Idle(
            "--adam-beta1 --adam-beta2 --adam-eps",
            " with --optimizer sgd, or muon and --muon-scalar-optimizer lion",
            lambda s: s.optimizer == "sgd" or _has_lion_beside_muon(s),
        ),
        Idle("--sgd-momentum", " without --optimizer sgd", lambda s: s.optimizer != "sgd"),
        Idle(
            "--lion-beta1 --lion-beta2",
            " without muon and --muon-scalar-optimizer lion; --optimizer lion itself reads "
            "--adam-beta1 and --adam-beta2",
            lambda s: not _has_lion_beside_muon(s),
        ),
        Idle(
            "--muon-momentum --muon-no-split-qkv --muon-nesterov --muon-scale-mode "
            "--muon-fp32-matmul-prec --muon-coefficient-type --muon-num-ns-steps --muon-tp-mode "
            "--muon-extra-scale-factor --muon-scalar-optimizer",
            " without --optimizer muon",
            lambda s: "muon" not in s.optimizer,
        ),
        Idle(
            "--weight-decay",
            " with --weight-decay-incr-style other than constant, which goes from "
            "--start-weight-decay to --end-weight-decay",
            lambda s: s.weight_decay_incr_style != "constant",
        ),
        idle_without("qk_layernorm", "--apply-wd-to-qk-layernorm"),
        idle_without(
            "overlap_grad_reduce", "--ddp-num-buckets --ddp-bucket-size --no-align-grad-reduce"
        ),
        idle_without("overlap_param_gather", "--no-align-param-gather"),
        Idle(
            "--ddp-pad-buckets-for-high-nccl-busbw --ddp-reduce-scatter-with-fp32-accumulation",
            " without --use-distributed-optimizer",
            lambda s: not s.use_distributed_optimizer and s.optimizer != "dist_muon",
        ),
    ),
)
