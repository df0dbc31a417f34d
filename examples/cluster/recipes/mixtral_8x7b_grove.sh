#!/usr/bin/env bash
# Mixtral-8x7B upcycled to a Grove MoE, on 4 nodes of 8 GPUs with 80 GB. Doctor's figures are in
# mixtral_8x7b_grove.txt; no GPU has run it, and no paper has trained this model.
#
#   hf download mistralai/Mixtral-8x7B-v0.1 --local-dir Mixtral-8x7B-v0.1
#   grove upcycle --hf Mixtral-8x7B-v0.1 --save ckpt/mixtral-grove --adjugate-ffn-hidden-size 2048
#   grove data corpus/ --output data/text --tokenizer ckpt/mixtral-grove/hf
#
# Our choice: groups of 2, adjugates a seventh of an expert wide (the paper's are a sixth), 0.05 as
# their weight, and Mixtral's own balance loss beside the expert bias; 100 billion tokens, 4 million
# a batch, the optimizer and learning rates of the Grove paper. 4 groups go to 4 ranks at most, so
# it fits by 4 pipeline stages, as Megatron-LM's own script of Mixtral has, and the activation
# function computed again.
#
# CKPT  folder of checkpoints (default: ckpt)
# DATA  prefix of the .bin and .idx files (default: data/text)
# Arguments go to launch.py, those behind -- to the job, where the last of a flag wins:
#   mixtral_8x7b_grove.sh --dry-run -- --exit-interval 10
#   sbatch --nodes 4 --gpus-per-node 8 examples/cluster/job.sbatch \
#     examples/cluster/recipes/mixtral_8x7b_grove.sh
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
launch=()
while (($#)) && [[ $1 != -- ]]; do launch+=("$1") && shift; done

model=(
  --grove-preset mixtral-8x7b --moe-token-dispatcher-type alltoall --moe-router-dtype fp32
  --grove-num-groups 4 --grove-adjugate-ffn-hidden-size 2048 --grove-adjugate-scale 0.05
  --moe-router-enable-expert-bias
)
layout=(
  --expert-model-parallel-size 4 --pipeline-model-parallel-size 4
  --recompute-granularity selective --recompute-modules moe_act
  --bf16 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
  --moe-grouped-gemm --no-gradient-accumulation-fusion --distributed-timeout-minutes 60
)
training=(
  --train-samples 24414062 --seq-length 4096 --micro-batch-size 1 --global-batch-size 1024
  --lr 1e-4 --min-lr 5e-5 --lr-decay-style cosine --lr-warmup-samples 102400
  --optimizer adam --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0
  --split 999,1,0 --eval-interval 500 --eval-iters 1
)
files=(
  --data-path "${DATA:-data/text}" --tokenizer-type HuggingFaceTokenizer
  --tokenizer-model "${CKPT:-ckpt}/mixtral-grove/hf" --no-create-attention-mask-in-dataloader
  --pretrained-checkpoint "${CKPT:-ckpt}/mixtral-grove"
  --load "${CKPT:-ckpt}/mixtral-run" --save "${CKPT:-ckpt}/mixtral-run"
  --dist-ckpt-optim-fully-reshardable --save-interval 200 --exit-signal-handler --log-interval 1
)

exec "$here/../launch.py" --nodes 4 --gpus-per-node 8 "${launch[@]}" -- -m grove_megatron.pretrain \
  "${model[@]}" "${layout[@]}" "${training[@]}" "${files[@]}" "${@:2}"
