"""The table of flags says what Megatron's parser and the registry of parts say."""

import copy
import random
from enum import Enum
from typing import Any

import pytest

from grove_megatron.checks.problem import Refusal
from grove_megatron.parts import registry
from grove_megatron.planner import flags, known
from grove_megatron.planner.parts import grove_defaults, parts_of
from grove_megatron.presets.table import PRESETS
from grove_megatron.training.sizes import router_parts

from ..conftest import parser
from .rules.drawn_layouts import drawn


def plain(args: Any) -> dict[str, Any]:
    """With members of enumerations by their names, as the table has them."""
    return {name: _plain(value) for name, value in vars(args).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [*map(_plain, value)]
    return value.name if isinstance(value, Enum) else value


def test_the_table_is_as_the_code_makes_it() -> None:
    made = known.text()
    assert flags.TABLE.read_text(encoding="utf-8") == made, (
        "run python -m grove_megatron.planner --write"
    )


LINES = [
    "",
    "--moe-layer-freq ([1]*3+[0])*2 --window-size 4,0",
    "--moe-layer-freq 2 --attention-backend fused --lr=1e-3",
    "--grove-train-only adjugates router --moe-aux-loss-coeff 0.1 0.2",
    "--no-rope-freq [0,1] --rl-use-sequence-packing",
    "--cuda-graph-modules attn moe --exit-signal SIGINT",
    *(f"--grove-preset {name}" for name in PRESETS),
]


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_has_the_same_namespace(line: str) -> None:
    real = plain(copy.deepcopy(parser().parse_args(line.split())))
    assert plain(flags.parse(line.split())) == real


def test_drawn_flags_have_the_same_values() -> None:
    """Every kind of row, alone and beside others."""
    draw, rows = random.Random(1), flags.table()["flags"]
    values = {"int": "7", "float": "0.5", "moe_freq_type": "3", "tuple_type": "1,2"}
    numbers = ("int", "float")
    for _ in range(20):
        words = []
        for row in draw.sample(rows, 30):
            if row["dest"] == "grove_preset" or row.get("nargs") not in (None, "+", "*"):
                continue
            words.append(draw.choice(row["flags"]))
            if row["action"] == "store":
                given = values.get(row.get("type", ""), "1" if row.get("type") in numbers else "x")
                words.append(str(row["choices"][-1]) if "choices" in row else given)
        try:
            real = plain(parser().parse_args(words))
        except (Exception, SystemExit):
            with pytest.raises(Refusal):
                flags.parse(words)
            continue
        assert plain(flags.parser().parse_args(words)) == real


def test_what_cannot_be_parsed_is_said_all_at_once() -> None:
    with pytest.raises(Refusal) as refused:
        flags.parse("--hidden-sise 4 --num-layers x --num-layer 4 --bf16 7".split())
    said = [*map(str, refused.value.problems)]
    assert len(said) == 4
    assert said[0].endswith("did you mean --hidden-size?")
    assert "--num-layers (x) is not a whole number" in said[1]
    # A beginning of a name is no name, as for Megatron.
    assert said[2].startswith("--num-layer is no flag")


@pytest.mark.parametrize("line", ["", *(part.tried for part in registry.parts() if part.tried)])
def test_parts_have_the_weights_and_columns_of_the_registry(line: str) -> None:
    words = f"--num-experts 8 --grove-dispatch {line}".split()
    args = parser().parse_args(words)
    assert parts_of(plain(args)) == router_parts(args)


def test_all_parts_together() -> None:
    given = {row["setting"]: row["value"] for row in flags.table()["parts"]}
    counted = {row["setting"]: 3 for row in flags.table()["parts"] if row["columns"]}
    args = parser().parse_args(["--grove-dispatch"])
    vars(args).update(given | counted)
    assert len(parts_of(vars(args)).weights) >= 8
    assert parts_of(vars(args)) == router_parts(args)
    assert parts_of(vars(args)).local_experts == 9


def test_defaults_are_those_of_the_configuration() -> None:
    from grove_megatron.config import grove_defaults as of_configuration

    assert grove_defaults() == of_configuration()


@pytest.mark.parametrize(
    "line",
    [
        "--nnodes 2 --nproc-per-node 4 -m grove_megatron.pretrain --num-layers 4",
        "--nnodes=1:4 --nproc_per_node=8 --rdzv-backend c10d train.py --bf16 --lr 1",
        "--standalone --nproc-per-node gpu x.py",
    ],
)
def test_a_launcher_is_read_as_torchrun_reads_it(line: str) -> None:
    real = vars(known.torchrun().parse_args(line.split()))
    assert vars(flags.torchrun(line.split())) == real


def test_given_settings_are_those_of_the_line() -> None:
    line = "--tensor-model-parallel-size=2 --no-rl-skip-bos-token --nosuch 1 --bf16"
    found = flags.given_settings(line.split())
    assert found == {"tensor_model_parallel_size", "rl_skip_bos_token", "bf16"}


def test_drawn_jobs_have_the_same_namespace() -> None:
    for words, _ in drawn(7, 20):
        assert plain(flags.parse(words)) == plain(parser().parse_args(words))
