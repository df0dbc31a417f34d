#!/usr/bin/env bash
# Weights in, training, weights out, on the CPU: a Hugging Face folder becomes a Megatron
# checkpoint, is trained on two ranks with expert parallelism 2, goes on with the same command, then
# on one rank without expert parallelism, and becomes a Hugging Face folder again.
#
# RUN_DIR  folder for checkpoints, logs and the result (default: a new temporary folder); kept
# Further Megatron flags go behind it and win: ./04_weights.sh --lr 1e-4
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=examples/tiny_model.sh
source "$here/tiny_model.sh" # PYTHON and checkout; the model here is the one in tests/data

export GROVE_RUNTIME=cpu # also where there is a GPU: this example is about the CPU
run_dir="${RUN_DIR:-$(mktemp -d)}"
mkdir -p "$run_dir"
hf="$checkout/tests/data/grovemoe-tiny"

# Of a flag that comes twice Megatron takes the last: megatron_flags.txt has no balancing of the
# experts, these have. --exit-interval ends each run after 5 of the 15 iterations, as a time limit
# would.
training=(
  --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2
  --mock-data --tokenizer-type NullTokenizer --split '90,5,5'
  --no-create-attention-mask-in-dataloader
  --seq-length 32 --micro-batch-size 2 --global-batch-size 8 --train-iters 15 --lr 1e-3
  --use-distributed-optimizer --dist-ckpt-optim-fully-reshardable
  --save-interval 5 --exit-interval 5 --log-interval 1 --eval-interval 1000 --eval-iters 0
)

# Runs a command with its output in a log; shows what matters of it, or the end if it failed.
logged() { # name of the log, command
  local log="$run_dir/$1.log"
  echo "== $1"
  if ! "${@:2}" >"$log" 2>&1; then
    echo "failed; the end of $log:" >&2
    tail -n 20 "$log" >&2
    exit 1
  fi
  grep -e 'accounted for' -e '^│' -e '^passed' -e '^ loading .*from' -e '\] iteration ' "$log"
}

grove() {
  "$PYTHON" -m grove_megatron "$@"
}

# Starts from the import; once the run has saved a checkpoint of its own, goes on from that.
train() { # number of ranks, flags
  # shellcheck disable=SC2046 # a word each
  "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$1" \
    -m grove_megatron.pretrain $(cat "$run_dir/import/megatron_flags.txt") \
    --pretrained-checkpoint "$run_dir/import" --load "$run_dir/run" --save "$run_dir/run" \
    "${training[@]}" "${@:2}"
}

echo "checkpoints, logs and result: $run_dir"
logged import grove import --hf "$hf" --save "$run_dir/import"
logged verify grove verify --load "$run_dir/import" --golden "$hf/golden.safetensors"
logged begin train 2 --expert-model-parallel-size 2 "$@"
logged resume train 2 --expert-model-parallel-size 2 "$@"
logged one_rank train 1 "$@"
logged export grove export --load "$run_dir/run" --hf-config "$run_dir/import/hf" \
  --hf "$run_dir/trained"
