"""What ``grove bench layer`` says about operators."""

from collections.abc import Mapping

from .operators import EXPERTS, Stage, beside_experts
from .records import Value
from .report import Table

Stages = Mapping[str, Stage]
Counted = Mapping[tuple[str, str], Stages]
"""By (variant, kernel), every variant once."""


def operator_values(counted: Counted) -> list[Value]:
    """Of every stage, and of all beside the experts."""
    return [
        Value.once(variant, kernel, f"{way} operators of {name}", "operators", number)
        for (variant, kernel), stages in counted.items()
        for name, stage in _lines(stages).items()
        for way, number in (("forward", stage.forward), ("backward", stage.backward))
    ]


def operator_table(counted: Counted, ranks: int) -> list[Table]:
    """A line for every stage; no table where nothing was counted."""
    if not counted:
        return []
    lines = {variant: _lines(stages) for (variant, _), stages in counted.items()}
    return [
        Table(
            title=f"Operators of one pass on a rank of {ranks}, forward + backward",
            header=("", *lines),
            lines=[
                (name, *(f"{of[name].forward} + {of[name].backward}" for of in lines.values()))
                for name in next(iter(lines.values()))
            ],
        )
    ]


def operators_ratio(counted: Counted) -> float | None:
    """grove's over plain's, beside the experts."""
    by_variant = {variant: stages for (variant, _), stages in counted.items()}
    if not {"plain", "grove"} <= set(by_variant):
        return None
    grove, plain = (beside_experts(by_variant[name]).total for name in ("grove", "plain"))
    return grove / plain


def _lines(stages: Stages) -> dict[str, Stage]:
    """The stages in order, the experts last, below the sum of the others."""
    lines = {name: stage for name, stage in stages.items() if name != EXPERTS}
    return lines | {"beside the experts": beside_experts(stages), EXPERTS: stages[EXPERTS]}
