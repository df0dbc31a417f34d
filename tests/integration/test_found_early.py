"""What the files of a job do to it: named where it can still be mended, and never trained on."""

import os
import sys
from pathlib import Path

import pytest

from tests.ranks import Ranks
from tests.unit.training.data import write_tokens

from .flags import MODEL
from .launching import launch

RUN = "tests.integration.recorded_run"
SCRIPT = str(Path(__file__).with_name("stock_entry_script.py"))
REAL_DATA = [word for word in MODEL if word != "--mock-data"]
TP2 = "--tensor-model-parallel-size 2 --sequence-parallel".split()


def test_ids_outside_of_the_vocabulary_end_a_job_over_tensor_ranks(
    ranks: Ranks, tmp_path: Path
) -> None:
    """Split over ranks, the embedding answers them with zeros. Here they come after what is looked
    at before the start, as far as a padded row of the embedding."""
    later = write_tokens(tmp_path / "text", [[5] * 500] * 40 + [[100] * 500] * 100)
    argv = [*REAL_DATA, *TP2, "--data-path", str(later)]
    job = ranks.run(2, f"{RUN}:train", str(tmp_path), argv, folder=tmp_path)
    assert job.codes == [1, 1], job.log(0)[-3000:]
    said = job.log(0) + job.log(1)
    assert (
        f"token id (100) in the data of --data-path ({later}) is not in the vocabulary of "
        "--tokenizer-type (NullTokenizer, --vocab-size 96), 0 to 95; "
    ) in said
    assert " iteration        1/" not in said


def test_ids_outside_of_the_vocabulary_end_a_script_of_others(ranks: Ranks, tmp_path: Path) -> None:
    # The script makes mock data whatever the flags say, and ends each document with this.
    argv = [SCRIPT, *REAL_DATA, "--null-tokenizer-eod-id", "100"]
    write_tokens(tmp_path / "text")
    argv += ["--data-path", str(tmp_path / "text")]
    job = ranks.run(1, f"{RUN}:run_script", str(tmp_path), argv, folder=tmp_path)
    assert job.codes == [1], job.log(0)[-3000:]
    assert "ValueError: token id (100) in the data of --data-path (" in job.log(0)


def test_all_files_that_are_not_there_are_listed_at_start(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong = {
        "--lr": "fast",
        "--save": f"{tmp_path}/file/run",
        "--save-interval": "1",
        "--tensorboard-dir": f"{tmp_path}/file/board",
        "--data-path": f"{tmp_path}/none",
        "--pretrained-checkpoint": f"{tmp_path}/typo",
        "--tokenizer-model": f"{tmp_path}/tokenizer",
        "--tokenizer-type": "HuggingFaceTokenizer",
    }
    argv = [*REAL_DATA, *(word for pair in wrong.items() for word in pair)]
    job = ranks.run(1, f"{RUN}:train", str(tmp_path), argv, folder=tmp_path)
    assert job.codes == [2], job.log(0)[-3000:]
    _, listed = job.log(0).split("grove_megatron: 6 problems, nothing was started:\n")
    assert [line.split(" (")[0].split(". ")[1] for line in listed.splitlines()] == [
        "--lr",
        "--pretrained-checkpoint",
        "--save",
        "--tensorboard-dir",
        "--data-path",
        "--tokenizer-model",
    ]


@pytest.mark.parametrize(
    "program",
    [
        ["grove_megatron.pretrain"],
        pytest.param(["grove_megatron.run", SCRIPT], marks=pytest.mark.long),
    ],
    ids=["pretrain", "run"],
)
def test_without_a_launcher_a_job_is_one_process(program: list[str]) -> None:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert not {*names} & {*os.environ}
    command = [sys.executable, "-m", *program, *MODEL, "--train-iters", "1"]
    done = launch(command, GROVE_RUNTIME="cpu")
    assert done.code == 0, done.output[-3000:]
    assert " iteration        1/       1 |" in done.output
