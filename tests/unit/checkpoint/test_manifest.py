"""What is written in a manifest comes back; a damaged one is named."""

import json
from pathlib import Path

import pytest
import torch

from grove_megatron.checkpoint.checked import Plan
from grove_megatron.checkpoint.manifest import NAME, Manifest, described, read_checksums

PLANS = {"a": Plan((2, 3), torch.bfloat16), "b": Plan((), torch.float32, skipped=True)}
TENSORS = described(PLANS, {"a": "aa", "b": "bb"}, {"a": "one", "b": "two"})
MANIFEST = Manifest({"command": "grove import"}, {"num_layers": 1}, TENSORS, ["b"], {})


def test_it_says_everything_of_every_tensor() -> None:
    assert TENSORS == {
        "a": {"dtype": "BF16", "shape": [2, 3], "bytes": 12, "sha256": "aa", "file": "one"},
        "b": {"dtype": "F32", "shape": [], "bytes": 4, "sha256": "bb", "file": "two"},
    }
    assert MANIFEST.counts == {"tensors": 2, "parameters": 7, "bytes": 16}


def test_checksums_come_back(tmp_path: Path) -> None:
    assert read_checksums(tmp_path) == {}
    MANIFEST.write(tmp_path)
    assert read_checksums(tmp_path) == {"a": ("BF16", "aa"), "b": ("F32", "bb")}
    content = json.loads((tmp_path / NAME).read_text())
    assert content["counts"] == MANIFEST.counts
    assert content["skipped"] == ["b"]
    assert content["made_by"] == {"command": "grove import"}
    assert content["architecture"] == {"num_layers": 1}


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"{}", b'{"tensors": [1]}', b'{"tensors": {"a": {}}}', b"\xff"]
)
def test_a_damaged_one_is_named(text: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(text)
    with pytest.raises(ValueError, match=r"is damaged .*; remove it to go without it") as raised:
        read_checksums(tmp_path)
    assert str(tmp_path / NAME) in str(raised.value)
