#!/usr/bin/env bash
# A Grove MoE from Qwen3-30B-A3B-Base of which the new adjugates alone are trained, on one node of 8
# GPUs with 80 GB. Doctor's figures are in grovemoe_33b_adjugates.txt; no GPU has run it.
#
#   hf download Qwen/Qwen3-30B-A3B-Base --local-dir Qwen3-30B-A3B-Base
#   grove upcycle --hf Qwen3-30B-A3B-Base --save ckpt/grove
#   grove data corpus/ --output data/text --tokenizer ckpt/grove/hf
#
# No paper has trained this: adjugates of width 128 are 2.4 of 33 billion parameters, and what is
# frozen has neither gradients nor optimizer state, so that no layer is computed again. Our choice:
# 10 billion tokens, 4 million a batch, 1e-4 throughout after 100 batches of warm-up, AdamW as in
# the paper's mid-training. To train everything then: ckpt/adjugates as --pretrained-checkpoint of
# grovemoe_33b_one_node.sh.
#
# CKPT  folder of checkpoints (default: ckpt)
# DATA  prefix of the .bin and .idx files (default: data/text)
# Arguments go to launch.py, those behind -- to the job, where the last of a flag wins:
#   grovemoe_33b_adjugates.sh --dry-run -- --exit-interval 10
#   sbatch --nodes 1 --gpus-per-node 8 examples/cluster/job.sbatch \
#     examples/cluster/recipes/grovemoe_33b_adjugates.sh
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
launch=()
while (($#)) && [[ $1 != -- ]]; do launch+=("$1") && shift; done

model=(
  --grove-preset grovemoe-33b --moe-token-dispatcher-type alltoall --grove-train-only adjugates
)
layout=(
  --expert-model-parallel-size 8 --expert-tensor-parallel-size 1
  --tensor-model-parallel-size 2 --sequence-parallel
  --bf16 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
  --moe-grouped-gemm --no-gradient-accumulation-fusion --distributed-timeout-minutes 60
)
training=(
  --train-samples 1220703 --seq-length 8192 --micro-batch-size 1 --global-batch-size 512
  --lr 1e-4 --lr-decay-style constant --lr-warmup-samples 51200
  --optimizer adam --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0
  --split 999,1,0 --eval-interval 500 --eval-iters 1
)
files=(
  --data-path "${DATA:-data/text}" --tokenizer-type HuggingFaceTokenizer
  --tokenizer-model "${CKPT:-ckpt}/grove/hf" --no-create-attention-mask-in-dataloader
  --pretrained-checkpoint "${CKPT:-ckpt}/grove"
  --load "${CKPT:-ckpt}/adjugates" --save "${CKPT:-ckpt}/adjugates"
  --dist-ckpt-optim-fully-reshardable --save-interval 150 --exit-signal-handler --log-interval 1
)

exec "$here/../launch.py" --nodes 1 --gpus-per-node 8 "${launch[@]}" -- -m grove_megatron.pretrain \
  "${model[@]}" "${layout[@]}" "${training[@]}" "${files[@]}" "${@:2}"
