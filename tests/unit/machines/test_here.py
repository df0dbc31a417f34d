"""What a node says of itself that every other has to say too."""

import shutil
from argparse import Namespace
from pathlib import Path

import pytest

from grove_megatron.checkpoint.layout import TRACKER
from grove_megatron.machines import here
from tests.unit.training.command_lines import parsed
from tests.unit.training.data import write_tokens


def job(folder: Path) -> Namespace:
    """One with data and a checkpoint, in folders of a node."""
    args = parsed(f"--data-path {folder / 'text'} --load {folder / 'ckpt'}")
    args.mock_data = False
    return args


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the first node."""
    first = tmp_path / "first"
    (first / "ckpt").mkdir(parents=True)
    write_tokens(first / "text")
    (first / "ckpt" / TRACKER).write_text("50\n")
    return first


def said(folder: Path) -> dict[str, str]:
    return dict(here._same(job(folder), "cpu"))


def test_copies_on_every_node_are_the_same(folder: Path) -> None:
    other = folder.with_name("mounted_elsewhere")
    shutil.copytree(folder, other)
    assert said(folder) == said(other)
    assert said(folder).keys() >= {"--data-path: text.idx", "--data-path: text.bin", "--load"}
    assert said(folder)["--load"] == "iteration 50"


def test_what_differs_is_seen(folder: Path) -> None:
    first = said(folder)
    index = (folder / "text.idx").read_bytes()
    (folder / "text.idx").write_bytes(index[:-1] + bytes([index[-1] ^ 1]))
    (folder / "text.bin").unlink()
    (folder / "ckpt" / TRACKER).write_text("100")
    second = said(folder)
    different = {name for name in first if first[name] != second[name]}
    assert different == {"--data-path: text.idx", "--data-path: text.bin", "--load"}
    assert second["--data-path: text.bin"] == "No such file or directory"
    shutil.rmtree(folder / "ckpt")
    assert said(folder)["--load"] == "not there"


def test_other_code_is_seen(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    file = package / "moe.py"
    file.write_text("topk = 2\n")
    first = here._digest([file], package)
    file.write_text("topk = 3\n")
    assert here._digest([file], package) != first
    # The same text under another name.
    renamed = file.rename(package / "dense.py")
    second = here._digest([renamed], package)
    renamed.rename(file)
    assert here._digest([file], package) != second


def test_memory_is_what_every_group_around_leaves(tmp_path: Path) -> None:
    """Of a step in a job of Slurm, which has less than the machine."""
    root, mine = tmp_path / "cgroup", tmp_path / "mine"
    step = root / "job_7" / "step_0"
    step.mkdir(parents=True)
    for folder, most, used, cached in ((root / "job_7", 100, 60, 20), (step, 90, 50, 0)):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 30\ninactive_file {cached}\n")
    mine.write_text("0::/job_7/step_0\n")
    assert [*here._left_in_groups(mine, root)] == [40, 60]
    (step / "memory.max").write_text("max\n")
    assert [*here._left_in_groups(mine, root)] == [60]
    # A container sees its own group as the root, and version 1 has a line for each resource.
    mine.write_text("0::/\n")
    assert [*here._left_in_groups(mine, root / "job_7")] == [60]
    mine.write_text("2:memory:/job_7\n1:cpu:/\n")
    assert [*here._left_in_groups(mine, root)] == []


def test_this_node_has_an_address_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    node = here._this_node(parsed(), "cpu", ())
    assert node.address == "127.0.0.1"
    assert node.interface == "lo"
    assert (
        0
        < node.memory
        <= 1024
        * next(
            int(line.split()[1])
            for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("MemTotal")
        )
    )
