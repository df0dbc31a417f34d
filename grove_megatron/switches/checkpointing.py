"""Saving and loading."""

from .rows import Area, Ignored, Works

_RESHARD = "tests/integration/test_reshard.py"
_KILLED = "tests/integration/test_killed_save.py"
SAVE = "--save {tmp}/saved --save-interval 2"
AREA = Area(
    "Checkpoints",
    (
        Works(
            name="save",
            flags=SAVE,
            layout="--expert-model-parallel-size 2",
            tests=(_RESHARD, _KILLED, "tests/integration/test_convert.py"),
        ),
        Works(
            name="save-fully-reshardable",
            flags="--dist-ckpt-optim-fully-reshardable",
            layout=f"--expert-model-parallel-size 2 --use-distributed-optimizer {SAVE}",
            ranks=4,
            tests=(_RESHARD,),
            note="so that the distributed optimizer's state loads at any layout",
        ),
        Works(
            name="save-not-parallel",
            flags="--no-ckpt-fully-parallel-save",
            layout=f"--expert-model-parallel-size 2 {SAVE}",
        ),
        Works(
            name="save-constant-structure",
            flags="--ckpt-assume-constant-structure",
            layout=f"--expert-model-parallel-size 2 {SAVE}",
        ),
        Works(
            name="save-retain",
            flags="--save-retain-interval 4",
            layout=f"--expert-model-parallel-size 2 {SAVE}",
        ),
        Ignored(
            "--load --finetune --pretrained-checkpoint --ckpt-step --use-checkpoint-args "
            "--exit-on-missing-checkpoint --no-save-optim --no-save-rng --no-load-optim "
            "--no-load-rng --dist-ckpt-strictness --ckpt-fully-parallel-load "
            "--use-mp-args-from-checkpoint-args --no-use-tokenizer-model-from-checkpoint-args "
            "--override-ckpt-iteration --auto-detect-ckpt-format --load-main-params-from-ckpt "
            "--dist-ckpt-workers --no-ckpt-load-validate-sharding-integrity "
            "--ckpt-fully-parallel-load-exchange-algo --ckpt-fully-parallel-save-process-group "
            "--ckpt-fully-parallel-load-process-group --no-stream-ckpt-dequant --verify-integrity "
            "--distrib-optim-fully-reshardable-mem-efficient --no-strict-fsdp-dtensor-load",
            "Grove settings of a checkpoint are compared with the command line; the rest is "
            "Megatron's, see tests/integration/test_reshard.py and test_refusals.py",
        ),
        Ignored(
            "--async-strategy --use-persistent-ckpt-worker --async-ckpt-cpu-priority "
            "--async-ckpt-io-priority --async-ckpt-use-cpu-shm",
            "when files are written; refused on the CPU runtime, where a write would be torn",
        ),
        Ignored(
            "--non-persistent-save-interval --non-persistent-local-ckpt-dir "
            "--non-persistent-local-ckpt-algo --replication --replication-jump "
            "--replication-factor",
            "where copies of the same state go",
        ),
        Ignored(
            "--ckpt-format --ckpt-convert-format --ckpt-convert-save "
            "--ckpt-convert-update-legacy-dist-opt-format",
            "formats: grove's own tools read and write torch_dist",
        ),
        Ignored(
            "--save-params-interval --save-activations-interval --save-wgrads-interval "
            "--save-dgrads-interval --save-tokens-per-expert-interval",
            "dumps for debugging; --grove-metrics-interval records load by expert",
        ),
    ),
)
