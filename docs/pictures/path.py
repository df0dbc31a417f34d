"""One token's way through the ranks: a plan of two ranks, as the dispatcher makes it."""

import torch
from groups import EXPERTS, GROUPS, WEIGHTS
from style import ADJUGATE, EXPERT, ROW, Facts, arrow, box, frame, save, scheme

from grove_megatron.functional.dispatch_plan import (
    count_work,
    plan_send,
    receive_probs,
    send_values,
)
from grove_megatron.functional.expand_plan import plan_expand

RANKS = 2


def facts() -> Facts:
    """The rows and the pairs of the token, and what each rank makes of them."""
    probs_TE = torch.zeros(1, EXPERTS)
    for expert, weight in WEIGHTS.items():
        probs_TE[0, expert] = weight
    map_TE = probs_TE > 0
    work_RC = count_work(map_TE, RANKS, GROUPS)
    rows_R, local, groups = work_RC[:, 0], EXPERTS // RANKS, GROUPS // RANKS
    pairs_R = work_RC[:, 1 : 1 + local].sum(1)
    plan = plan_send(map_TE, RANKS, int(rows_R.sum()), int(pairs_R.sum()))
    values_P = send_values(probs_TE, plan).split(pairs_R.tolist())
    codes_P = plan.code_P.split(pairs_R.tolist())
    ranks = []
    for rank in range(RANKS):
        rows = int(rows_R[rank])
        packed_VL = receive_probs(
            values_P[rank],
            codes_P[rank],
            rows_R[rank : rank + 1],
            pairs_R[rank : rank + 1],
            rows,
            local,
        )
        there = plan_expand(packed_VL, work_RC[rank, 1 : 1 + local], work_RC[rank, 1 + local :])
        ranks.append(
            {
                "rows": rows,
                "experts": [rank * local + p % local for p in there.position_N.tolist()],
                "adjugates": [rank * groups + p % groups for p in there.owner_position_M.tolist()],
            }
        )
    return {"rows": int(rows_R.sum()), "pairs": int(pairs_R.sum()), "ranks": ranks}


def draw() -> None:
    shown = facts()
    drawn, axes = scheme(8.6, 4.1)
    box(axes, 0.15, 1.6, 0.95, 0.8, "token\n$x$", ROW, True)
    box(axes, 7.5, 1.6, 0.95, 0.8, "sum\n$y$", ROW, True)
    for rank, there in enumerate(shown["ranks"]):
        y = 2.2 if rank == 0 else 0.15
        middle = y + 0.8
        frame(axes, 2.55, y, 3.6, 1.6, f"rank {rank}")
        records = len(there["experts"])
        arrow(axes, (1.1, 2.0), (2.55, middle), ROW)
        says = f"{there['rows']} row\n{records} record{'s' if records > 1 else ''}"
        axes.text(1.65, middle + (0.1 if rank == 0 else -0.1), says, ha="center", va="center")
        for n, expert in enumerate(there["experts"]):
            box(axes, 2.75 + n * 1.15, y + 0.9, 1.0, 0.5, f"$E_{expert}$", EXPERT, True)
        for n, adjugate in enumerate(there["adjugates"]):
            width = 1.0 + 1.15 * (len(there["experts"]) - 1)
            box(axes, 2.75 + n * 1.15, y + 0.2, width, 0.5, f"$A_{adjugate}$", ADJUGATE, True)
        axes.text(5.6, middle, "sum", ha="center", va="center")
        arrow(axes, (6.15, middle), (7.5, 2.0), ROW)
        axes.text(7.0, middle + (0.1 if rank == 0 else -0.1), "1 row", ha="center", va="center")
    save(drawn, "path", shown)
