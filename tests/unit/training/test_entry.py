"""What ``grove_megatron.run`` rebinds; the runs themselves are in tests/integration."""

import contextlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

from grove_megatron.checks.problem import Problem
from grove_megatron.runtime import cpu
from grove_megatron.training import entry
from grove_megatron.training.checks import every_problem

from ..conftest import in_lines
from .command_lines import parsed

every_problem = in_lines(every_problem)


@pytest.mark.parametrize(("given", "used"), [(None, "of the attempt"), ("theirs", "theirs")])
def test_a_script_without_a_store_gets_that_of_the_attempt(
    given: Any, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Megatron calls it; scripts with in-process restart have a store of their own."""
    called: list[Any] = []
    patch = next(p for p in entry.ENTRY.patches if p.name == "store-of-attempt")
    monkeypatch.setattr(entry, "get_args", lambda: Namespace(lr=1))
    monkeypatch.setattr(entry, "group_store", lambda args: "of the attempt")
    patched = patch.make(lambda *given, **named: called.append((given, named)))
    patched("embedding", "position", given, skip_model_parallel_init=False)
    assert called == [(("embedding", "position", used), {"skip_model_parallel_init": False})]


def test_a_tokenizer_with_more_ids_than_rows_is_refused_before_there_is_a_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensor-parallel ranks would mask the ids between, and go on."""
    args = parsed("--padded-vocab-size 64")
    monkeypatch.setattr(entry, "get_args", lambda: args)
    tokenizer = build_tokenizer(args)
    monkeypatch.setattr(entry, "get_tokenizer", lambda: tokenizer)
    patch = next(p for p in entry.ENTRY.patches if p.name == "store-of-attempt")
    called: list[Any] = []
    patched = patch.make(lambda *given: called.append(given))
    with pytest.raises(SystemExit):
        patched("embedding", "position", "store")
    assert called == []
    args.padded_vocab_size = 128
    patched("embedding", "position", "store")
    assert len(called) == 1


def refused(args: Namespace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the script hears where it has Megatron validate ``args``; nothing is validated."""
    said: list[str] = []

    def refuse(problems: list[Problem]) -> None:
        said.extend(map(str, problems))
        raise SystemExit(2)

    monkeypatch.setattr(entry, "refuse", refuse)
    monkeypatch.setattr(entry, "announce_flops", lambda args: None)
    patch = next(p for p in entry.ENTRY.patches if p.name == "checks")
    with contextlib.suppress(SystemExit), cpu():
        patch.make(lambda args, defaults: None)(args)
    return said


class TestScript:
    @pytest.mark.parametrize(
        ("without", "begin"),
        [
            ("train_iters", "--train-iters (None) is needed"),
            ("lr", "--lr (None) is needed"),
            ("eval_interval", "--eval-interval (None) is needed"),
            ("vocab_size", "--tokenizer-type (NullTokenizer) needs --vocab-size (None)"),
        ],
    )
    def test_needs_what_the_training_loop_reads(
        self, without: str, begin: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        args = parsed("--eval-interval 1")
        setattr(args, without, None)
        (line,) = refused(args, monkeypatch)
        assert line.startswith(begin)
        with cpu():
            assert every_problem(args, 1, own_script=True) == [line]

    def test_needs_nothing_to_train_if_it_does_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        args = parsed()
        args.train_iters = args.lr = None
        assert refused(args, monkeypatch) == []

    @pytest.mark.parametrize("minutes", [0, -1, 10**13])
    def test_is_refused_a_timeout_before_ranks_wait_by_it(
        self, minutes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(entry, "begin", lambda args: pytest.fail("ranks wait"))
        args = parsed(f"--eval-interval 1 --train-iters 0 --distributed-timeout-minutes {minutes}")
        late, other = refused(args, monkeypatch)
        assert late.startswith(f"--distributed-timeout-minutes ({minutes}) is not between 1 and ")
        assert other.startswith("--train-iters (0) is below 1")

    def test_reads_data_of_its_own_and_is_told_what_megatron_would_say(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "text.jsonl").write_text("{}")
        args = parsed(f"--eval-interval 1 --data-path {tmp_path}/text.jsonl")
        args.mock_data = False
        assert refused(args, monkeypatch) == []
        said = capsys.readouterr().err
        assert f"if the script reads it as Megatron does: --data-path ({tmp_path}/text" in said
        args.data_path = [f"{tmp_path}/typo"]
        (line,) = refused(args, monkeypatch)
        assert line.startswith("--data-path (")

    @pytest.mark.parametrize("kind", [None, "GPT2BPETokenizer"])
    def test_has_a_tokenizer_of_its_own_unless_it_names_one_of_megatrons(
        self, kind: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        args = parsed("--eval-interval 1 --vocab-file none")
        args.tokenizer_type = kind
        lines = refused(args, monkeypatch)
        assert any(line.startswith("--vocab-file (none)") for line in lines) == (kind is not None)

    def test_without_grove_flags_has_its_files_to_itself(self, tmp_path: Path) -> None:
        args = parsed(f"--save {tmp_path}/file/run --save-interval 1", plain=True)
        (tmp_path / "file").write_text("")
        with cpu():
            assert every_problem(args, 1, own_script=True) == []
            assert every_problem(args, 1)
