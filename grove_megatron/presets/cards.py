"""The pages of ``docs/presets``: what was compared of each preset's system, and how exactly."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from ..checks.flags import flag_of
from . import measured
from .goldens import CHECKOUT, DEFAULT, OF_PRESETS, Golden, goldens
from .preset import Preset
from .table import PRESETS

FOLDER = CHECKOUT / "docs" / "presets"
Rows = Mapping[str, Mapping[str, Any]]
_MADE = "Made by `python -m grove_megatron.presets --write`; not edited by hand."
_TOP = f"""# Presets, and what they were compared with

{_MADE}

Each preset of `--grove-preset` is a released model; its card says how many parameters it has, what
Megatron's layers do not build as it was released, and what of its system was compared with numbers
that other code computed: the layers and small models of `tests/data`, in fp64, by the authors' code
or by what each card names. Sizes are those of the golden and not of the released model. The cards
tell what `grove verify` found; it is run anew by that command, and by the tests.
"""
_WHAT = {
    "max_output_error": "output, of its largest entry",
    "max_logit_error": "logits, absolute",
    "max_grad_error": "any gradient, of its largest entry",
    "max_loss_error": "any loss, relative",
    "loss_error": "loss, relative",
    "max_router_error": "routers' logits, absolute",
}


def pages(rows: Rows | None = None) -> dict[str, str]:
    """Every file by name, as it is to be."""
    rows = measured.rows() if rows is None else rows
    known = {golden.name: golden for golden in goldens()}
    found = {f"{file_of(name)}.md": _card(preset, rows, known) for name, preset in PRESETS.items()}
    return {"README.md": "\n".join([*_index(rows)]) + "\n"} | found


def stale() -> list[str]:
    """What is not as the kept results and the tables make it, a line each."""
    rows, now = measured.rows(), {golden.name: golden for golden in goldens()}
    lines = [f"{name}: not measured" for name in now.keys() - rows.keys()]
    lines += [f"{name}: measured, and no golden is called so" for name in rows.keys() - now.keys()]
    lines += [
        f"{name}: {golden.file} is not the file that was measured"
        for name, golden in now.items()
        if name in rows and rows[name]["sha256"] != measured.checksum(golden)
    ]
    made = pages(rows)
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    lines += [f"docs/presets/{name}: nothing makes it" for name in there.keys() - made.keys()]
    lines += [f"docs/presets/{n}: out of date" for n, text in made.items() if there.get(n) != text]
    return [f"{line}; run python -m grove_megatron.presets --write" for line in sorted(lines)]


def file_of(name: str) -> str:
    """A preset's name as that of a file, and of a place on a page."""
    return name.replace("++", "pp").replace(".", "_")


def _index(rows: Rows) -> Iterator[str]:
    yield _TOP
    yield "| preset | parameters | built | compared with | worst relative error |"
    yield "| --- | ---: | ---: | --- | ---: |"
    for name, preset in PRESETS.items():
        of_it = [rows[golden] for golden in OF_PRESETS[name] if golden in rows]
        worst = f"{max(map(_worst, of_it)):.2e}" if of_it else "not measured"
        yield (
            f"| [{name}]({file_of(name)}.md) | {preset.released:,} | {preset.built:,} | "
            f"{', '.join(_compared_with(preset, rows))} | {worst} |"
        )
    yield ""
    yield from _wrapped(
        "The error is the worst of output and gradients, relative to the largest entry of each "
        "tensor; of a small model (-tiny) that of its gradients, as its logits' is absolute. A "
        "golden is (nearest) where its router or experts are not quite the preset's; the card says "
        "in what."
    )
    yield "\n## All goldens\n"
    yield "| golden | passed | output | gradients | losses | compared | date |"
    yield "| --- | --- | ---: | ---: | ---: | --- | --- |"
    for golden in goldens():
        yield _row(golden, rows.get(golden.name))
    yield ""
    yield from _wrapped(
        "Errors of output and gradients are relative to the largest entry of each tensor, those of "
        "logits absolute; those of losses relative. Without a loss there is no error of one. The "
        "tolerance in fp32 is 1e-05, of a loss 1e-06."
    )


def _row(golden: Golden, row: Mapping[str, Any] | None) -> str:
    if row is None:
        return f"| {golden.name} | not measured | | | | | |"
    said = row["result"]
    output = said.get("max_output_error", said.get("max_logit_error"))
    loss = said.get("max_loss_error", said.get("loss_error"))
    cells = [
        golden.name,
        "yes" if row["passed"] else "**no**",
        f"{output:.2e}",
        f"{said['max_grad_error']:.2e}",
        "" if loss is None else f"{loss:.2e}",
        f"{said['grads_compared']} of {said['grads_in_file']} gradients",
        row["date"],
    ]
    return f"| {' | '.join(cells)} |"


def _worst(row: Mapping[str, Any]) -> float:
    said = row["result"]
    return float(max(said[name] for name in ("max_output_error", "max_grad_error") if name in said))


def _compared_with(preset: Preset, rows: Rows) -> Iterator[str]:
    for name in OF_PRESETS[preset.name]:
        # A whole model has no flags of a layer.
        row = rows.get(name, {})
        differs = "flags" in row and any(_differences(preset, row))
        yield f"{name} (nearest)" if differs else name


def _card(preset: Preset, rows: Rows, known: Mapping[str, Golden]) -> str:
    return "\n".join([*_lines(preset, rows, known)]) + "\n"


def _lines(preset: Preset, rows: Rows, known: Mapping[str, Golden]) -> Iterator[str]:
    yield f"# {preset.name}\n\n{_MADE}\n"
    yield from _wrapped(f"`--grove-preset {preset.name}`. From {preset.source}.")
    yield "\n## Parameters\n"
    yield "| | parameters |\n| --- | ---: |"
    yield f"| released | {preset.released:,} |"
    if preset.active is not None:
        yield f"| of them for one token | {preset.active:,} |"
    yield f"| built by these flags | {preset.built:,} |"
    yield "\n## Not built as it was released\n"
    if preset.differs:
        yield "| the released model has | parameters more here |\n| --- | ---: |"
        for one in preset.differs:
            yield f"| {one.what} | {f'{one.parameters:+,}' if one.parameters else ''} |"
    else:
        yield "Nothing is known to differ."
    for name in OF_PRESETS[preset.name]:
        yield from _compared(preset, known[name], rows.get(name))
    yield "\n## Flags\n\n```sh"
    lines = textwrap.wrap(
        " ".join(preset.flags()), 96, break_on_hyphens=False, break_long_words=False
    )
    yield " \\\n".join(lines)
    yield "```"


def _compared(preset: Preset, golden: Golden, row: Mapping[str, Any] | None) -> Iterator[str]:
    what = "A small model" if golden.kind == "model" else "One layer"
    yield f"\n## {what}: {golden.name}\n"
    yield from _wrapped(f"In `{golden.path}`, from {_source(golden)}.")
    if row is None:
        yield "\nNot measured."
        return
    verdict = "passed" if row["passed"] else "**failed**"
    yield f"\n```sh\n{row['command']}\n```\n"
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    yield from _wrapped(f"{row['date']}, {row['machine']}, fp32; {versions}: {verdict}.")
    yield "\n| compared | worst error |\n| --- | ---: |"
    said = row["result"]
    for name, words in _WHAT.items():
        if name in said and not (name == "max_router_error" and not said["routers_in_file"]):
            yield f"| {words} | {said[name]:.2e} |"
    if "routing_equal" in said:
        equal = "the same" if said["routing_equal"] else "**others**"
        yield f"| experts of every token | {equal} |"
    yield f"\n{said['grads_compared']} of {said['grads_in_file']} gradients, by name:\n"
    yield "```text"
    yield from row["tensors"]
    yield "```"
    if golden.kind == "layer":
        yield from _otherwise(preset, row)


# Of a MoE layer, and neither a size nor a loss, which are compared with coefficients of their own,
# nor of attention.
_OF_A_LAYER = ("moe_router", "moe_input", "moe_expert_cap", "moe_token", "moe_shared", "grove_")
_ACTIVATIONS = ("swiglu", "quick_geglu")
_SIZES = (
    *("moe_router_topk", "moe_router_dtype", "moe_router_load_balancing_type"),
    *("moe_shared_expert_intermediate_size", "moe_router_bias_update_rate", "grove_dispatch"),
    *("grove_constant_experts", "grove_heterogeneous_loss_coeff", "grove_whole_qk_norm"),
)


def _differences(preset: Preset, row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What of router and experts the golden alone has, and the preset alone."""
    here = {
        flag_of(name): "" if value is True else str(value)
        for name, value in preset.settings.items()
        if _is_of_layer(name) and value is not False
    }
    there = {flag: value for flag, value in _flags(row["flags"]) if _is_of_layer(_name(flag))}
    there |= {f"{name} (a field)": value for name, value in row["fields"].items()}
    only_there = [_said(flag, value) for flag, value in there.items() if here.get(flag) != value]
    only_here = [_said(flag, value) for flag, value in here.items() if there.get(flag) != value]
    return only_there, only_here


def _otherwise(preset: Preset, row: Mapping[str, Any]) -> Iterator[str]:
    """Where the layer that was compared is not that of the preset."""
    only_there, only_here = _differences(preset, row)
    if only_there or only_here:
        yield ""
        yield "Of the router and the experts, sizes and losses apart:\n"
        yield "| the golden alone has | the preset alone has |\n| --- | --- |"
        yield f"| {', '.join(only_there)} | {', '.join(only_here)} |"
    else:
        yield ""
        yield from _wrapped(
            "Router and experts have the preset's flags, sizes and coefficients of losses apart."
        )


def _is_of_layer(name: str) -> bool:
    return name in _ACTIVATIONS or (name.startswith(_OF_A_LAYER) and name not in _SIZES)


def _flags(words: list[str]) -> Iterator[tuple[str, str]]:
    for number, word in enumerate(words):
        if word.startswith("--"):
            values = []
            for value in words[number + 1 :]:
                if value.startswith("--"):
                    break
                values.append(value)
            yield word, " ".join(values)


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _said(flag: str, value: str) -> str:
    return f"`{flag} {value}`" if value else f"`{flag}`"


def _source(golden: Golden) -> str:
    config = json.loads((CHECKOUT / golden.path / "config.json").read_text(encoding="utf-8"))
    source = config.get("source")
    if isinstance(source, str):
        return source
    if source is None:
        model = " ".join(config.get("architectures", ()))
        return f"a model of random weights in Hugging Face's format ({model})"
    if "repo" not in source:
        return "; ".join(source.values())
    commit = f"@{source['commit'][:7]}" if "commit" in source else ""
    checked = f"; {source['also_checked_against']}" if "also_checked_against" in source else ""
    variant = "" if golden.variant == DEFAULT else f", variant `{golden.variant}`"
    return f"{source['repo']}{commit} {source['file']}: {source['classes']}{checked}{variant}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, break_on_hyphens=False, break_long_words=False)
