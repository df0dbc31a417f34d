"""Rows a token is sent as, against the number of expert-parallel ranks."""

from style import INK, SERIES, Facts, figure, save

from grove_megatron.planner.traffic import expected_distinct

EXPERTS, TOPK = 128, 8
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)


def facts() -> Facts:
    return {
        "experts": EXPERTS,
        "megatron": TOPK,
        "rows": {str(ranks): round(expected_distinct(EXPERTS, TOPK, ranks), 4) for ranks in RANKS},
    }


def draw() -> None:
    shown = facts()
    rows = list(shown["rows"].values())
    drawn, axes = figure(7.2, 3.8)
    axes.axhline(shown["megatron"], color=SERIES[1], linewidth=2)
    axes.text(1.05, shown["megatron"] + 0.15, "Megatron's all-to-all", color=SERIES[1], va="bottom")
    axes.plot(RANKS, rows, "o-", color=SERIES[0], linewidth=2)
    axes.text(2.3, rows[2] + 0.3, "this layer", color=SERIES[0])
    for ranks, value in zip(RANKS, rows, strict=True):
        axes.annotate(
            f"{value:.2f}",
            (ranks, value),
            (0, -16),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set_xscale("log", base=2)
    axes.set(
        ylim=(0, 9.2),
        xticks=RANKS,
        xticklabels=RANKS,
        xlabel="expert-parallel ranks",
        ylabel=f"rows a token, top {TOPK} of {EXPERTS} experts",
    )
    axes.grid(axis="y", color=INK, alpha=0.2)
    drawn.tight_layout()
    save(drawn, "rows", shown)
