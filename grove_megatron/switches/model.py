"""Which layers there are, and what is in them beside the routed experts."""

from .rows import Area, Ignored, Refused, Works, idle_without

# Of the smallest.
LATENT = (
    "--multi-latent-attention --kv-lora-rank 16 --qk-head-dim 8 --qk-pos-emb-head-dim 4 "
    "--v-head-dim 8"
)
AREA = Area(
    "Model",
    (
        Works(
            name="one-dense-layer",
            flags="--moe-layer-freq [0,1]",
            compare="math",
            note="a pattern, or every n-th layer",
        ),
        Works(
            name="every-second-layer",
            flags="--moe-layer-freq 2",
            compare="math",
        ),
        Works(
            name="shared-expert",
            flags="--moe-shared-expert-intermediate-size 16",
            compare="math",
        ),
        Works(
            name="shared-expert-gate",
            flags="--moe-shared-expert-intermediate-size 16 --moe-shared-expert-gate",
            compare="math",
        ),
        Works(name="mtp", flags="--mtp-num-layers 1", compare="math", note="Grove layers too"),
        Works(
            name="mtp-more",
            flags="--mtp-loss-scaling-factor 0.3 --mtp-detach-heads",
            layout="--mtp-num-layers 1",
            compare="math",
        ),
        Works(
            name="mtp-repeated",
            flags="--mtp-use-repeated-layer",
            layout="--mtp-num-layers 2",
            compare="math",
        ),
        Works(name="qk-layernorm", flags="--qk-layernorm", compare="math"),
        Works(
            name="grouped-queries",
            flags="--group-query-attention --num-query-groups 2",
            compare="math",
        ),
        Works(name="mup", flags="--use-mup --mup-base-hidden-size 16", compare="math"),
        Works(
            name="clamped-activation",
            flags="--activation-func-clamp-value 1.0",
            compare="math",
            note="with the expert modules of Megatron: --grove-kernel auto chooses them",
        ),
        Works(
            name="glu-offset",
            flags="--glu-linear-offset 1.0",
            compare="math",
            note="with the expert modules of Megatron: --grove-kernel auto chooses them",
        ),
        Refused(
            setting="moe_latent_size",
            flags="--moe-latent-size 16",
            reason="has no defined meaning for adjugate experts; remove it",
            when=lambda v, _: v is not None,
            of="groups",
        ),
        Refused(
            setting="moe_apply_probs_on_input",
            flags="--moe-apply-probs-on-input --moe-router-topk 1 --grove-router-scoring softmax",
            reason="would weigh a token before its adjugate sees it; remove it",
            of="groups",
        ),
        Works(
            name="latent-attention",
            flags=f"{LATENT} --q-lora-rank 24 --qk-layernorm --rotary-scaling-factor 4 "
            "--mscale 0.707 --mscale-all-dim 0.707",
            compare="math",
            note="with --transformer-impl local too, which Megatron's own layers cannot build; "
            "`grove export` and the bridge refuse it",
        ),
        Works(
            name="latent-attention-tensor-parallel",
            flags="--tensor-model-parallel-size 2 --sequence-parallel",
            layout=f"{LATENT} --rope-type rope",
            compare="layout",
            beside_megatron=False,
        ),
        Refused(
            setting="mla_down_proj_fusion",
            flags="--mla-down-proj-fusion --multi-latent-attention --transformer-impl "
            "transformer_engine",
            reason="keeps weights that the planner does not know; remove it",
            when=lambda v, settings: v and settings.transformer_impl != "local",
        ),
        Refused(
            setting="heterogeneous_layers_config_path",
            flags="--heterogeneous-layers-config-path FILE",
            reason="makes Megatron drop the Grove settings; remove one of them",
            when=lambda v, _: v is not None,
        ),
        Refused(
            setting="heterogeneous_layers_config_encoded_json",
            flags="--heterogeneous-layers-config-encoded-json {}",
            reason="makes Megatron drop the Grove settings; remove one of them",
        ),
        Refused(
            setting="hybrid_layer_pattern",
            flags="--hybrid-layer-pattern M*",
            reason="builds its layers from another spec; remove it",
            when=lambda v, _: v is not None,
        ),
        Refused(
            setting="hybrid_override_pattern",
            flags="--hybrid-override-pattern M*",
            reason="makes Megatron take its layers from the pattern; remove it",
            when=lambda v, _: v is not None,
        ),
        Refused(
            setting="mtp_hybrid_override_pattern",
            flags="--mtp-hybrid-override-pattern M*",
            reason="makes Megatron take its layers from the pattern; remove it",
            when=lambda v, _: v is not None,
        ),
        Refused(
            setting="experimental_attention_variant",
            flags="--experimental-attention-variant gated_delta_net",
            reason="builds its layers from another spec; remove it",
            when=lambda v, _: v is not None,
        ),
        Refused(
            setting="use_cpu_initialization",
            flags="--use-cpu-initialization --expert-model-parallel-size 2",
            reason="gives every expert-parallel rank the same experts; remove it",
            when=lambda v, settings: v and settings.expert_model_parallel_size > 1,
        ),
        Refused(
            setting="moe_use_upcycling",
            flags="--moe-use-upcycling",
            reason="rebuilds the dense model with the MoE configuration; convert the checkpoint "
            "beforehand with grove upcycle",
        ),
        Works(
            name="grouped-gemm",
            flags="--moe-grouped-gemm",
            layout="--bf16",
            # The experts draw their first weights in another order, so both start from one file.
            compare="layout",
            tolerance=2e-2,
            needs="te",
            note="TransformerEngine's expert modules; with --transformer-impl local Megatron does "
            "not read it, and --grove-kernel says how experts are computed",
        ),
        idle_without("moe_use_upcycling", "--moe-upcycling-granularity"),
        Ignored(
            "--moe-mlp-glu-interleave-size --moe-shared-expert-glu-interleave-size "
            "--moe-single-grouped-weight --moe-single-grouped-bias "
            "--use-grouped-gemm-for-shared-expert --use-transformer-engine-op-fuser "
            "--use-te-activation-func --use-fused-weighted-squared-relu --fused-residual-rmsnorm",
            "how TransformerEngine lays out and fuses matrices, experts' and adjugates' alike",
        ),
        idle_without(
            "multi_latent_attention",
            "--q-lora-rank --kv-lora-rank --qk-head-dim --qk-pos-emb-head-dim --v-head-dim "
            "--cache-mla-latents --rope-type",
        ),
        idle_without(
            "experimental_attention_variant",
            "--linear-attention-freq --dsa-indexer-n-heads --dsa-indexer-head-dim "
            "--dsa-indexer-topk --dsa-indexer-topk-freq --dsa-indexer-skip-topk-offset "
            "--dsa-indexer-loss-coeff --dsa-indexer-use-sparse-loss --dsa-kernel-backend "
            "--dsa-indexer-rope-interleaved --no-dsa-indexer-rotate-activation "
            "--no-dsa-indexer-scoring-relu --dsa-indexer-k-norm-epsilon --dsa-indexer-k-norm-fp32 "
            "--linear-conv-kernel-dim --linear-key-head-dim --linear-value-head-dim "
            "--linear-num-key-heads --linear-num-value-heads",
        ),
        idle_without(
            "hybrid_layer_pattern",
            "--is-hybrid-model --mamba-state-dim --mamba-head-dim --mamba-num-groups "
            "--mamba-num-heads --disable-mamba-mem-eff-path --mamba-training-ssm-states-dtype",
        ),
        Ignored(
            "--hidden-size --num-layers --num-attention-heads --ffn-hidden-size --kv-channels "
            "--num-experts --moe-ffn-hidden-size --encoder-num-layers --max-position-embeddings "
            "--make-vocab-size-divisible-by --untie-embeddings-and-output-weights",
            "sizes: every test has some of them",
        ),
        Ignored(
            "--softmax-type --window-size --add-qkv-bias --qk-l2-norm --attention-output-gate "
            "--apply-query-key-layer-scaling --attention-softmax-in-fp32 --use-kitchen-attention "
            "--no-masked-softmax-fusion --use-rotary-position-embeddings --no-position-embedding "
            "--no-rope-fusion --attention-dropout",
            "of the attention, which the layer does not meet",
        ),
        idle_without("qk_clip", "--qk-clip-alpha --qk-clip-threshold"),
        idle_without("use_kitchen_attention", "--kitchen-attention-backend"),
        idle_without("cross_entropy_loss_fusion", "--cross-entropy-fusion-impl"),
        Ignored(
            "--norm-epsilon --normalization --apply-layernorm-1p --hidden-dropout "
            "--no-persist-layer-norm --no-bias-dropout-fusion --cross-entropy-loss-fusion "
            "--init-method-std --embedding-init-method-std --no-clone-scatter-output-in-embedding "
            "--mlp-chunks-for-prefill --mlp-chunks-for-training --no-initialization "
            "--config-logger-dir",
            "around the layer, or the same for all matrices",
        ),
        Ignored(
            "--swiglu --squared-relu --quick-geglu --disable-bias-linear --no-bias-gelu-fusion "
            "--no-bias-swiglu-fusion",
            "adjugates have the activation and the biases of the experts; with others than SwiGLU "
            "without biases --grove-kernel auto takes the expert modules of Megatron",
        ),
    ),
)
