"""Flags of the two implementations on CUDA."""

# What the local implementation needs on CUDA where neither Apex nor TransformerEngine is
# installed; the CPU runtime has the same as defaults.
LOCAL = (
    "--transformer-impl local --attention-backend unfused --no-gradient-accumulation-fusion "
    "--no-masked-softmax-fusion --no-bias-swiglu-fusion --no-rope-fusion "
    "--no-persist-layer-norm --no-bias-gelu-fusion --no-bias-dropout-fusion"
).split()
# Fused gradient accumulation of the output layer is a kernel of Apex.
ENGINE = "--transformer-impl transformer_engine --no-gradient-accumulation-fusion".split()
GROUPED_ENGINE = [*ENGINE, "--moe-grouped-gemm"]
