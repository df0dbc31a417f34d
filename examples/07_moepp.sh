#!/usr/bin/env bash
# MoE++ beside Grove: the model of 01, whose tokens may also select experts without an FFN, and whose
# second layer sees the router logits of the first. Further flags go behind it and win.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec "$here/01_cpu_two_ranks.sh" \
  --moe-router-load-balancing-type none \
  --grove-zero-experts 1 --grove-copy-experts 1 --grove-constant-experts 2 \
  --grove-gating-residual --grove-heterogeneous-loss-coeff 0.01 --grove-local-tau 0.75 "$@"
