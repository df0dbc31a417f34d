#!/usr/bin/env bash
# From a command line that cannot run to a job and a page that shows what its experts did: what
# torchrun says of five mistakes, what grove doctor says of them and of the mended command, the job,
# and its report.
#
# RUN_DIR  folder for logs, checkpoint and report (default: a new temporary folder); kept
# Further Megatron flags go behind the mended command and win: ./05_doctor.sh --train-iters 100
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=examples/tiny_model.sh
source "$here/tiny_model.sh"

export GROVE_RUNTIME=cpu # also where there is a GPU: this example is about the CPU
run_dir="${RUN_DIR:-$(mktemp -d)}"
mkdir -p "$run_dir"

job=(
  torchrun --standalone --nproc-per-node 2 -m grove_megatron.pretrain
  "${tiny_model[@]}" --train-iters 40 --save "$run_dir/run"
)
mistakes=(
  --moe-router-topk 1 --expert-model-parallel-size 4 --global-batch-size 7
  --recompute-granularity full
)
mended=(--expert-model-parallel-size 2 --save-interval 20 --log-interval 5 "$@")

# torchrun of this Python, wherever it is installed.
torchrun() {
  "$PYTHON" -m torch.distributed.run "$@"
}

# Runs a command that has to end with the given exit code, with its output in a log.
expect() { # exit code, name of the log, command
  local code=0 log="$run_dir/$2.log"
  "${@:3}" >"$log" 2>&1 || code=$?
  if [[ $code != "$1" ]]; then
    echo "exit code $code in place of $1; the end of $log:" >&2
    tail -n 20 "$log" >&2
    exit 1
  fi
}

echo "logs, checkpoint and report: $run_dir"
echo "== the job as it was"
expect 1 failed "${job[@]}" "${mistakes[@]}"
sed -n '/problems, nothing/,/^$/p' "$run_dir/failed.log" | grep -e 'problems' -e '^  [0-9]'

echo "== grove doctor, of the same command"
expect 2 refused "$PYTHON" -m grove_megatron doctor "${job[@]}" "${mistakes[@]}"
grep -e 'problems' -e '^  [0-9]' "$run_dir/refused.log"

echo "== grove doctor, of the mended one"
expect 0 sound "$PYTHON" -m grove_megatron doctor "${job[@]}" "${mended[@]}"
sed -n '/no problem found/,$p' "$run_dir/sound.log"

echo "== the job"
expect 0 job "${job[@]}" "${mended[@]}"
grep -e '\] iteration ' -e 'summary' "$run_dir/job.log"

echo "== grove report"
"$PYTHON" -m grove_megatron report "$run_dir/run" --out "$run_dir/report.html"
