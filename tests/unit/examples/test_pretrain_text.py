"""What ``examples/pretrain_text.py`` reads from Megatron's log, and how it makes tokens."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "pretrain_text.py"

# Printed by megatron-core 0.19.2.
STEP_1 = (
    " [2026-11-22 01:06:32.995567] iteration        1/     100 | consumed samples:            8 | "
    "elapsed time per iteration (ms): 1038.1 | learning rate: 4.000000E-04 | "
    "global batch size:     8 | lm loss: 5.584882E+00 | load_balancing_loss: 1.067807E+00 | "
    "loss scale: 1.0 | grad norm: 8.671 | number of skipped iterations:   0 | "
    "number of nan iterations:   0 |"
)
STEP_57 = (
    " [2026-11-22 01:07:10.743093] iteration       57/     100 | consumed samples:          456 | "
    "elapsed time per iteration (ms): 630.8 | learning rate: 2.074438E-03 | "
    "global batch size:     8 | lm loss: 2.872076E+00 | load_balancing_loss: 1.756902E+00 | "
    "loss scale: 1.0 | grad norm: 0.566 | number of skipped iterations:   0 | "
    "number of nan iterations:   0 |"
)
# Ranks share a pipe: rank 0's text and the last rank's record came out as one line.
SHARED_2 = (
    "Number of parameters in transformer block in billions:  0.00 [2026-11-22 01:06:33.828229] "
    "iteration        2/     100 | consumed samples:           16 | elapsed time per iteration "
    "(ms): 935.2 | learning rate: 8.000000E-04 | global batch size:     8 | "
    "lm loss: 5.593333E+00 | load_balancing_loss: 1.068596E+00 | loss scale: 1.0 | "
    "grad norm: 9.177 | number of skipped iterations:   0 | number of nan iterations:   0 |"
)
VALID_10 = (
    " validation loss at iteration 10 | lm loss value: 3.472808E+00 | lm loss PPL: 3.222711E+01 | "
)
VALID_LAST = (
    " validation loss at iteration 100 on validation set | lm loss value: 2.792611E+00 | "
    "lm loss PPL: 1.632358E+01 | "
)
SUMMARY = (
    'grove_megatron summary: {"params_total": 2893184, "params_active": 1013215, '
    '"rows_per_token": 1.8409389919704862, "routed_pairs_per_token": 4.0, '
    '"adjugate_pairs_per_token": 3.503851148817274}'
)
NOISE = (
    "  [2026-11-22 01:02:11.541130] successfully saved checkpoint from iteration      30 to "
    "checkpoint [ t 1/1, gtp_remat 1/1, p 1/1 ]",
    "Evaluating iter 1/2",
    "WARNING:megatron.core.rerun_state_machine:Result validation enabled",
    "    evaluate .......................................: (706.93, 707.02)",
    "",
)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The example as a module; it is a script and not on the import path."""
    spec = importlib.util.spec_from_file_location("pretrain_text", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_step_is_read(example):
    log = example.RunLog()
    step = example.Iteration(number=57, loss=2.872076, seconds=630.8 / 1e3, samples=8)
    assert log.read(STEP_57) == [step]
    assert log.iterations == [step]


def test_records_that_share_a_physical_line_are_all_read(example):
    log = example.RunLog()
    steps = log.read(STEP_1 + SHARED_2 + STEP_57 + VALID_10 + SUMMARY + VALID_LAST)
    assert [step.number for step in steps] == [1, 2, 57]
    assert [step.loss for step in steps] == [5.584882, 5.593333, 2.872076]
    assert log.validation == {10: 3.472808, 100: 2.792611}
    assert log.summary["params_total"] == 2893184


def test_a_record_after_the_text_of_another_rank_is_read(example):
    log = example.RunLog()
    assert [(step.number, step.loss) for step in log.read(SHARED_2)] == [(2, 5.593333)]


def test_a_later_validation_of_the_same_iteration_wins(example):
    log = example.RunLog()
    log.read(VALID_LAST.replace(" on validation set", "").replace("2.792611", "2.797235"))
    log.read(VALID_LAST)
    assert log.validation == {100: 2.792611}


@pytest.mark.parametrize("line", NOISE)
def test_other_lines_hold_no_record(example, line):
    log = example.RunLog()
    assert log.read(line) == []
    assert log == example.RunLog()


def test_the_summary_is_made_from_the_log(example):
    log = example.RunLog()
    for line in (STEP_1, STEP_57, VALID_10, VALID_LAST, SUMMARY):
        log.read(line)
    summary = example.summarize(log, example.Placement(ranks=2, device="CPU"), seconds=1.5)
    assert summary["train_loss_first"] == 5.584882
    assert summary["train_loss_last"] == pytest.approx((5.584882 + 2.872076) / 2)
    assert summary["valid_loss_first"] == 3.472808
    assert summary["valid_loss"] == 2.792611
    assert summary["stock_rows_per_token"] == 4.0
    assert summary["iterations"] == 57


def test_a_log_without_the_summary_line_is_an_error(example):
    log = example.RunLog()
    log.read(STEP_1 + VALID_10)
    with pytest.raises(RuntimeError, match=r"1 iterations, 1 validation losses and the summary"):
        example.summarize(log, example.Placement(ranks=2, device="CPU"), seconds=1.0)


def test_tokens_give_the_documents_back(example):
    documents = [bytes(range(256)), "π = 3.14\n".encode(), b"x"]
    tokens = np.concatenate([example.tokenize(document) for document in documents])
    assert tokens.dtype == np.uint16
    assert len(tokens) == sum(len(document) + 1 for document in documents)
    assert tokens.max() == example.END_OF_DOCUMENT == example.VOCABULARY - 1
    assert example.detokenize(tokens) == documents


def test_sources_are_chosen_in_a_fixed_order_within_the_limit(example, tmp_path):
    for name in ("a.py", "b/c.py", "d.py", "test/e.py", "b/tests/f.py", "g.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("0123456789")
    (tmp_path / "empty.py").touch()
    chosen = example.source_files(tmp_path)
    assert {p.relative_to(tmp_path).as_posix() for p in chosen} == {"a.py", "b/c.py", "d.py"}
    assert example.source_files(tmp_path, max_bytes=25) == chosen[:2]


def test_a_run_never_continues_another(example, tmp_path):
    placement = example.Placement(ranks=2, device="CPU")
    command = example.training_command(placement, tmp_path / "text", tmp_path / "checkpoint", 5)
    assert "--load" not in command
    assert command[command.index("--expert-model-parallel-size") + 1] == "2"


def test_a_result_takes_the_place_of_the_earlier_one(example, tmp_path):
    for folder, text in (("new", "new"), ("old", "old")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text(text)
    example.replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "new"
    assert not (tmp_path / "new").exists()


def test_the_reason_of_a_failure_is_not_hidden_by_the_launcher(example):
    failed = (
        "E1122 01:15:15.400000 16765 torch/distributed/elastic/multiprocessing/api.py:1010] "
        "failed (exitcode: 1) local_rank: 0 (pid: 16800) of binary: python\n"
    )
    log = [f"line {i}\n" for i in range(40)] + ["ValueError: the reason\n", failed, "Traceback\n"]
    assert example.last_lines(log, count=3) == ["line 39\n", "ValueError: the reason\n", failed]
    assert example.last_lines(log[:40], count=1) == ["line 39\n"]


def test_an_interrupt_ends_the_ranks(example):
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(KeyboardInterrupt), example.running(sleeping) as process:  # noqa: PT012
        assert process.poll() is None
        raise KeyboardInterrupt
    assert process.poll() is not None
