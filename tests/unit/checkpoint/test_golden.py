"""References on the spot; those of files are compared in ``tests/integration/test_verify.py``."""

import sys
from pathlib import Path

import pytest

from grove_megatron.checkpoint.golden import Golden


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers .*'grove-megatron\[hf\]', or name"):
        Golden.of_transformers(tmp_path)
