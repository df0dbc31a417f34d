#!/usr/bin/env bash
# Two CPU ranks, expert parallelism 2: 10 iterations of a tiny Grove model on mock data.
# Further Megatron flags go behind it and win: ./01_cpu_two_ranks.sh --train-iters 50
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=examples/tiny_model.sh
source "$here/tiny_model.sh"

export GROVE_RUNTIME=cpu # also where there is a GPU: this example is about the CPU
exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 2 \
  -m grove_megatron.pretrain \
  "${tiny_model[@]}" --expert-model-parallel-size 2 "$@"
