"""What a router trace knows of a model's layers: every token, so rows are counted."""

from pathlib import Path

import numpy as np

from ..checks.problem import Problem, Refusal
from ..report.trace import faults, open_trace
from .counts import Evidence, of_tokens
from .model import Asked, Source

_PIECES = 32
"""Neighbours are of one sequence: pieces of a trace differ more than tokens of one."""


def of_trace(path: Path, asked: Asked) -> Source | list[Problem]:
    """The layers of a trace, or why it is none.

    A layer's tokens are looked at when they are asked for: what is wrong with them is a Refusal.
    """
    problems = []
    for option, given in (("--run", asked.run), ("--since", asked.since or None)):
        if given is not None:
            text = f"is of records, and trace ({path}) has no intervals; leave it out"
            problems.append(Problem(option, given, text))
    try:
        trace = open_trace(path)
    except Refusal as refused:
        return [*problems, *refused.problems]
    for name, tokens in trace.tokens.items():
        if tokens < 2:
            text = (
                f"has for layer ({name}) ({tokens}) token, of which no half could judge what the "
                "other chose; use a longer trace"
            )
            problems.append(Problem("trace", str(path), text))
    sizes = {}
    for name, flag in (("experts", "--num-experts"), ("groups", "--grove-num-groups")):
        said, given = getattr(trace, name), getattr(asked, name)
        if said is None and given is None:
            text = f"does not say how many {name} its model has (None); give {flag}"
            problems.append(Problem("trace", str(path), text))
        else:
            sizes[name] = int(given if said is None else said)
    if problems:
        return problems

    def evidence(name: str) -> Evidence:
        chosen = trace.of(name)
        if found := [*faults(path, name, chosen, sizes["experts"])]:
            raise Refusal(found)
        pieces = np.array_split(chosen.astype(np.int64), min(_PIECES, len(chosen)))
        return Evidence([of_tokens(piece, **sizes) for piece in pieces])

    return Source(f"the tokens of {path}", trace.layers, **sizes, evidence=evidence, files=(path,))
