"""Python in the documents runs; what cannot run here parses, and imports what there is."""

import ast
import importlib.util
import json
import shlex
from pathlib import Path

import pytest

from grove_megatron.planner.speed.machines import read_cluster
from tests.ranks import Ranks

from .fences import Fence, documents, fences, read
from .running import Runner
from .shell import commands

PROGRAMS = fences("python", "py")


@pytest.fixture(scope="module")
def runner(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(ranks, tmp_path_factory.mktemp("programs"))


@pytest.mark.parametrize(
    "fence", [one for one in PROGRAMS if one.mark != "not run"], ids=lambda one: one.name
)
def test_a_program_runs(fence: Fence, runner: Runner) -> None:
    code, printed = runner.program(fence.text)
    assert code == 0, printed[-4000:]


@pytest.mark.parametrize(
    "fence", [one for one in fences("sh") if one.mark == "run"], ids=lambda one: one.name
)
def test_a_block_that_says_so_is_run(fence: Fence, runner: Runner) -> None:
    for command in commands(fence.text, {}):
        code, printed = runner.done(shlex.join(command))
        assert code == 0, f"{command}:\n{printed[-4000:]}"


@pytest.mark.parametrize("fence", PROGRAMS, ids=lambda one: one.name)
def test_a_program_names_what_there_is(fence: Fence) -> None:
    missing = []
    for node in ast.walk(ast.parse(fence.text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            module = node.module or ""
            if module.startswith("grove_megatron"):
                source = Path(importlib.util.find_spec(module).origin or "").read_text()  # type: ignore[union-attr]
                missing += [one.name for one in node.names if f" {one.name}" not in source]
        missing += [
            name
            for name in names
            if name.startswith("grove_megatron") and importlib.util.find_spec(name) is None
        ]
    assert missing == []


def test_json_and_yaml_are_that() -> None:
    for fence in fences("json"):
        assert [json.loads(line) for line in fence.text.splitlines()]
    yaml = pytest.importorskip("yaml")
    for fence in fences("yaml"):
        assert isinstance(yaml.safe_load(fence.text), dict)


@pytest.mark.parametrize("fence", fences("toml"), ids=lambda one: one.name)
def test_a_cluster_in_toml_is_one(fence: Fence, tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(fence.text, encoding="utf-8")
    assert read_cluster(path).gpus > 1


def test_every_block_is_of_a_language_that_is_checked() -> None:
    """A fence without a language, or of another, would be looked at by no test."""
    known = {"sh", "bash", "shell", "console", "python", "py", "json", "yaml", "toml", "text"}
    assert {fence.language for fence in fences()} <= known
    for document in documents():
        lines = [line for line in read(document).splitlines() if line.lstrip().startswith("```")]
        assert len(lines) == 2 * sum(one.document == document for one in fences()), document
    for fence in fences("python", "py"):
        assert fence.mark in ("", "not run"), fence.name
    for fence in fences("sh"):
        assert fence.mark in ("", "run"), fence.name
