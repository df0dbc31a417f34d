"""What argparse would say of a command line, all of it at once."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

import pytest
from megatron.training.arguments import add_megatron_arguments

from grove_megatron.arguments import add_grove_arguments
from grove_megatron.checks.problem import Problem
from grove_megatron.checks.rules import Check
from grove_megatron.unparsed import report_errors


class Reported(Exception):
    pass


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    """Megatron's, which says of each namespace that --lr, if it is not there, is needed."""

    def report(problems: Sequence[Problem]) -> NoReturn:
        raise Reported(*map(str, problems))

    def others(args: argparse.Namespace) -> Sequence[Problem]:
        check = Check(args)
        found = [*check.missing("lr", "give it"), *check.needs("lr_warmup_init", "lr", "give it")]
        return found if args.lr is None else []

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    return report_errors(add_grove_arguments(parser), report, others)


def reported(parser: argparse.ArgumentParser, words: str) -> list[str]:
    with pytest.raises(Reported) as raised:
        parser.parse_args(words.split())
    return [*raised.value.args]


NO_FLAG = "is no flag of Megatron or grove_megatron; "


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--moe-router-topkk 2", f"--moe-router-topkk {NO_FLAG}did you mean --moe-router-topk?"),
        ("--moe_router_topk 2", f"--moe_router_topk {NO_FLAG}did you mean --moe-router-topk?"),
        ("--grove-num-group=3", f"--grove-num-group {NO_FLAG}did you mean --grove-num-groups?"),
        ("--laod x", f"--laod {NO_FLAG}did you mean --load?"),
        # Near in letters alone, or the opposite.
        ("--train-mode x", f"--train-mode {NO_FLAG}remove it"),
        ("--load-optim", f"--load-optim {NO_FLAG}remove it"),
        ("--zzz", f"--zzz {NO_FLAG}remove it"),
        ("-x 3", "(-x 3) after --lr 1 is of no flag; remove it"),
        ("--num-layers many", "--num-layers (many) is not a whole number; correct it"),
        ("--num-layers=many", "--num-layers (many) is not a whole number; correct it"),
        ("--min-lr 1,5", "--min-lr (1,5) is not a number; correct it"),
        ("--num-layers", "--num-layers needs a value; give it"),
        ("--profile-ranks", "--profile-ranks needs a value; give it"),
        ("--bf16=yes", "--bf16 (yes) takes no value; remove it"),
        ("--bf16 yes", "(yes) after --bf16 is of no flag; remove it"),
        ("--seed 1 2", "(2) after --seed 1 is of no flag; remove it"),
        (
            "--grove-kernel fast",
            "--grove-kernel (fast) is not one of auto, megatron, grouped, triton",
        ),
        ("--attention-backend fast", "--attention-backend (fast) is not"),
        ("--moe-layer-freq [1", "--moe-layer-freq ([1) is not a value of this flag; correct it"),
    ],
)
def test_each_is_one_line(parser: argparse.ArgumentParser, words: str, line: str) -> None:
    (found,) = reported(parser, f"--lr 1 {words}")
    assert found.startswith(line)


def test_all_of_them_and_what_else_is_wrong_are_listed(parser: argparse.ArgumentParser) -> None:
    found = reported(parser, "left --zzz 1 --num-layers x --yyy --seed 1.5 --bf16")
    assert [line.partition(" ")[0] for line in found] == [
        "(left)",
        "--zzz",
        "--num-layers",
        "--yyy",
        "--seed",
        "--lr",
    ]


def test_what_could_not_be_parsed_is_not_missing_too(parser: argparse.ArgumentParser) -> None:
    assert reported(parser, "--lr fast") == ["--lr (fast) is not a number; correct it"]


def test_nor_is_it_missing_beside_another_flag(parser: argparse.ArgumentParser) -> None:
    words = "--lr-warmup-init 1 --seed x"
    assert "--lr-warmup-init (1.0) needs --lr (None); give it" in reported(parser, words)
    assert len(reported(parser, f"{words} --lr fast")) == 2


def test_a_sound_command_line_is_what_it_was(parser: argparse.ArgumentParser) -> None:
    words = ["--lr", "-1", "--data-path", "-0.5", "a", "--seed=7", "--num-layers", "2"]
    args = parser.parse_args(words)
    assert (args.lr, args.data_path, args.seed, args.num_layers) == (-1.0, ["-0.5", "a"], 7, 2)


def test_a_script_that_takes_unknown_flags_gets_them(parser: argparse.ArgumentParser) -> None:
    _, rest = parser.parse_known_args(["--lr", "1", "--of-the-script", "2"])
    assert rest == ["--of-the-script", "2"]
