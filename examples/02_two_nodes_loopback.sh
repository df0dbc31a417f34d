#!/usr/bin/env bash
# Two torchrun agents of two CPU ranks each, expert parallelism 4: what two nodes do, on loopback.
# On two real nodes each runs one of the two commands, with the first node's address.
#
# RUN_DIR  folder of the two logs (default: a new temporary folder); they are kept
# PORT     rendezvous port (default: a free one)
# Further Megatron flags go behind it and win: ./02_two_nodes_loopback.sh --train-iters 50
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=examples/tiny_model.sh
source "$here/tiny_model.sh"

export GROVE_RUNTIME=cpu # two agents on one machine would share its GPUs
run_dir="${RUN_DIR:-$(mktemp -d)}"
mkdir -p "$run_dir"
free_port='import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
port="${PORT:-$("$PYTHON" -c "$free_port")}"

# Ends the agents that still run; torchrun ends its ranks before it goes.
stop_agents() {
  for agent in $(jobs -pr); do
    kill -TERM "$agent" 2>/dev/null || true
  done
  wait
}
trap stop_agents EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for node in 0 1; do
  "$PYTHON" -m torch.distributed.run \
    --nnodes 2 --node-rank "$node" --nproc-per-node 2 \
    --master-addr 127.0.0.1 --master-port "$port" \
    -m grove_megatron.pretrain \
    "${tiny_model[@]}" --expert-model-parallel-size 4 "$@" \
    >"$run_dir/node$node.log" 2>&1 &
done
echo "two agents on 127.0.0.1:$port, logs: $run_dir/node0.log $run_dir/node1.log"

# Whichever agent ends first decides: if it failed, the other would wait for it until a timeout.
for _ in 0 1; do
  status=0
  wait -n || status=$?
  if ((status != 0)); then
    echo "an agent failed (exit code $status); the end of both logs:" >&2
    tail -n 20 "$run_dir"/node[01].log >&2
    exit "$status"
  fi
done

# Megatron prints the loss on the last rank (node 1), the summary comes from rank 0 (node 0).
grep -h -e ' iteration ' "$run_dir/node1.log" || true
grep -h -e '^grove_megatron summary' "$run_dir/node0.log" || true
echo "both agents finished"
