#!/bin/sh
# Tests and measures grove-megatron here, on one GPU and without a network:
#   ./run.sh SECONDS [RESULTS]    (480 or 600; RESULTS is a folder that is not there yet)
#   ./run.sh --plan SECONDS       what that would do
# PYTHON names a Python 3.12 that has torch, Triton, numpy and pytest; python3 by default.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))'; then
    echo "grove_megatron: PYTHON ($python) is not Python 3.12, for which the wheels are;" \
        "set PYTHON to one" >&2
    exit 2
fi
export PYTHONDONTWRITEBYTECODE=1
PYTHONPATH=$(echo "$here"/wheels/grove_megatron-*.whl)${PYTHONPATH:+:$PYTHONPATH} \
    exec "$python" -m grove_megatron.benchmarks.kit.install "$here" "$@"
