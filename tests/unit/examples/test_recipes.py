"""The jobs of ``examples/cluster/recipes``: their stored plans, and the models that they train."""

import importlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grove_megatron.checkpoint.megatron_args import megatron_flags
from grove_megatron.checkpoint.upcycle import grove_architecture
from grove_megatron.model.parameters import total_parameters
from grove_megatron.runtime import cpu
from grove_megatron.training.sizes import sizes_of
from tests.unit.checkpoint.architectures import MIXTRAL, MOE_PLUS_PLUS, QWEN2_MOE, QWEN3_MOE
from tests.unit.conftest import parser

EXAMPLES = Path(__file__).parents[3] / "examples" / "cluster"
# What the commands in a recipe's header make of the released models.
GROVE_33B = grove_architecture(QWEN3_MOE, 2, 128, 0.05)
CHILDREN = {
    "grovemoe_33b_adjugates": GROVE_33B,
    "grovemoe_33b_four_nodes": GROVE_33B,
    "grovemoe_33b_one_node": GROVE_33B,
    "grovemoe_33b_sft": GROVE_33B,
    "mixtral_8x7b_grove": grove_architecture(MIXTRAL, 2, 2048, 0.05),
    "moepp_7b": MOE_PLUS_PLUS,
    "qwen1.5_moe_grove": grove_architecture(QWEN2_MOE, 3, 256, 0.05),
}
# Of the training, or how a plain layer is computed; no checkpoint is another by it.
OF_THE_JOB = {
    "moe_router_load_balancing_type",
    "moe_aux_loss_coeff",
    "moe_expert_capacity_factor",
    "grove_heterogeneous_loss_coeff",
    "grove_local_tau",
    "grove_dispatch",
}


@pytest.fixture(scope="module")
def tool() -> Any:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("recipes")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def found(tool: Any) -> dict[str, tuple[Any, Any]]:
    """Name -> recipe, and what doctor says of it."""
    with cpu():
        return {recipe.name: (recipe, tool.diagnosis(recipe)) for recipe in tool.recipes()}


def test_the_stored_plans_are_those_of_doctor(tool: Any, found: Any) -> None:
    expected = {
        tool.FOLDER / f"{name}.txt": tool.page(recipe, diagnosed)
        for name, (recipe, diagnosed) in found.items()
    }
    assert tool.stale(expected) == []


def test_every_job_fits_with_the_margin(found: Any) -> None:
    assert found.keys() == CHILDREN.keys()
    verdicts = {n: [x for x in d.plan if x.startswith("verdict")] for n, (_, d) in found.items()}
    assert all(v[0].startswith("verdict     fits: ") for v in verdicts.values()), verdicts


@pytest.mark.parametrize("name", CHILDREN)
def test_the_model_is_the_one_that_the_header_prepares(name: str, found: Any) -> None:
    """All flags of the checkpoint's model have the values of ``megatron_flags.txt``."""
    recipe = found[name][0]
    flags = megatron_flags(CHILDREN[name])
    named = {word.removeprefix("--").replace("-", "_") for word in flags if word.startswith("--")}
    job, checkpoint = (parser().parse_args(words) for words in (recipe.flags, flags))
    default = parser().parse_args([])
    fields = {k for k in vars(default) if getattr(checkpoint, k) != getattr(default, k)} | named
    fields = fields & vars(default).keys() - OF_THE_JOB
    if checkpoint.num_query_groups == checkpoint.num_attention_heads:
        # The same attention, said in two ways.
        fields -= {"group_query_attention", "num_query_groups"}
    assert len(fields) > 20
    assert {k: getattr(job, k) for k in fields} == {k: getattr(checkpoint, k) for k in fields}
    lengths = "--seq-length 64 --micro-batch-size 1".split()
    models = [
        sizes_of(parser().parse_args([*words, *lengths]), recipe.world_size).model
        for words in (recipe.flags, flags)
    ]
    assert total_parameters(models[0]) == total_parameters(models[1])


@pytest.mark.parametrize("name", CHILDREN)
def test_little_is_lost_with_a_node_or_a_time_limit(name: str, found: Any) -> None:
    """At the speed that recipes/README.md assumes."""
    recipe, diagnosed = found[name]
    job = parser().parse_args(recipe.flags)
    assert job.exit_signal_handler
    tokens = job.save_interval * job.global_batch_size * job.seq_length
    speed = recipe.world_size * 400e12
    assert tokens * diagnosed.numbers["flops_per_token"] / speed < 2 * 3600


@pytest.mark.parametrize("name", CHILDREN)
def test_words_go_to_the_launcher_or_to_the_job(name: str, tool: Any) -> None:
    def shown(*words: str) -> list[str]:
        command = ["bash", "-c", tool._SHOW, "bash", str(tool.FOLDER / f"{name}.sh"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.split("\0")[1:-1]

    without = shown()
    place = without.index("--")
    given = ["--logs", "a b", "--", "--lr", "1", "--", "c d"]
    assert shown(*given) == [*without[:place], *given[:2], *without[place:], *given[3:]]
    assert shown("--dry-run") == [*without[:place], "--dry-run", *without[place:]]
    assert shown("--", "--lr", "1") == [*without, "--lr", "1"]


def test_a_stale_plan_is_shown(tool: Any, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("memory 2\n")
    (tmp_path / "gone.txt").write_text("memory 2\n")
    expected = {tmp_path / "one.txt": "memory 1\n", tmp_path / "two.txt": "memory 3\n"}
    lines = tool.stale(expected, tmp_path)
    assert f"{tmp_path / 'gone.txt'}: no recipe" in lines
    assert {"-memory 2", "+memory 1", "+memory 3"} <= {*lines}
    for file, text in expected.items():
        file.write_text(text)
    (tmp_path / "gone.txt").unlink()
    assert tool.stale(expected, tmp_path) == []


def test_a_recipe_with_problems_has_no_page(tool: Any) -> None:
    recipe = next(r for r in tool.recipes() if r.name == "moepp_7b")
    broken = replace(recipe, flags=[*recipe.flags, "--expert-model-parallel-size", "3"])
    with cpu(), pytest.raises(ValueError, match="expert-model-parallel-size"):
        tool.page(broken, tool.diagnosis(broken))


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("exec ./other.py --nodes 1 -- -m grove_megatron.pretrain", "does not end in exec"),
        ("exec ./launch.py --nodes 1 --gpus-per-node 8 -- -m other.module", "(-m other.module)"),
        ("echo nothing", "does not end in exec"),
    ],
)
def test_a_script_that_is_no_recipe_is_named(
    tool: Any, end: str, said: str, tmp_path: Path
) -> None:
    script = tmp_path / "job.sh"
    script.write_text(f"#!/usr/bin/env bash\n{end}\n")
    with pytest.raises(ValueError, match=re.escape(said)):
        tool.read_recipe(script)
