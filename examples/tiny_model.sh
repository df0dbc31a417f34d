# Sourced by the numbered examples: a Grove model small enough for any machine.
# shellcheck shell=bash disable=SC2034

PYTHON="${PYTHON:-python}"

# Examples run from a checkout as well as from an installation.
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$checkout"

# One thread per rank: the ranks share the machine's cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# 2 layers, 8 experts in 4 groups, top 2, one adjugate expert of width 16 per group.
# --tokenizer-type NullTokenizer and --mock-data: nothing is read from or written to the disk.
tiny_model=(
  --num-layers 2 --hidden-size 32 --num-attention-heads 4
  --seq-length 32 --max-position-embeddings 32 --position-embedding-type rope
  --swiglu --normalization RMSNorm --disable-bias-linear --untie-embeddings-and-output-weights
  --num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 32 --moe-router-dtype fp32
  --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2
  --moe-token-dispatcher-type alltoall
  --grove-num-groups 4 --grove-adjugate-ffn-hidden-size 16
  --mock-data --tokenizer-type NullTokenizer --vocab-size 100 --split '90,5,5'
  --no-create-attention-mask-in-dataloader
  --micro-batch-size 2 --global-batch-size 8 --train-iters 10 --lr 1e-3
  --log-interval 1 --eval-interval 1000 --eval-iters 1
)
