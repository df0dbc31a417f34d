"""Flags of a Grove model small enough to train in a second an iteration."""

SIZE = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 32 "
    "--max-position-embeddings 32 --micro-batch-size 1 --global-batch-size 4 --train-iters 10 "
    "--lr 1e-2 --swiglu --normalization RMSNorm --disable-bias-linear "
    "--position-embedding-type rope --untie-embeddings-and-output-weights "
    "--attention-dropout 0 --hidden-dropout 0 --init-method-std 0.1"
).split()
# The padded vocabulary is given, or it would depend on the tensor-parallel size.
DATA = (
    "--mock-data --tokenizer-type NullTokenizer --vocab-size 96 --padded-vocab-size 128 "
    "--split 90,5,5 --no-create-attention-mask-in-dataloader --log-interval 1 "
    "--eval-interval 1000 --eval-iters 0 --num-workers 0"
).split()
MOE = (
    "--num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 32 --moe-router-dtype fp32 "
    "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2 --moe-z-loss-coeff 1e-3 "
    "--moe-token-dispatcher-type alltoall"
).split()
GROVE = (
    "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 16 --grove-adjugate-scale 0.3".split()
)

PLAIN_MODEL = [*SIZE, *DATA, *MOE]
MODEL = [*PLAIN_MODEL, *GROVE]
