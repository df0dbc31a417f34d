"""An exception in a line."""

import socket
from argparse import Namespace
from pathlib import Path

import pytest

from grove_megatron.failure.text import describe, kind_of, what_goes_on


def args(save: str | None, load: str | None = None, **given: bool) -> Namespace:
    flags = {"skip_train": False, "finetune": False, "enable_msc": False} | given
    return Namespace(save=save, load=load, **flags)


class CheckpointException(Exception):
    """As torch.distributed.checkpoint has it: exceptions and stacks by rank."""

    def __init__(self, failures: dict[int, tuple[BaseException, str]]) -> None:
        super().__init__("a long text with stacks")
        self.failures = failures


def caught(error: BaseException, through: str) -> BaseException:
    """``error`` as it comes out of a function of the name ``through``."""
    scope: dict[str, object] = {}
    exec(f"def {through}(error):\n    raise error", scope)
    with pytest.raises(type(error)) as raised:
        scope[through](error)  # type: ignore[operator]
    return raised.value


def test_type_and_message_in_one_line() -> None:
    assert describe(KeyError("x")) == "KeyError: 'x'"
    assert describe(ValueError("a\n  b")) == "ValueError: a b"
    assert describe(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert describe(ValueError("x" * 1000)) == f"ValueError: {'x' * 600} ..."


def test_an_error_while_saving_says_where_and_how_full(tmp_path: Path) -> None:
    error = caught(OSError(28, "No space left on device"), "save_checkpoint")
    said = describe(error, args(str(tmp_path), str(tmp_path)))
    first, second = said.split("\n")
    assert first == "OSError: [Errno 28] No space left on device"
    assert second.startswith(f"  --save ({tmp_path}) on {socket.gethostname()} has ")
    assert second.endswith(
        " bytes free; this checkpoint is not complete. If it is full, make room; no checkpoint is "
        f"complete in --save ({tmp_path}); the same command begins again"
    )
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("40\n")
    said = describe(error, args(str(tmp_path), str(tmp_path)))
    assert said.endswith("is iteration 40; the same command goes on from it")
    elsewhere = describe(error, args(str(tmp_path / "gone")))
    assert " cannot be asked for its free bytes: " in elsewhere


@pytest.mark.parametrize(
    ("load", "tracker", "said"),
    [
        ("{}/", "40\n", "{last} iteration 40; the same command goes on from it"),
        (None, "40", "{last} iteration 40; the same command with --load {save} goes on from it"),
        ("x", "release", "{last} release; the same command with --load {save} goes on from it"),
        ("{}", None, "no checkpoint is complete in --save ({save}); the same command begins again"),
    ],
)
def test_what_goes_on_is_said(
    load: str | None, tracker: str | None, said: str, tmp_path: Path
) -> None:
    save = str(tmp_path)
    if tracker is not None:
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(tracker)
    last = f"the last complete checkpoint in --save ({save}) is"
    given = args(save, load and load.format(save))
    assert what_goes_on(given) == said.format(last=last, save=save)


@pytest.mark.parametrize(
    ("load", "change"), [("{}", "without"), ("x", "with --load {} and without")]
)
def test_a_finetuning_is_not_gone_on_with_by_the_same_command(
    load: str, change: str, tmp_path: Path
) -> None:
    """Megatron would begin at 0 with what has been saved, without its optimizer."""
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("40")
    said = what_goes_on(args(str(tmp_path), load.format(tmp_path), finetune=True))
    assert said.endswith(
        f" is iteration 40; the same command {change.format(tmp_path)} --finetune goes on from it"
    )


def test_of_an_object_store_nothing_is_known(tmp_path: Path) -> None:
    error = caught(OSError("x"), "save_checkpoint")
    for given in (args("msc://bucket/run"), args(str(tmp_path), enable_msc=True)):
        assert what_goes_on(given) == ""
        assert describe(error, given) == "OSError: x"


def test_of_a_run_that_saves_nothing_there_is_nothing_to_say() -> None:
    assert what_goes_on(None) == ""
    assert what_goes_on(args(None, "x")) == ""


def test_other_errors_say_nothing_of_the_disk(tmp_path: Path) -> None:
    error = caught(ValueError("x"), "train")
    assert describe(error, args(str(tmp_path))) == "ValueError: x"
    saving = caught(ValueError("x"), "save_checkpoint")
    assert describe(saving, args(None)) == "ValueError: x"


def test_failures_of_ranks_are_named_in_place_of_their_stacks() -> None:
    failures = {rank: (OSError("full"), "stack") for rank in (0, 1, 3)}
    error = CheckpointException({**failures, 2: (RuntimeError("other"), "stack")})
    assert describe(error) == (
        "CheckpointException: OSError: full (reading on ranks 0-1, 3); RuntimeError: other "
        "(reading on rank 2)"
    )
    assert "(writing on rank 2)" in describe(caught(error, "save_checkpoint"))
    assert kind_of(error) == "failed"


@pytest.mark.parametrize(
    "error",
    [
        CheckpointException({}),
        RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]"),
    ],
)
def test_an_error_that_another_rank_explains(error: Exception) -> None:
    assert kind_of(error) == "followed"
    assert kind_of(ValueError("x")) == "failed"
