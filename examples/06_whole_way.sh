#!/usr/bin/env bash
# From text to a model that answers, on the CPU: the commands of whole_way.md, in its order.
#
# RUN_DIR  folder for what they make (default: a new temporary folder); kept
# --update puts what they printed into whole_way.md
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=examples/tiny_model.sh
source "$here/tiny_model.sh" # PYTHON and checkout

export GROVE_RUNTIME=cpu # also where there is a GPU: this example is about the CPU
exec "$PYTHON" "$here/whole_way.py" "$@"
