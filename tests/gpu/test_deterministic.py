"""With torch's deterministic algorithms a layer gives the same bits in every pass and process."""

import json
import sys
from pathlib import Path

import pytest

from tests.integration.launching import launch

pytestmark = pytest.mark.gpu

# Processes of their own: cuBLAS reads this once, when it is first used.
CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@pytest.mark.parametrize("kernel", ["auto", "grouped", "megatron"])
def test_outputs_and_all_gradients_are_the_same_bits(kernel: str, tmp_path: Path) -> None:
    found = []
    for process in ("first", "second"):
        job = [sys.executable, "-m", "tests.gpu.deterministic_job", kernel]
        done = launch([*job, str(tmp_path / process)], **CUBLAS)
        assert done.code == 0, done.output
        (line,) = (line for line in done.output.splitlines() if line.startswith("[{"))
        found += json.loads(line)
    assert len(found) == 6
    # Output, input, router, and two matrices each of experts and adjugates.
    assert len(found[0]) == 7
    # No two of them are the same, so these are digests of something.
    assert len(set(found[0].values())) == 7
    for digests in found[1:]:
        assert digests == found[0]
