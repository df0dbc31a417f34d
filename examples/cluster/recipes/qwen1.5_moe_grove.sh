#!/usr/bin/env bash
# Qwen1.5-MoE-A2.7B upcycled to a Grove MoE, on one node of 8 GPUs with 80 GB. Doctor's figures are
# in qwen1.5_moe_grove.txt; no GPU has run it, and no paper has trained this model.
#
#   hf download Qwen/Qwen1.5-MoE-A2.7B --local-dir Qwen1.5-MoE-A2.7B
#   grove upcycle --hf Qwen1.5-MoE-A2.7B --save ckpt/qwen-grove --group-size 3 \
#     --adjugate-ffn-hidden-size 256
#   grove data corpus/ --output data/text --tokenizer ckpt/qwen-grove/hf
#
# Of its 60 experts 8 ranks cannot have as many each, 4 can, with 5 groups of 3. It keeps its own
# router: softmax over all experts, weights as they are, no expert bias. Our choice: the groups,
# adjugates about a sixth of an expert wide, 0.05 as their weight, the balance loss of its config,
# 50 billion tokens, 4 million a batch, the optimizer and learning rates of the Grove paper.
#
# CKPT  folder of checkpoints (default: ckpt)
# DATA  prefix of the .bin and .idx files (default: data/text)
# Arguments go to launch.py, those behind -- to the job, where the last of a flag wins:
#   qwen1.5_moe_grove.sh --dry-run -- --exit-interval 10
#   sbatch --nodes 1 --gpus-per-node 8 examples/cluster/job.sbatch \
#     examples/cluster/recipes/qwen1.5_moe_grove.sh
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
launch=()
while (($#)) && [[ $1 != -- ]]; do launch+=("$1") && shift; done

model=(
  --grove-preset qwen1.5-moe-a2.7b --moe-token-dispatcher-type alltoall --moe-router-dtype fp32
  --grove-num-groups 20 --grove-adjugate-ffn-hidden-size 256 --grove-adjugate-scale 0.05
  --grove-router-scoring softmax
)
layout=(
  --expert-model-parallel-size 4
  --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
  --bf16 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
  --moe-grouped-gemm --no-gradient-accumulation-fusion --distributed-timeout-minutes 60
)
training=(
  --train-samples 12207031 --seq-length 4096 --micro-batch-size 1 --global-batch-size 1024
  --lr 1e-4 --min-lr 5e-5 --lr-decay-style cosine --lr-warmup-samples 102400
  --optimizer adam --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0
  --split 999,1,0 --eval-interval 500 --eval-iters 1
)
files=(
  --data-path "${DATA:-data/text}" --tokenizer-type HuggingFaceTokenizer
  --tokenizer-model "${CKPT:-ckpt}/qwen-grove/hf" --no-create-attention-mask-in-dataloader
  --pretrained-checkpoint "${CKPT:-ckpt}/qwen-grove"
  --load "${CKPT:-ckpt}/qwen-run" --save "${CKPT:-ckpt}/qwen-run"
  --dist-ckpt-optim-fully-reshardable --save-interval 300 --exit-signal-handler --log-interval 1
)

exec "$here/../launch.py" --nodes 1 --gpus-per-node 8 "${launch[@]}" -- -m grove_megatron.pretrain \
  "${model[@]}" "${layout[@]}" "${training[@]}" "${files[@]}" "${@:2}"
