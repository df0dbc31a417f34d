"""What a router trace knows of a model's layers: every token, so rows are counted.

A safetensors file with a tensor ``layers.N`` for each layer, N its name in a record: [T, K] of any
integer type, the routed experts of every token, -1 where it has no more. Metadata ``experts`` and
``groups`` are the model's.
"""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..checks.problem import Problem, Refusal
from .counts import Array, Evidence, of_tokens
from .model import Asked, Source

_PREFIX = "layers."
_PIECES = 32
"""Neighbours are of one sequence: pieces of a trace differ more than tokens of one."""
_NONE = -1


def of_trace(path: Path, asked: Asked) -> Source | list[Problem]:
    """The layers of a trace, or why it is none.

    A layer's tokens are looked at when they are asked for: what is wrong with them is a Refusal.
    """
    trace = ("trace", str(path))
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: one.get_shape() for name, one in slices.items()}
            dtypes = {name: str(one.get_dtype()) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        text = f"cannot be read: {error}; name a safetensors file with a tensor for each layer"
        return [Problem(*trace, text)]
    layers = [name.removeprefix(_PREFIX) for name in shapes if name.startswith(_PREFIX)]
    problems = []
    if not layers:
        problems.append(Problem(*trace, "has no tensor (layers.N); write one for each layer"))
    for name in layers:
        if len(shape := shapes[_PREFIX + name]) != 2 or shape[0] < 2 or shape[1] < 1:
            text = f"has for layer ({name}) the shape {shape}, not [tokens, topk]; write it anew"
            problems.append(Problem(*trace, text))
        if (dtype := dtypes[_PREFIX + name])[0] not in "IU":
            text = f"has for layer ({name}) values of type ({dtype}), not integers; write it anew"
            problems.append(Problem(*trace, text))
    sizes = {}
    for name, flag in (("experts", "--num-experts"), ("groups", "--grove-num-groups")):
        said, given = about.get(name), getattr(asked, name)
        if said is not None and not said.isdecimal():
            problems.append(Problem(*trace, f"has {name} ({said}), no number; write it anew"))
        elif said is None and given is None:
            text = f"does not say how many {name} its model has (None); give {flag}"
            problems.append(Problem(*trace, text))
        else:
            sizes[name] = int(said) if said is not None else int(given)
    if problems:
        return problems
    layers.sort(key=lambda name: (name.startswith("mtp"), len(name), name))

    def evidence(name: str) -> Evidence:
        with safe_open(path, "np") as file:
            chosen = file.get_tensor(_PREFIX + name)
        if text := _fault(chosen, sizes["experts"]):
            raise Refusal([Problem(*trace, f"has in layer ({name}) {text}")])
        pieces = np.array_split(chosen.astype(np.int64), min(_PIECES, len(chosen)))
        return Evidence(name, [of_tokens(piece, **sizes) for piece in pieces])

    return Source(
        f"the tokens of {path}", tuple(layers), sizes["experts"], sizes["groups"], evidence
    )


def _fault(chosen_TK: Array, experts: int) -> str:
    """What is wrong with the tokens of a layer."""
    low, high = int(chosen_TK.min()), int(chosen_TK.max())
    if low < _NONE or high >= experts:
        worst = low if low < _NONE else high
        return f"expert ({worst}), not one of 0 to {experts - 1}; use the model's own trace"
    ordered = np.sort(chosen_TK, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != _NONE)).any():
        return "a token with one expert twice; write each once"
    return ""
