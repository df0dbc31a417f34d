#!/usr/bin/env bash
# A MoE into a Grove MoE in two stages, on the CPU: a tiny Qwen3-MoE becomes a Grove MoE that
# computes the same; its new adjugates are trained alone, all else frozen; then everything is. Two
# expert-parallel ranks; every command is shown before it runs.
#
# RUN_DIR  folder for text, checkpoints and logs (default: a new temporary folder); kept
# Further Megatron flags go behind those of both stages and win: ./08_staged.sh --train-iters 100
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=examples/tiny_model.sh
source "$here/tiny_model.sh" # PYTHON; the model here is that of whole_way_data.py

export GROVE_RUNTIME=cpu # also where there is a GPU: this example is about the CPU
run_dir="${RUN_DIR:-$(mktemp -d)}"
mkdir -p "$run_dir"

# Of this Python, wherever they are installed.
python() { command "$PYTHON" "$@"; }
grove() { python -m grove_megatron "$@"; }
torchrun() { python -m torch.distributed.run "$@"; }

# Shows a command, runs it with its output in a log, and shows what matters of that, or its end.
run() { # name of the log, command
  local log="$run_dir/$1.log"
  echo "== $1"
  printf '$' && printf ' %q' "${@:2}" && echo
  if ! "${@:2}" >"$log" 2>&1; then
    echo "failed; the end of $log:" >&2
    tail -n 20 "$log" >&2
    exit 1
  fi
  sed -n -e '/documents, /p' -e '/accounted for/p' -e '/^memory  /,/margin/p' \
    -e '/^--grove-train-only.*trained$/p' -e '/^ loading .*from/p' -e '/\] iteration /p' "$log"
}

echo "text, checkpoints and logs: $run_dir"
run parent python "$here/whole_way_data.py" "$run_dir"
run data grove data "$run_dir/text.jsonl" --output "$run_dir/text" --tokenizer "$run_dir/parent"
run upcycle grove upcycle --hf "$run_dir/parent" --save "$run_dir/grove" \
  --adjugate-ffn-hidden-size 32

read -ra model <"$run_dir/grove/megatron_flags.txt"
training=(
  "${model[@]}" --expert-model-parallel-size 2
  --data-path "$run_dir/text" --split '1,0,0' --eval-interval 1000 --eval-iters 0
  --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$run_dir/parent"
  --no-create-attention-mask-in-dataloader
  --seq-length 64 --micro-batch-size 8 --global-batch-size 32 --train-iters 60
  --lr-decay-style constant --weight-decay 0 --use-distributed-optimizer
  --save-interval 60 --log-interval 10
)
pretrain=(torchrun --standalone --nproc-per-node 2 -m grove_megatron.pretrain "${training[@]}")

# Nothing else has a gradient or an optimizer state. They are new, and learn faster than the rest.
adjugates=(
  "${pretrain[@]}" --grove-train-only adjugates --lr 1e-2
  --load "$run_dir/grove" --save "$run_dir/adjugates" "$@"
)
run plan grove doctor "${adjugates[@]}"
run adjugates "${adjugates[@]}"
# From iteration 1, with a new optimizer: the state that was saved is of the adjugates alone.
run all "${pretrain[@]}" --lr 1e-3 \
  --load "$run_dir/adjugates" --finetune --no-load-optim --save "$run_dir/all" "$@"
