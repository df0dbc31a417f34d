"""The pages of flags and commands are those of the code."""

from dataclasses import fields
from pathlib import Path

import pytest

from grove_megatron.config import grove_defaults
from grove_megatron.reference import __main__ as command
from grove_megatron.reference import commands, flags


def test_the_pages_are_as_the_code_makes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.stale() == []
    assert [line.split(":")[0] for line in command.stale(tmp_path)] == [
        "docs/reference/flags.md",
        "docs/reference/commands.md",
    ]
    assert command.main(["--check"]) == 0
    assert capsys.readouterr().err == ""


def test_every_flag_has_one_row() -> None:
    rows = [line for line in flags.page().splitlines() if line.startswith("| `--grove")]
    names = [row.split("`")[1] for row in rows]
    assert sorted(names) == sorted(f"--{name.replace('_', '-')}" for name in grove_defaults())
    cells = {row.split("`")[1]: row.split(" | ") for row in rows}
    assert cells["--grove-num-groups"][1:3] == ["none", "whole number"]
    assert cells["--grove-num-groups"][-1] == "weights |"
    assert cells["--grove-adjugate-scale"][-1] == "weights, with groups |"
    assert cells["--grove-kernel"][-1] == "layer |"
    assert cells["--grove-preset"][-1] == "job |"
    assert "(../parts/gate-attention.md)" in cells["--grove-router-gate"][-2]


def test_every_command_has_a_section_with_its_options() -> None:
    page = commands.page()
    for name in ("grove doctor", "grove bench step", "grove verify", "grove explain", "grove data"):
        assert f"# {name}\n" in page
    verify = page.split("## grove verify\n")[1].split("\n## ")[0]
    assert "grove verify [OPTIONS] [MEGATRON'S FLAGS]" in verify
    assert "| `--layer` PATH |" in verify
    assert "| `--variant` TEXT | `default` |" in verify


def test_a_field_without_a_docstring_would_be_seen() -> None:
    for kind in (flags.GroveTransformerConfig, flags.JobSettings, flags.Choices):
        own = {f.name for f in fields(kind) if f.name.startswith("grove_")}
        # Those of parts are inherited.
        assert own & set(kind.__annotations__) <= flags.documented(kind).keys()
