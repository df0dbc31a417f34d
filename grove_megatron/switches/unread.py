"""Options that do not do what they say: Megatron 0.19 drops them, or ends on them.

Refused where the run would be another than the flags say, or end after the model is built. The rest
does nothing, and a line at the start says so.
"""

from collections.abc import Callable
from typing import Any

from .rows import Area, Idle, Refused, idle_without


def _other_groups(value: Any, settings: Any) -> bool:
    """Key and value heads that Megatron throws away; a configuration has no such flag."""
    given = value not in (1, settings.num_attention_heads)
    return bool(given and not getattr(settings, "group_query_attention", True))


def _is_rope(settings: Any) -> bool:
    older = getattr(settings, "use_rotary_position_embeddings", False)
    return bool(older or getattr(settings, "position_embedding_type", "rope") == "rope")


def _is_rotary(settings: Any) -> bool:
    return _is_rope(settings) or settings.position_embedding_type in ("yarn", "mrope")


def _is_local(value: Any, settings: Any) -> bool:
    return bool(value and settings.transformer_impl == "local")


def _is_typed(settings: Any) -> bool:
    """Is this a command line, not what Megatron has computed from it?"""
    return hasattr(settings, "train_iters")


def _tokenizer_is_not(*types: str) -> Callable[[Any], bool]:
    """Without ``--tokenizer-type`` it is Megatron's default."""
    return lambda settings: (settings.tokenizer_type or _GPT2) not in types


_GPT2 = "GPT2BPETokenizer"
_BERT = ("BertWordPieceLowerCase", "BertWordPieceCase")
_SENTENCEPIECE = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")
_HUGGING_FACE = "HuggingFaceTokenizer"
_TIKTOKEN = "TikTokenizer"
_NULL = "NullTokenizer"


_ROTARY = (
    "is of rotary positions, and --position-embedding-type is not rope; add "
    "--position-embedding-type rope, or remove it"
)
_LOCAL = "is measured by TransformerEngine's attention alone; remove it, or use --transformer-impl "
_LOCAL += "transformer_engine"
_NOT_READ = "is not read by Megatron 0.19"

AREA = Area(
    "Options that do not do what they say",
    (
        Refused(
            setting="rampup_batch_size",
            flags="--rampup-batch-size 2 2 8",
            reason=f"{_NOT_READ}: every iteration takes all of --global-batch-size; use "
            "--step-batch-size-schedule with --train-samples",
        ),
        Refused(
            setting="freeze_all_layers",
            flags="--freeze-all-layers",
            reason="freezes nothing: Megatron 0.19 reads it in a function that it no longer "
            "calls; remove it, --skip-train evaluates without training",
        ),
        Refused(
            setting="num_query_groups",
            flags="--num-query-groups 4 --num-attention-heads 8",
            reason="is dropped without --group-query-attention; add that, or remove it",
            when=_other_groups,
        ),
        Refused(
            setting="rope_scaling_factor",
            flags="--position-embedding-type rope --use-rope-scaling --rope-scaling-factor 32",
            reason="is dropped by Megatron 0.19: --use-rope-scaling scales by 8.0; remove it",
            when=lambda v, _: v != 8.0,
        ),
        Refused(
            setting="use_rope_scaling",
            flags="--position-embedding-type learned_absolute --use-rope-scaling",
            reason=_ROTARY,
            when=lambda v, s: v and not _is_rope(s),
        ),
        Refused(
            setting="rotary_base",
            flags="--position-embedding-type learned_absolute --rotary-base 1000000",
            reason=_ROTARY,
            when=lambda v, s: v != 10000 and not _is_rotary(s),
        ),
        Refused(
            setting="rotary_percent",
            flags="--position-embedding-type learned_absolute --rotary-percent 0.5",
            reason=_ROTARY,
            when=lambda v, s: v != 1.0 and not _is_rotary(s),
        ),
        Refused(
            setting="rotary_seq_len_interpolation_factor",
            flags="--position-embedding-type learned_absolute "
            "--rotary-seq-len-interpolation-factor 2",
            reason=_ROTARY,
            when=lambda v, s: not _is_rotary(s),
        ),
        Refused(
            setting="position_embedding_type",
            flags="--position-embedding-type relative",
            reason="gives a GPT no positions at all, they are of T5; use rope",
            when=lambda v, _: v == "relative",
        ),
        Refused(
            setting="mup_width_mult",
            flags="--use-mup --mup-width-mult 2",
            reason="is overwritten by --hidden-size / --mup-base-hidden-size; give "
            "--mup-base-hidden-size",
            when=lambda v, s: v != 1.0 and _is_typed(s),
        ),
        Refused(
            setting="apply_residual_connection_post_layernorm",
            flags="--apply-residual-connection-post-layernorm",
            reason=f"{_NOT_READ}, whose residual is what enters the norm; remove it",
        ),
        Refused(
            setting="openai_gelu",
            flags="--openai-gelu",
            reason=f"{_NOT_READ}; remove it",
        ),
        Refused(
            setting="init_method_xavier_uniform",
            flags="--init-method-xavier-uniform",
            reason="ends in a TypeError: Megatron 0.19 gives it to its configuration under a name "
            "that has gone; remove it, --init-method-std says how weights begin",
        ),
        Refused(
            setting="vocab_extra_ids",
            flags="--vocab-extra-ids 100",
            reason=f"{_NOT_READ} and adds no token; remove it, --padded-vocab-size makes room",
        ),
        Refused(
            setting="sample_rate",
            flags="--sample-rate 0.5",
            reason=f"{_NOT_READ}: all samples are used; remove it",
            when=lambda v, _: v != 1.0,
        ),
        Refused(
            setting="decoder_seq_length",
            flags="--decoder-seq-length 4",
            reason="is of encoder-decoder models, and pipeline stages would expect it of a GPT; "
            "remove it, --seq-length says it",
            when=lambda v, s: v not in (None, s.seq_length),
        ),
        Refused(
            setting="dist_ckpt_save_pre_mcore_014",
            flags="--dist-ckpt-save-pre-mcore-014",
            reason=f"{_NOT_READ}, which saves in its present form alone; remove it",
        ),
        Refused(
            setting="qk_clip",
            flags="--qk-clip --transformer-impl local",
            reason=_LOCAL,
            when=_is_local,
        ),
        Refused(
            setting="log_max_attention_logit",
            flags="--log-max-attention-logit --transformer-impl local",
            reason=_LOCAL,
            when=_is_local,
        ),
        Refused(
            setting="cross_entropy_fusion_impl",
            flags="--cross-entropy-loss-fusion --cross-entropy-fusion-impl te",
            reason="is refused by Megatron 0.19 as unstable; use native",
            when=lambda v, s: v == "te" and s.cross_entropy_loss_fusion,
        ),
        Refused(
            setting="use_ring_exchange_p2p",
            flags="--use-ring-exchange-p2p --pipeline-model-parallel-size 2",
            reason="calls torch.distributed.ring_exchange, which no released torch has; remove it",
            when=lambda v, s: v and s.pipeline_model_parallel_size > 1,
        ),
        Refused(
            setting="lazy_mpu_init",
            flags="--lazy-mpu-init",
            reason="leaves the process groups to a caller that Megatron's training loop is not; "
            "remove it",
        ),
        Refused(
            setting="adlr_autoresume",
            flags="--adlr-autoresume",
            reason="ends the job with exit code 0 where the module userlib.auto_resume is "
            "missing, which is not published; remove it, the same command resumes from --save",
        ),
        Refused(
            setting="vision_pretraining",
            flags="--vision-pretraining",
            reason="is of vision models, and ends a GPT's first step with dino; remove it",
        ),
        Idle("--use-flash-attn", ": an older name; --attention-backend flash asks for it"),
        Idle("--use-mcore-models", ": an older name; there are no other models"),
        Idle("--onnx-safe --disable-msc", ": nothing reads it any more"),
        Idle(
            "--exit-signal-handler-for-dataloader",
            ": nothing reads it any more; --exit-signal-handler is for data loaders too",
        ),
        Idle(
            "--use-dist-ckpt --dist-ckpt-format",
            ": an older name; --ckpt-format says the format",
        ),
        Idle(
            "--ckpt-fully-parallel-save",
            ": an older name of the default; --no-ckpt-fully-parallel-save is its opposite",
        ),
        Idle(
            "--async-save",
            " without --use-persistent-ckpt-worker: Megatron turns it off; add that",
            when=lambda s: not s.use_persistent_ckpt_worker,
        ),
        Idle("--decoder-num-layers --bert-no-binary-head", " for a GPT; it is of other models"),
        Idle("--mask-prob --short-seq-prob", " for a GPT; it is of BERT's data"),
        Idle(
            "--relative-attention-num-buckets --relative-attention-max-distance",
            " for a GPT; it is of T5",
        ),
        Idle("--no-gradient-reduce-div-fusion", " but for --use-megatron-fsdp"),
        Idle(
            "--data-parallel-sharding-strategy --outer-dp-sharding-strategy "
            "--megatron-fsdp-main-params-dtype --megatron-fsdp-main-grads-dtype "
            "--megatron-fsdp-grad-comm-dtype --megatron-fsdp-enable-fine-grained-param-gather "
            "--megatron-fsdp-max-pool-double-buffer --fsdp-db-use-persist-buf-on-alloc-fail "
            "--suggested-communication-unit-size --keep-fp8-transpose-cache "
            "--enable-full-sharding-in-hsdp --fsdp-double-buffer",
            " without --use-megatron-fsdp, which groups exclude",
            when=lambda s: not s.use_megatron_fsdp,
        ),
        Idle(
            "--no-use-layer-wise-param-layout",
            ": Megatron 0.19 reads it in a function that it no longer calls",
        ),
        Idle(
            "--use-grouped-gemm-for-dense-mlp",
            " in a model with experts, to whose dense layers Megatron does not pass it",
        ),
        Idle(
            "--attention-backend",
            " with --transformer-impl local, which has one attention",
            # The CPU runtime says unfused, and that is what it is.
            when=lambda s: _is_local(s.attention_backend.name in ("flash", "fused"), s),
        ),
        Idle(
            "--flash-attention-version",
            " with --transformer-impl local, which has one attention",
            when=lambda s: _is_local(True, s),
        ),
        idle_without("window_size", "--window-attn-skip-freq"),
        Idle(
            "--rotary-interleaved --no-rope-freq",
            " without rotary positions",
            lambda s: not _is_rotary(s),
        ),
        Idle(
            "--mrope-section",
            " without --position-embedding-type mrope",
            lambda s: s.position_embedding_type != "mrope",
        ),
        Idle(
            "--yarn-original-max-position-embeddings --yarn-beta-fast --yarn-beta-slow "
            "--yarn-correction-range-round-to-int --no-yarn-correction-range-round-to-int",
            " without --position-embedding-type yarn",
            when=lambda s: s.position_embedding_type != "yarn",
        ),
        Idle(
            "--rotary-scaling-factor --mscale --mscale-all-dim",
            " without --position-embedding-type yarn, or --multi-latent-attention with "
            "--rope-type yarn",
            when=lambda s: (
                not (
                    s.position_embedding_type == "yarn"
                    or (s.multi_latent_attention and s.rope_type != "rope")
                )
            ),
        ),
        idle_without(
            "use_mup",
            "--mup-base-hidden-size --mup-embedding-mult --mup-output-mult --mup-base-head-dim "
            "--mup-attn-scale-power",
        ),
        idle_without(
            "mtp_num_layers",
            "--mtp-loss-scaling-factor --mtp-use-repeated-layer --mtp-detach-heads",
        ),
        idle_without("moe_router_enable_expert_bias", "--moe-router-bias-update-rate"),
        Idle(
            "--moe-token-drop-policy",
            " without --moe-expert-capacity-factor or --grove-expert-capacity",
            when=lambda s: s.moe_expert_capacity_factor is None and s.grove_expert_capacity is None,
        ),
        Idle(
            "--recompute-method --recompute-num-layers",
            " without --recompute-granularity full",
            when=lambda s: s.recompute_granularity is None and not s.recompute_activations,
        ),
        idle_without("decoupled_lr", "--decoupled-min-lr"),
        Idle(
            "--min-lr",
            " with --lr-decay-style constant",
            lambda s: s.lr_decay_style == "constant",
        ),
        Idle(
            "--lr-decay-iters --lr-decay-samples",
            " with --lr-decay-style constant",
            # Of what --lr-warmup-fraction is one.
            lambda s: s.lr_decay_style == "constant" and s.lr_warmup_fraction is None,
        ),
        Idle(
            "--lr-warmup-init",
            " without a warmup",
            lambda s: not (s.lr_warmup_iters or s.lr_warmup_samples or s.lr_warmup_fraction),
        ),
        Idle(
            "--lr-wsd-decay-iters --lr-wsd-decay-samples --lr-wsd-decay-style",
            " without --lr-decay-style WSD",
            when=lambda s: s.lr_decay_style != "WSD",
        ),
        Idle(
            "--lr-wsd-decay-samples",
            " with --train-iters; give --lr-wsd-decay-iters",
            when=lambda s: s.train_iters and s.lr_decay_style == "WSD",
        ),
        Idle(
            "--lr-wsd-decay-iters",
            " with --train-samples; give --lr-wsd-decay-samples",
            when=lambda s: s.train_samples and s.lr_decay_style == "WSD",
        ),
        idle_without(
            "optimizer_cpu_offload",
            "--optimizer-offload-fraction --use-torch-optimizer-for-cpu-offload "
            "--overlap-cpu-optimizer-d2h-h2d --no-pin-cpu-grads --no-pin-cpu-params",
        ),
        idle_without("exit_signal_handler", "--exit-signal"),
        idle_without("manual_gc", "--manual-gc-interval --no-manual-gc-eval"),
        Idle(
            "--start-eval-at-iter --eval-micro-batch-size --eval-global-batch-size",
            " with --eval-iters 0",
            when=lambda s: s.eval_iters == 0 and not s.full_validation,
        ),
        idle_without(
            "profile",
            "--profile-step-start --profile-step-end --profile-ranks --use-pytorch-profiler "
            "--pytorch-profiler-collect-shapes --pytorch-profiler-collect-callstack "
            "--pytorch-profiler-collect-chakra --record-shapes --nvtx-ranges",
        ),
        idle_without("record_memory_history", "--memory-snapshot-path"),
        idle_without(
            "tensorboard_dir",
            "--no-log-loss-scale-to-tensorboard --log-validation-ppl-to-tensorboard "
            "--log-memory-to-tensorboard --log-world-size-to-tensorboard "
            "--tensorboard-log-interval --tensorboard-queue-size",
        ),
        Idle(
            "--log-timers-to-tensorboard",
            " without --tensorboard-dir or --wandb-project",
            when=lambda s: not s.tensorboard_dir and not s.wandb_project,
        ),
        idle_without("wandb_project", "--wandb-exp-name --wandb-save-dir --wandb-entity"),
        idle_without("save", "--log-progress"),
        Idle(
            "--non-persistent-ckpt-type --non-persistent-global-ckpt-dir",
            " without --non-persistent-save-interval",
            when=lambda s: not s.non_persistent_save_interval and not s.load,
        ),
        idle_without(
            "moe_routing_trace_path",
            "--moe-routing-trace-max-training-iters --moe-routing-trace-capture-logits "
            "--moe-routing-trace-capture-hidden-states --moe-routing-trace-dump-weights",
        ),
        idle_without(
            "log_straggler",
            "--straggler-ctrlr-port --straggler-minmax-count --disable-straggler-on-startup",
        ),
        idle_without(
            "flight_recorder_dump_path",
            "--flight-recorder-trace-buffer-size --no-flight-recorder-dump-on-timeout "
            "--flight-recorder-include-stack-trace --no-flight-recorder-include-only-active "
            "--no-flight-recorder-extra-dump-on-exec",
        ),
        idle_without(
            "logits_load_dir",
            "--logits-load-decode-threads --logits-load-prefetch-factor "
            "--logits-load-msc-prefetch-depth --logits-load-kd-loss-alpha "
            "--logits-load-ignore-errors",
        ),
        Idle(
            "--no-barrier-with-level-1-timing",
            " without --timing-log-level 1 or 2",
            lambda s: s.timing_log_level == 0,
        ),
        Idle(
            "--one-logger-project --one-logger-run-name --one-logger-async --app-tag-run-name "
            "--app-tag-run-version",
            " with --no-one-logger",
            lambda s: not s.enable_one_logger,
        ),
        idle_without("error_injection_rate", "--error-injection-type"),
        idle_without("adlr_autoresume", "--adlr-autoresume-interval"),
        Idle("--no-mmap-bin-files", " with --mock-data", lambda s: s.mock_data),
        idle_without(
            "fim_data",
            "--fim-rate --fim-spm-rate --fim-split-sample --fim-fragment-rate --fim-no-prefix "
            "--fim-prefix-token --fim-middle-token --fim-suffix-token --fim-pad-token "
            "--fim-eod-token",
        ),
        Idle(
            "--vocab-size",
            " beside a tokenizer with tokens of its own, which are counted; --padded-vocab-size "
            "makes room for more",
            lambda s: s.pad_vocab_size and _tokenizer_is_not(_NULL, _TIKTOKEN)(s),
        ),
        Idle(
            "--tokenizer-model",
            " with a tokenizer that is made of --vocab-file and --merge-file, or of --vocab-size",
            lambda s: s.tokenizer_type in (_GPT2, *_BERT, _NULL),
        ),
        Idle(
            "--vocab-file --merge-file --tokenizer-hf-no-use-fast "
            "--tokenizer-hf-no-include-special-tokens --trust-remote-code",
            f" without --tokenizer-type {_GPT2} or {_HUGGING_FACE}",
            _tokenizer_is_not(_GPT2, *_BERT, _HUGGING_FACE),
        ),
        Idle(
            "--tiktoken-pattern --tiktoken-num-special-tokens",
            f" without --tokenizer-type {_TIKTOKEN}",
            _tokenizer_is_not(_TIKTOKEN),
        ),
        Idle(
            "--tokenizer-sentencepiece-legacy "
            "--no-tokenizer-sentencepiece-ignore-extra-whitespaces",
            f" without --tokenizer-type {_SENTENCEPIECE[0]} or another of that library",
            _tokenizer_is_not(*_SENTENCEPIECE),
        ),
        Idle(
            "--chat-template",
            f" without --tokenizer-type {_HUGGING_FACE}, {_TIKTOKEN} or {_SENTENCEPIECE[0]}",
            _tokenizer_is_not(_HUGGING_FACE, _TIKTOKEN, *_SENTENCEPIECE),
        ),
        Idle(
            "--null-tokenizer-eod-id --null-tokenizer-pad-id",
            f" without --tokenizer-type {_NULL}",
            _tokenizer_is_not(_NULL),
        ),
        Idle(
            "--tokenizer-special-tokens --tokenizer-metadata",
            f" with --tokenizer-type {_NULL}",
            lambda s: s.tokenizer_type == _NULL,
        ),
        Idle(
            "--sft-tokenizer-prompt-format",
            " without --tokenizer-type SFTTokenizer",
            _tokenizer_is_not("SFTTokenizer"),
        ),
        Idle("", " for a GPT; it is of vision models", group="vision"),
        Idle("", " for a GPT; it is of retrieval models", group="biencoder"),
        Idle("", " without --perform-rl-step", lambda s: not s.perform_rl_step, group="rl"),
        Idle(
            "",
            " in training; it is of Megatron's inference engines",
            group="inference",
            when=lambda s: not s.perform_rl_step,
        ),
        idle_without(
            "inprocess_restart",
            "--inprocess-max-iterations --inprocess-monitor-thread-interval "
            "--inprocess-monitor-process-interval --inprocess-progress-watchdog-interval "
            "--inprocess-heartbeat-interval --inprocess-soft-timeout --inprocess-hard-timeout "
            "--inprocess-heartbeat-timeout --inprocess-barrier-timeout "
            "--inprocess-completion-timeout --inprocess-last-call-wait "
            "--inprocess-termination-grace-time --inprocess-granularity "
            "--inprocess-empty-cuda-cache",
        ),
        idle_without("enable_ft_package", "--calc-ft-timeouts --ft-num-warmup-iters"),
        Idle(
            "",
            " without --fault-injector-ranks or --fault-injector-num-ranks",
            group="fault injector",
            when=lambda s: s.fault_injector_ranks is None and not s.fault_injector_num_ranks,
        ),
        idle_without(
            "logits_save_dir",
            "--logits-save-top-k --logits-save-top-p --logits-save-top-p-min-k --logits-save-dtype",
        ),
    ),
)
