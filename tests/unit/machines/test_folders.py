"""Which folders of a job its nodes should share."""

from pathlib import Path

import pytest

from grove_megatron.machines.folders import shared_folders
from tests.unit.training.command_lines import parsed
from tests.unit.training.data import write_tokens


@pytest.mark.parametrize(
    ("flags", "folders"),
    [
        ("", []),
        ("--save a --grove-metrics-dir b", ["--save", "--grove-metrics-dir"]),
        # A part for each rank, which reads it again.
        ("--save a --ckpt-format torch --tensorboard-dir b", ["--tensorboard-dir"]),
        ("--save a --skip-train", []),
        ("--save msc://a --data-cache-path c", ["--data-cache-path"]),
        ("--data-cache-path c --dataloader-fast-cache-load", []),
    ],
)
def test_folders(flags: str, folders: list[str]) -> None:
    assert [*shared_folders(parsed(flags))] == folders


def test_without_a_cache_it_is_beside_the_data(tmp_path: Path) -> None:
    text = write_tokens(tmp_path / "text")
    args = parsed(f"--data-path {text}")
    args.mock_data = False
    found = shared_folders(args)
    assert found == {"--data-path": tmp_path / "text" / "cache" / "GPTDataset_indices"}
