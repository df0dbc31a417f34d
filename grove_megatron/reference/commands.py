"""The page of all ``grove`` commands, made from typer's."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from ..cli import app
from .flags import MADE

_TOP = f"""# Every command

{MADE}

`grove COMMAND --help` says the same. In a checkout the command is `.venv/bin/grove`; under torchrun
it is `-m grove_megatron`, as in `torchrun --nproc-per-node 2 -m grove_megatron verify`."""


def page() -> str:
    """The whole page."""
    root: Any = typer.main.get_command(app)
    return "\n".join([_TOP, *_group(root, "grove")]) + "\n"


def _group(group: Any, name: str) -> Iterator[str]:
    for called, command in sorted(group.commands.items()):
        whole = f"{name} {called}"
        if hasattr(command, "commands"):
            yield f"\n## {whole}\n"
            yield from _prose(command.help or "")
            yield from _group(command, whole)
        else:
            yield from _command(command, whole)


def _command(command: Any, name: str) -> Iterator[str]:
    yield f"\n{'#' * (name.count(' ') + 1)} {name}\n"
    yield from _prose(command.help or "")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = " ".join([name, *(_placed(one) for one in arguments), "[OPTIONS]"])
    rest = " [MEGATRON'S FLAGS]" if command.context_settings.get("allow_extra_args") else ""
    yield f"\n```text\n{words}{rest}\n```"
    hints = get_type_hints(command.callback)
    rows = [_row(param, hints) for param in command.params]
    if rows:
        yield "\n| option | default | meaning |\n| --- | --- | --- |"
        yield from rows


def _placed(argument: Any) -> str:
    called = str(argument.name).upper() + (" ..." if argument.nargs == -1 else "")
    return called if argument.required else f"[{called}]"


def _row(param: Any, hints: dict[str, Any]) -> str:
    if param.param_type_name == "argument":
        names = f"`{_placed(param)}`"
    else:
        names = ", ".join(f"`{one}`" for one in (*param.opts, *param.secondary_opts))
        names += "" if param.is_flag else f" {_kind(param, hints)}"
    default = param.default
    empty = default in (None, "", False, (), []) or callable(default)
    shown = "" if empty else f"`{getattr(default, 'value', default)}`"
    needed = "needed" if param.required else shown
    text = " ".join((getattr(param, "help", None) or "").split()).replace("|", "\\|")
    return f"| {names} | {needed} | {text} |"


_KINDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


def _kind(param: Any, hints: dict[str, Any]) -> str:
    """Of the function's annotation, which every version of typer keeps."""
    hint = hints.get(param.name)
    several = " (several times)" if param.multiple or param.nargs == -1 else ""
    while inner := [one for one in get_args(hint) if one is not type(None)]:
        hint = inner[0]
    return f"{_KINDS.get(hint, 'TEXT')}{several}"


def _prose(text: str) -> Iterator[str]:
    paragraphs = text.replace("\b", "").split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        if number:
            yield ""
        yield from textwrap.wrap(" ".join(paragraph.split()), 100, break_on_hyphens=False)
