"""``grove bench data``, beside a tool that writes what ours does, or something else."""

import shutil
import sys
from pathlib import Path

import pytest

from grove_megatron.benchmarks.data import measure

pytest.importorskip("transformers")

# Stands for Megatron-LM's tool, which is in no package: it copies, and may change a byte.
TOOL = """
import pathlib, sys
given = dict(zip(sys.argv[1:-1:2], sys.argv[2::2]))
assert given["--workers"] == "1" and sys.argv[-1] == "--append-eod"
folder = pathlib.Path(given["--output-prefix"]).parent
for suffix in (".bin", ".idx"):
    content = bytearray((folder / f"ours{suffix}").read_bytes())
    content[-1] ^= CHANGED
    pathlib.Path(given["--output-prefix"] + f"_text_document{suffix}").write_bytes(content)
"""


def clone(folder: Path, changed: int) -> Path:
    (folder / "tools").mkdir(parents=True)
    (folder / "tools" / "preprocess_data.py").write_text(TOOL.replace("CHANGED", str(changed)))
    return folder


def test_both_are_timed_and_compared(tmp_path: Path) -> None:
    found = measure(clone(tmp_path / "same", 0), 1, 1, 1)
    assert found["speed_ratio"] == found["seconds_of_megatron_lm"] / found["seconds"] > 0
    shutil.rmtree(tmp_path / "same")
    with pytest.raises(ValueError, match=r"is not theirs_text_document\.bin, byte for byte"):
        measure(clone(tmp_path / "other", 1), 1, 1, 1)


def test_a_folder_without_the_tool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no tools/preprocess_data.py; name a clone"):
        measure(tmp_path, 1, 1, 1)


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers .*'grove-megatron\[hf\]'"):
        measure(clone(tmp_path, 0), 1, 1, 1)
