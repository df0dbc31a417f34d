"""The experts of a layer in their groups, and who works for one token."""

import torch
from style import ADJUGATE, EXPERT, IDLE, Facts, box, frame, save, scheme

from grove_megatron.functional.groups import group_map, group_probs

WEIGHTS = {0: 0.5, 1: 0.2, 6: 0.3}
EXPERTS, GROUPS = 8, 4


def facts() -> Facts:
    probs_TE = torch.zeros(1, EXPERTS, dtype=torch.float64)
    for expert, weight in WEIGHTS.items():
        probs_TE[0, expert] = weight
    met = group_map(probs_TE > 0, GROUPS)[0]
    weights = group_probs(probs_TE, GROUPS)[0]
    return {
        "experts": {str(expert): weight for expert, weight in WEIGHTS.items()},
        "groups": {str(j): round(weights[j].item(), 6) for j in range(GROUPS) if met[j]},
        "experts_per_group": EXPERTS // GROUPS,
    }


def draw() -> None:
    shown = facts()
    drawn, axes = scheme(8.6, 2.75)
    size, width = shown["experts_per_group"], 0.84
    for group in range(GROUPS):
        left = 0.15 + group * 2.12
        frame(axes, left, 0.5, 1.96, 1.85, f"group {group}")
        for place in range(size):
            expert = group * size + place
            weight = shown["experts"].get(str(expert))
            x = left + 0.1 + place * (width + 0.08)
            on = weight is not None
            text = f"$E_{expert}$\n{weight:g}" if on else f"$E_{expert}$"
            box(axes, x, 1.35, width, 0.85, text, EXPERT if on else IDLE, on)
        weight = shown["groups"].get(str(group))
        on = weight is not None
        text = f"$A_{group}$   {weight:g} × scale" if on else f"$A_{group}$"
        box(axes, left + 0.1, 0.65, 1.76, 0.5, text, ADJUGATE if on else IDLE, on)
    axes.text(
        4.3,
        0.2,
        "filled: works for this token, with the weight below its name",
        ha="center",
        va="center",
    )
    save(drawn, "groups", shown)
