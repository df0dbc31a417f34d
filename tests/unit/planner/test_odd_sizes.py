"""Sizes that no model has are refused by name, or planned; nothing ends in a traceback."""

import math
import random
from collections.abc import Iterator

import pytest

from grove_megatron.checks.problem import Refusal
from grove_megatron.planner.choice.layouts import plan_layouts
from grove_megatron.planner.flags import table
from grove_megatron.planner.pages.front import asked

from .choice.test_layouts import MODEL, cluster

STOCK = MODEL[: MODEL.index(" --grove")]
LATENT = STOCK.replace("--num-query-groups 4 --group-query-attention", "--multi-latent-attention")
DENSE = STOCK.replace("--num-experts 8 --moe-router-topk 2 ", "")
PARTS = f"{MODEL} --grove-zero-experts 1 --grove-constant-experts 1"
JOB = "--seq-length 2048 --global-batch-size 16 --micro-batch-size 1 --bf16"
SIZES = (0, -1, 10**7, 10**18, 10**400)


def refused(words: str) -> list[str]:
    """What is said of a command line as it stands; nothing where it is planned, with figures."""
    try:
        plans = plan_layouts(asked(words.split(), as_given=True).job, cluster(4))
    except Refusal as refusal:
        return [*map(str, refusal.problems)]
    except ValueError as error:
        return [str(error)]
    for one in (*plans.ranked, *plans.too_large):
        assert math.isfinite(one.memory.total), words
        assert one.memory.total > 0, words
        assert 0 <= one.mfu <= 1, words
    return [str(problem) for _, problem in plans.refused]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"{STOCK} --moe-router-topk 128", "--moe-router-topk (128) is not between 1 and"),
        (f"{STOCK} --moe-router-topk 0", "--moe-router-topk (0) is not between 1 and"),
        (f"{MODEL} --moe-router-topk 128", "--moe-router-topk (128) is not between 1 and"),
        (
            f"{PARTS} --moe-router-topk 11",
            "--moe-router-topk (11) is not between 1 and --num-experts (8) and 2 without an FFN",
        ),
        (f"{STOCK} --padded-vocab-size -5", "--padded-vocab-size (-5) is below 1"),
        (f"{STOCK} --mtp-num-layers -1", "--mtp-num-layers (-1) is below 0"),
        (f"{STOCK} --num-experts -1", "--num-experts (-1) is below 0"),
        (f"{MODEL} --grove-num-groups 3", "--grove-num-groups (3) does not divide"),
        (f"{STOCK} --grove-num-groups 4", "--grove-adjugate-ffn-hidden-size (None) is not"),
        (f"{PARTS} --grove-zero-experts -1", "--grove-zero-experts (-1) is below 0"),
    ],
)
def test_it_is_refused_by_name(words: str, said: str) -> None:
    assert [line for line in refused(f"{words} {JOB}") if line.startswith(said)]


def drawn(seed: int, count: int) -> Iterator[str]:
    """Command lines with one or two sizes that none has."""
    draw = random.Random(seed)
    flags = [row["flags"][0] for row in table()["flags"] if row.get("type") == "int"]
    # Those that a plan reads, and the others less often.
    sizes = [
        one for one in flags if one in MODEL or "-size" in one or "num-" in one or "-dim" in one
    ]
    for _ in range(count):
        words = f"{draw.choice([STOCK, MODEL, LATENT, DENSE, PARTS])} {JOB}"
        for _ in range(draw.choice([1, 1, 2])):
            words += f" {draw.choice(sizes)} {draw.choice(SIZES)}"
        yield words


@pytest.mark.parametrize("seed", range(4))
def test_drawn_sizes_are_refused_or_planned(seed: int) -> None:
    some = [refused(words) for words in drawn(seed, 50)]
    lines = [line for said in some for line in said]
    assert not [line for line in lines if "cannot be checked" in line]
    assert sum(map(bool, some)) >= 15
