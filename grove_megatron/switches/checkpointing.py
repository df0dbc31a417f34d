"""Saving and loading."""

from .rows import Area, Idle, Ignored, Works, idle_without

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
            "--load-main-params-from-ckpt --verify-integrity --no-strict-fsdp-dtensor-load",
            "Grove settings of a checkpoint are compared with the command line; the rest is "
            "Megatron's, see tests/integration/test_reshard.py and test_refusals.py",
        ),
        Idle(
            "--exit-on-missing-checkpoint --override-ckpt-iteration --auto-detect-ckpt-format "
            "--no-load-optim --no-load-rng --dist-ckpt-strictness --ckpt-fully-parallel-load "
            "--ckpt-fully-parallel-load-exchange-algo --ckpt-fully-parallel-load-process-group "
            "--no-ckpt-load-validate-sharding-integrity --no-stream-ckpt-dequant",
            " without --load or --pretrained-checkpoint",
            lambda s: not (s.load or s.pretrained_checkpoint or s.non_persistent_ckpt_type),
        ),
        Idle(
            "--ckpt-fully-parallel-load-exchange-algo --ckpt-fully-parallel-load-process-group",
            " without --ckpt-fully-parallel-load",
            lambda s: s.load and not s.ckpt_fully_parallel_load,
        ),
        Idle(
            "--override-opt_param-scheduler --use-checkpoint-opt_param-scheduler",
            " without --load, whose schedule it is about",
            lambda s: not (s.load or s.non_persistent_ckpt_type),
        ),
        idle_without(
            "use_checkpoint_args",
            "--use-mp-args-from-checkpoint-args --no-use-tokenizer-model-from-checkpoint-args",
        ),
        Idle(
            "--save-interval --save-retain-interval --no-save-optim --no-save-rng "
            "--no-ckpt-fully-parallel-save --ckpt-fully-parallel-save-process-group "
            "--ckpt-assume-constant-structure --dist-ckpt-optim-fully-reshardable",
            " without --save",
            lambda s: not (s.save or s.ckpt_convert_format or s.non_persistent_ckpt_type),
        ),
        idle_without(
            "dist_ckpt_optim_fully_reshardable", "--distrib-optim-fully-reshardable-mem-efficient"
        ),
        idle_without(
            "async_save",
            "--async-strategy --use-persistent-ckpt-worker --async-ckpt-cpu-priority "
            "--async-ckpt-io-priority",
        ),
        Idle(
            "--dist-ckpt-workers",
            " without --async-save and --ckpt-assume-constant-structure",
            lambda s: not (s.async_save and s.ckpt_assume_constant_structure),
        ),
        Ignored(
            "--async-ckpt-use-cpu-shm",
            "when files are written; refused on the CPU runtime, where a write would be torn",
        ),
        Ignored(
            "--non-persistent-save-interval --replication",
            "where copies of the same state go",
        ),
        Idle(
            "--non-persistent-local-ckpt-dir --non-persistent-local-ckpt-algo",
            " without --non-persistent-ckpt-type local",
            lambda s: s.non_persistent_ckpt_type != "local",
        ),
        idle_without("replication", "--replication-jump --replication-factor"),
        Ignored(
            "--ckpt-format --ckpt-convert-format",
            "formats: grove's own tools read and write torch_dist",
        ),
        idle_without(
            "ckpt_convert_format",
            "--ckpt-convert-save --ckpt-convert-update-legacy-dist-opt-format",
        ),
        Ignored(
            "--save-params-interval --save-activations-interval --save-wgrads-interval "
            "--save-dgrads-interval --save-tokens-per-expert-interval",
            "dumps for debugging; --grove-metrics-interval records load by expert",
        ),
    ),
)
