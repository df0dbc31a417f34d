"""The command itself; its subcommands have tests of their own."""

import importlib.metadata

import pytest
from typer.testing import CliRunner

from grove_megatron import __version__, cli


def test_versions_are_those_of_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = CliRunner().invoke(cli.app, ["--version"]).stdout.splitlines()
    assert lines[0] == f"grove-megatron {__version__}"
    assert lines[1].startswith(f"megatron-core {importlib.metadata.version('megatron-core')}")
    assert lines[2] == f"torch {importlib.metadata.version('torch')}"
    assert len(lines) == 3
    monkeypatch.setattr(cli, "megatron_version", lambda: None)
    assert "megatron-core not installed\n" in CliRunner().invoke(cli.app, ["--version"]).stdout
