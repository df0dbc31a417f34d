#!/usr/bin/env bash
# One CUDA GPU, no expert parallelism, bf16; Megatron's local implementation, which needs neither
# TransformerEngine nor Apex. TE=1 takes TransformerEngine and its grouped GEMM instead.
# Without a GPU: a message and exit code 2.
# Further Megatron flags go behind it and win: ./03_single_gpu.sh --train-iters 50
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=examples/tiny_model.sh
source "$here/tiny_model.sh"

has_cuda="$("$PYTHON" -c 'import torch; print(torch.cuda.is_available())')"
if [[ "$has_cuda" != True ]]; then
  echo "03_single_gpu.sh needs a CUDA GPU and torch finds none; 01_cpu_two_ranks.sh needs none" >&2
  exit 2
fi

# Fused gradient accumulation of the output layer is a kernel of Apex, whatever the rest is.
implementation=(--no-gradient-accumulation-fusion)
if [[ "${TE:-0}" == 1 ]]; then
  implementation+=(--transformer-impl transformer_engine --moe-grouped-gemm)
else
  implementation+=(
    --transformer-impl local --attention-backend unfused
    --no-masked-softmax-fusion --no-persist-layer-norm --no-rope-fusion
  )
fi

export GROVE_RUNTIME=cuda # never the CPU instead
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 1 \
  -m grove_megatron.pretrain \
  "${tiny_model[@]}" --bf16 "${implementation[@]}" "$@"
