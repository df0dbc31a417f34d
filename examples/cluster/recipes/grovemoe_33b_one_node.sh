#!/usr/bin/env bash
# GroveMoE-33B from Qwen3-30B-A3B-Base on one node of 8 GPUs with 80 GB: the paper's mid-training,
# to begin with. Doctor's figures are in grovemoe_33b_one_node.txt; no GPU has run it.
#
#   hf download Qwen/Qwen3-30B-A3B-Base --local-dir Qwen3-30B-A3B-Base
#   grove upcycle --hf Qwen3-30B-A3B-Base --save ckpt/grove
#   grove data corpus/ --output data/text --tokenizer ckpt/grove/hf
#
# From the paper (arXiv 2508.07785): 400 billion tokens in sequences of 8192, 16 million a batch,
# AdamW with betas (0.9, 0.95), weight decay 0.1, clipping at 1.0, cosine from 1e-4 to 5e-5. Our
# choice, of which the paper says nothing: 100 batches of warm-up, the split, and all that the
# machines ask for. It fits by tensor parallelism 2 outside the experts, each layer computed again,
# and Adam's moments in bf16, as DeepSeek-V3 was trained (arXiv 2412.19437, section 3.3.3);
# gradients and the copy of the weights stay fp32. The moments need TransformerEngine.
#
# CKPT  folder of checkpoints (default: ckpt)
# DATA  prefix of the .bin and .idx files (default: data/text)
# Arguments go to launch.py, those behind -- to the job, where the last of a flag wins:
#   grovemoe_33b_one_node.sh --dry-run -- --exit-interval 10
#   sbatch --nodes 1 --gpus-per-node 8 examples/cluster/job.sbatch \
#     examples/cluster/recipes/grovemoe_33b_one_node.sh
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
launch=()
while (($#)) && [[ $1 != -- ]]; do launch+=("$1") && shift; done

model=(--grove-preset grovemoe-33b --moe-token-dispatcher-type alltoall)
layout=(
  --expert-model-parallel-size 8 --expert-tensor-parallel-size 1
  --tensor-model-parallel-size 2 --sequence-parallel
  --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
  --use-precision-aware-optimizer --exp-avg-dtype bf16 --exp-avg-sq-dtype bf16
  --bf16 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
  --moe-grouped-gemm --no-gradient-accumulation-fusion --distributed-timeout-minutes 60
)
training=(
  --train-samples 48828125 --seq-length 8192 --micro-batch-size 1 --global-batch-size 2048
  --lr 1e-4 --min-lr 5e-5 --lr-decay-style cosine --lr-warmup-samples 204800
  --optimizer adam --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0
  --split 999,1,0 --eval-interval 500 --eval-iters 1
)
files=(
  --data-path "${DATA:-data/text}" --tokenizer-type HuggingFaceTokenizer
  --tokenizer-model "${CKPT:-ckpt}/grove/hf" --no-create-attention-mask-in-dataloader
  --pretrained-checkpoint "${CKPT:-ckpt}/grove"
  --load "${CKPT:-ckpt}/mid-training" --save "${CKPT:-ckpt}/mid-training"
  --dist-ckpt-optim-fully-reshardable --save-interval 40 --exit-signal-handler --log-interval 1
)

exec "$here/../launch.py" --nodes 1 --gpus-per-node 8 "${launch[@]}" -- -m grove_megatron.pretrain \
  "${model[@]}" "${layout[@]}" "${training[@]}" "${files[@]}" "${@:2}"
