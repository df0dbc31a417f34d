#!/usr/bin/env bash
# GroveMoE-33B fine-tuned on conversations, on 4 nodes of 8 GPUs with 80 GB. Doctor's figures are in
# grovemoe_33b_sft.txt; no GPU has run it.
#
# It begins with ckpt/mid-training, of grovemoe_33b_four_nodes.sh. Conversations are one file of
# lines, as grove_megatron/sft/README.md has them; nothing is prepared.
#
# From the paper (arXiv 2508.07785): cosine from 5e-6 to 1e-6. Our choice: 200,000 packed sequences
# of 8192, 128 a batch, no warm-up, AdamW as in mid-training, every token of an answer as much.
#
# CKPT  folder of checkpoints (default: ckpt)
# DATA  file of conversations (default: data/chats.jsonl)
# Arguments go to launch.py, those behind -- to the job, where the last of a flag wins:
#   grovemoe_33b_sft.sh --dry-run -- --exit-interval 10
#   sbatch --nodes 4 --gpus-per-node 8 examples/cluster/job.sbatch \
#     examples/cluster/recipes/grovemoe_33b_sft.sh
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
launch=()
while (($#)) && [[ $1 != -- ]]; do launch+=("$1") && shift; done

model=(--grove-preset grovemoe-33b --moe-token-dispatcher-type alltoall)
layout=(
  --expert-model-parallel-size 8
  --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
  --bf16 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
  --moe-grouped-gemm --no-gradient-accumulation-fusion --distributed-timeout-minutes 60
)
training=(
  --sft --calculate-per-token-loss
  --train-samples 200000 --seq-length 8192 --micro-batch-size 1 --global-batch-size 128
  --lr 5e-6 --min-lr 1e-6 --lr-decay-style cosine
  --optimizer adam --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0
  --split 98,2,0 --eval-interval 500 --eval-iters 1
)
files=(
  --data-path "${DATA:-data/chats.jsonl}" --tokenizer-type HuggingFaceTokenizer
  --tokenizer-model "${CKPT:-ckpt}/grove/hf" --no-create-attention-mask-in-dataloader
  --pretrained-checkpoint "${CKPT:-ckpt}/mid-training"
  --load "${CKPT:-ckpt}/sft" --save "${CKPT:-ckpt}/sft"
  --dist-ckpt-optim-fully-reshardable --save-interval 500 --exit-signal-handler --log-interval 1
)

exec "$here/../launch.py" --nodes 4 --gpus-per-node 8 "${launch[@]}" -- -m grove_megatron.pretrain \
  "${model[@]}" "${layout[@]}" "${training[@]}" "${files[@]}" "${@:2}"
