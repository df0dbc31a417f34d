#!/usr/bin/env bash
# MoE++ 7B, further training of the released weights, on one node of 8 GPUs with 80 GB. Doctor's
# figures are in moepp_7b.txt; no GPU has run it.
#
#   hf download Chat-UniVi/MoE-Plus-Plus-7B --local-dir MoE-Plus-Plus-7B
#   grove import --hf MoE-Plus-Plus-7B --save ckpt/moepp
#   grove data corpus/ --output data/text --tokenizer ckpt/moepp/hf
#
# Without --pretrained-checkpoint it begins at random. Losses, experts and router are those of the
# preset (arXiv 2410.07348). Our choice: 100 billion tokens, 4 million a batch, cosine from 1e-4 to
# 1e-5 and AdamW with betas (0.9, 0.95). For the paper's smaller models name another preset; for
# adjugates on top, --grove-num-groups 8 --grove-adjugate-ffn-hidden-size 256.
#
# CKPT  folder of checkpoints (default: ckpt)
# DATA  prefix of the .bin and .idx files (default: data/text)
# Arguments go to launch.py, those behind -- to the job, where the last of a flag wins:
#   moepp_7b.sh --dry-run -- --exit-interval 10
#   sbatch --nodes 1 --gpus-per-node 8 examples/cluster/job.sbatch \
#     examples/cluster/recipes/moepp_7b.sh
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
launch=()
while (($#)) && [[ $1 != -- ]]; do launch+=("$1") && shift; done

model=(--grove-preset moe++-7b --moe-token-dispatcher-type alltoall)
layout=(
  --expert-model-parallel-size 8
  --bf16 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
  --moe-grouped-gemm --no-gradient-accumulation-fusion --distributed-timeout-minutes 60
)
training=(
  --train-samples 48828125 --seq-length 2048 --micro-batch-size 2 --global-batch-size 2048
  --lr 1e-4 --min-lr 1e-5 --lr-decay-style cosine --lr-warmup-samples 204800
  --optimizer adam --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0
  --split 999,1,0 --eval-interval 500 --eval-iters 1
)
files=(
  --data-path "${DATA:-data/text}" --tokenizer-type HuggingFaceTokenizer
  --tokenizer-model "${CKPT:-ckpt}/moepp/hf" --no-create-attention-mask-in-dataloader
  --pretrained-checkpoint "${CKPT:-ckpt}/moepp"
  --load "${CKPT:-ckpt}/moepp-run" --save "${CKPT:-ckpt}/moepp-run"
  --dist-ckpt-optim-fully-reshardable --save-interval 500 --exit-signal-handler --log-interval 1
)

exec "$here/../launch.py" --nodes 1 --gpus-per-node 8 "${launch[@]}" -- -m grove_megatron.pretrain \
  "${model[@]}" "${layout[@]}" "${training[@]}" "${files[@]}" "${@:2}"
