"""Count routings, as their experts are placed and as a placement would have them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..placing.file import Assignment
from .inputs import Asked
from .recorded import Recorded, counted_rows
from .replay import Replay, replay
from .summary import Summary, summarize

_CHECKED = 2**14
"""Tokens by which a record's routing is compared with what the record counted."""


@dataclass(frozen=True)
class Found:
    """What a routing costs.

    Args:
        asked: what was counted.
        layers: by layer.
        whole: all of them together.
        counted: of a record, the rows per token that the job counted, and those of this routing at
            the job's ranks; None where there is no record, or it counted another dispatch or
            another order of the groups, or this is the routing as a placement has it.
    """

    asked: Asked
    layers: Mapping[str, Summary]
    whole: Summary
    counted: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """Of the package's JSON."""
        layers = {name: asdict(of) for name, of in self.layers.items()}
        return {"all": asdict(self.whole), "layers": layers, "counted": self.counted}


def simulate(asked: Asked, assignment: Assignment | None = None) -> Found:
    """Count every layer and step of a routing.

    Args:
        asked: the routing and its sizes.
        assignment: a placement of these sizes; None: groups are in order.
    """
    every: dict[str, list[Replay]] = {}
    for layer in asked.routing.layers:
        order: Sequence[int] | None = None
        if assignment is not None:
            order = assignment.expert_order(layer)
        steps = range(asked.steps)
        every[layer] = [replay(asked.routing, asked.sizes, layer, n, order) for n in steps]
    layers = {name: summarize(of, asked.sizes) for name, of in every.items()}
    whole = summarize([one for of in every.values() for one in of], asked.sizes)
    counted = _counted(asked) if assignment is None else None
    return Found(asked, layers, whole, counted)


def _counted(asked: Asked) -> tuple[float, float] | None:
    routing = asked.routing
    record = asked.record
    if record is None or record.run.dispatcher == "allgather" or record.placement is not None:
        return None
    assert isinstance(routing, Recorded)
    ranks = record.run.ranks
    tokens_of_rank = max(1, _CHECKED // ranks)
    sizes = replace(asked.sizes, ranks=ranks, gpus_per_node=ranks, tokens=tokens_of_rank)
    rows = tokens = 0
    drawn = routing.of_tokens(tokens_of_rank)
    for layer in routing.layers:
        one = replay(drawn, sizes, layer, 0)
        rows, tokens = rows + int(one.flat.sent_rows.sum()), tokens + int(one.tokens.sum())
    return counted_rows(record, routing.layers), rows / tokens
