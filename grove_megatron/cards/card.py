"""The card of a part, made from its row, and the list of all cards."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args

from ..checks.flags import flag_of
from ..model import table
from ..parts import registry
from ..parts.page import FLAGS_HEAD, TITLES, asked, rows_of
from ..parts.part import Carried, Part, Slot
from ..parts.slots import Choices, flag_fields
from . import figures, goldens, refused, small

SECTIONS = (
    "Formula",
    "When to use it",
    "What it sees",
    "Weights",
    "Flags",
    "To try it",
    "What it needs and excludes",
    "Compared with",
    "Figures",
)

_MADE = "Made by `python -m grove_megatron.parts --write`; not edited by hand."

_LETTERS = {
    "T": "tokens",
    "E": "experts that a token can select",
    "K": "experts of a token",
    "H": "hidden size",
    "G": "groups with an adjugate each",
    "D": "groups of devices",
    "M": "groups that a token may use",
    "V": "token ids",
    "x": "the token",
    "z": "logits",
    "s": "what is selected by",
    "e": "selected experts",
    "w": "their weights",
    "p": "probabilities that losses balance",
    "b": "the expert bias",
}

DIMS = {
    "1": "1",
    "2": "2",
    "H": "H",
    "R": "E",
    "W": "8 E",
    "Y": "3 E",
    "B": "2 x constant experts",
    "C": "constant experts",
    "V": "token ids",
    "T": "K",
}
"""Letters of a model's sizes, as a card has them."""

_CARRIED: dict[Carried, str] = {
    "ids": "the ids of the tokens",
    "reward": "the losses of the tokens",
    "logits": "the router logits of the MoE layer before",
}

_SEES = {
    "nothing": "What it does to a token depends on that token alone.",
    "training": """In training the choice of a token depends on all tokens of its microbatch, those
after it in its own sequence among them, on every rank that has a part of them (tensor and context
parallelism). In evaluation it depends on the token alone. So losses of training are of choices that
a causal model cannot make when it generates; those of validation are of the choices that it makes
then, and do not change with what stands beside a sequence.""",
    "always": """In training and in evaluation the choice of a token depends on all tokens of its
microbatch, those after it in its own sequence among them, on every rank that has a part of them
(tensor and context parallelism). The output of a sequence changes with the sequences beside it and
with the micro batch size, and a validation loss is of choices that a causal model cannot make when
it generates. Generation refuses such a model.""",
}

_OF_LOSSES = """It decides nothing about a token. Training alone has losses, of the tokens of a
microbatch on all ranks that have a part of them."""
_OF_THE_BIAS = """It decides nothing about a token itself: the bias moves after a global batch, by
the counts of all its tokens, and stands still in evaluation."""
_UNSEEN: dict[Slot, str] = {
    "counts": _OF_LOSSES,
    "loss": _OF_LOSSES,
    "coefficient": _OF_LOSSES,
    "update": _OF_THE_BIAS,
    "schedule": _OF_THE_BIAS,
}

_CROWDS = {
    "rank": """Tokens that a rank has of a microbatch take places of an expert from one another, in
training and in evaluation. What is dropped of a sequence depends on the sequences beside it, on the
micro batch size and on how ranks divide the tokens: an evaluation is repeatable with the same batch
and layout alone, and generation, which has few tokens at a time, drops others than a pass over
whole sequences.""",
    "sequence": """Tokens of one sequence take places of an expert from one another, in training and
in evaluation; what is dropped does not depend on the sequences beside it. Later tokens take places
from earlier ones by a larger weight or a better choice; by position alone they do not. Generation,
which has one token of a sequence at a time, drops others than a pass over the
whole sequence.""",
}


def name_of(part: Part) -> str:
    """Of its card, without the ending."""
    return f"{part.slot}-{part.name}"


def card(part: Part, measured: dict[str, Any] | None) -> str:
    """The whole card.

    Args:
        measured: see figures.py.
    """
    bodies = (_formula, _when, _sees, _weights, _flags, _to_try, _needs, _compared)
    made = [*(list(body(part)) for body in bodies), [*figures.lines(name_of(part), measured)]]
    lines = [f"# {part.slot}: {part.name}\n", _wrapped(_MADE), "", *_top(part)]
    for title, body in zip(SECTIONS, made, strict=True):
        lines += [f"\n## {title}\n", *body]
    return "\n".join(lines) + "\n"


def index() -> str:
    """The page that lists the cards."""
    text = f"""{_MADE} A card for each part that a router can be composed of: its formula, when to
use it and at what price, what it sees of other tokens, its weights and flags, what it needs and
excludes, what it was compared with, and what was measured of it."""
    lines = ["# Parts of the router, card by card\n", _wrapped(text)]
    for slot in get_args(Slot):
        if of_slot := registry.of_slot(slot):
            lines += [f"\n## {TITLES[slot]}\n", "| part | asked for by | it is |"]
            lines += ["| --- | --- | --- |"]
            lines += [f"| {_link(p)} | {asked(p)} | {p.help}{_marks(p)} |" for p in of_slot]
    return "\n".join(lines) + "\n"


def _link(part: Part) -> str:
    return f"[{part.name}]({name_of(part)}.md)"


def _marks(part: Part) -> str:
    """What a user should not have to find out."""
    marks = {
        "with groups only": part.needs_groups,
        "training sees other tokens": part.sees == "training",
        "sees other tokens, also in evaluation": part.sees == "always",
        "tokens take places from one another": part.crowds,
    }
    return "".join(f"; {text}" for text, holds in marks.items() if holds)


def _wrapped(text: str) -> str:
    joined = " ".join(text.split())
    return textwrap.fill(joined, 100, break_long_words=False, break_on_hyphens=False)


def _top(part: Part) -> Iterator[str]:
    file = part.build.__module__.replace(".", "/") + ".py"
    groups = " It means nothing without groups (`--grove-num-groups`)." if part.needs_groups else ""
    yield _wrapped(f"{TITLES[part.slot]}. This one: {part.help}.{groups}")
    yield ""
    yield _wrapped(f"Asked for by {asked(part)}. Source: {part.source}. Code: `{file}`.")


def _formula(part: Part) -> Iterator[str]:
    yield f"```text\n{part.formula}\n```"
    alone = re.findall(r"(?<![A-Za-z0-9])[A-Za-z](?![A-Za-z])", part.formula)
    letters = {*alone, *"".join(re.findall(r"_([A-Z]+)", part.formula))}
    if found := [f"{a} {what}" for a, what in _LETTERS.items() if a in letters]:
        yield f"\n{_wrapped(', '.join(found) + '.')}"


def _when(part: Part) -> Iterator[str]:
    yield _wrapped(part.when)


def _sees(part: Part) -> Iterator[str]:
    if part.crowds:
        scope = small.parsed(part.tried).grove_capacity_scope
        other = " `--grove-capacity-scope sequence` makes it of a sequence alone."
        readable = scope == "rank" and "grove_capacity_scope" in _settings(part)
        yield _wrapped(_CROWDS[scope] + (other if readable else ""))
    else:
        yield _wrapped(_UNSEEN.get(part.slot, _SEES[part.sees]))
    carried = " and ".join(_CARRIED[one] for one in sorted(part.needs))
    more = {
        "A token may get any number of experts, or none.": part.any_number,
        "With the flags below training draws random numbers, and evaluation none; a recomputed "
        "pass draws the same.": part.draws,
        f"It reads {carried}, which travel from layer to layer beside the hidden states.": carried,
    }
    if text := " ".join(line for line, holds in more.items() if holds):
        yield f"\n{_wrapped(text)}"


def _weights(part: Part) -> Iterator[str]:
    for what, named in (("weight", part.weights), ("buffer", part.buffers)):
        for name, dims in named.items():
            shape = ", ".join(DIMS[letter] for letter in dims)
            yield f"- {what} `{part.slot}_{part.name}.{name}` [{shape}]"
    if not part.weights and not part.buffers:
        yield "None of its own."
    before, after = _parameters(""), _parameters(part.tried)
    model = small.model(part.tried)
    without = f"{before:,} without" if before != after else "as many without"
    yield ""
    yield _wrapped(
        f"With H = {model.hidden_size} and E = {model.sizes['R']} (the model of `{small.EXAMPLE}` "
        f"with the flags below) the router of a layer has {after:,} parameters, and {without}."
    )


def _parameters(flags: str) -> int:
    model = small.model(flags)
    of_router = [w for w in table.weights(model) if w.name.startswith("mlp.router.")]
    return sum(weight.numel(model.sizes) for weight in of_router if not weight.buffer)


def _flags(part: Part) -> Iterator[str]:
    slot = flag_fields().get(part.slot)
    own = [row for row in rows_of(Choices) if slot and row.startswith(f"| `{flag_of(slot)}` |")]
    own += rows_of(part.settings) if part.settings else []
    if not own:
        yield f"None of its own: {asked(part)} is Megatron's."
        return
    yield FLAGS_HEAD
    yield from own
    if free := [name for name in part.free if name in _settings(part)]:
        names = ", ".join(f"`{flag_of(name)}`" for name in free)
        yield f"\n{_wrapped(f'May change from one run of a checkpoint to the next: {names}.')}"


def _settings(part: Part) -> set[str]:
    return {field.name for field in fields(part.settings)} if part.settings else set()


def _to_try(part: Part) -> Iterator[str]:
    yield "Ten iterations of a tiny model on two CPU ranks, from a checkout:\n"
    words = textwrap.wrap(part.tried, 90, break_long_words=False, break_on_hyphens=False)
    yield "\n".join(
        ["```sh", " \\\n  ".join([f"{small.EXAMPLE} \\\n  {words[0]}", *words[1:]]), "```"]
    )


def _needs(part: Part) -> Iterator[str]:
    """As the rules say it, so that a card knows no more than they do."""
    needed, excluded = list(refused.needed(part)), list(refused.excluded(part))
    if needed:
        yield "Of the flags above, without one it is refused:\n"
        yield "| without | because |\n| --- | --- |"
        yield from _rows(needed)
    if excluded:
        yield ("\n" if needed else "") + _wrapped(
            "Beside it these are refused, each reason once; the flags are examples:"
        )
        yield "\n| beside | because |\n| --- | --- |"
        yield from _rows(excluded)
    if not needed and not excluded:
        yield _wrapped(
            "None of the flags that were tried beside it is refused, neither those of other parts "
            "nor Megatron's own that select, weigh, balance, drop or overlap."
        )


def _rows(every: list[refused.Refused]) -> Iterator[str]:
    """One for all that are refused in the same words but for their own name and value."""
    together: dict[tuple[str, ...], list[refused.Refused]] = {}
    for one in every:
        together.setdefault(tuple(problem.text for problem in one.why), []).append(one)
    for same in together.values():
        flags = ", ".join(f"`{one.flags}`" for one in same)
        why = "; ".join(str(problem) for problem in same[0].why)
        yield f"| {flags} | {why.replace('|', ' ')} |"


def _compared(part: Part) -> Iterator[str]:
    yield _wrapped(
        "Tests compare it with the same in a few slow lines, which are in the file of the part: "
        "in fp64, with every gradient there is."
    )
    found = list(goldens.of_part(part))
    if not found:
        yield "\nNo folder of `grove verify --layer` has it."
        return
    yield "\nLayers with it, against numbers of their authors' code or of independent lines:\n"
    yield "```sh"
    for name, variant in found:
        more = "" if variant == goldens.DEFAULT else f" --variant {variant}"
        yield f"grove verify --layer {goldens.FOLDER}/{name}{more}"
    yield "```"
