"""Where dispatch in two hops pays: time of a dispatch against how much faster a node is inside.

Of one token, under uniform routing, in units of the time that a row takes between nodes. Flat: rows
to other nodes and rows inside the node at the same time. Two hops: to every node once, then on to
the ranks inside, one after the other. A hop inside takes a row of each rank that needs the token,
but for the rank it came to.
"""

from style import INK, SERIES, Facts, figure, save

from grove_megatron.planner.traffic import expected_distinct

EXPERTS, TOPK, PER_NODE = 128, 8, 8
NODES = (2, 4, 8)
RATIOS = [1 + n / 4 for n in range(61)]


def times(nodes: int, ratio: float) -> tuple[float, float]:
    """Of flat and of two hops, with ``ratio`` times the bandwidth inside a node."""
    ranks = expected_distinct(EXPERTS, TOPK, nodes * PER_NODE)
    outside = 1 - 1 / nodes
    flat_outside, flat_inside = ranks * outside, ranks * (PER_NODE - 1) / (nodes * PER_NODE)
    across = expected_distinct(EXPERTS, TOPK, nodes) * outside
    onward = ranks * (1 - 1 / PER_NODE)
    return max(flat_outside, flat_inside / ratio), across + onward / ratio


def facts() -> Facts:
    """Two hops' time as a part of flat's, by nodes and ratio; and where it is 1."""
    parts, even = {}, {}
    for nodes in NODES:
        pairs = [times(nodes, ratio) for ratio in RATIOS]
        parts[str(nodes)] = [round(hops / flat, 4) for flat, hops in pairs]
        better = (r for r, part in zip(RATIOS, parts[str(nodes)], strict=True) if part < 1)
        even[str(nodes)] = next(better, None)
    return {"per_node": PER_NODE, "part": parts, "pays_from": even}


def draw() -> None:
    shown = facts()
    drawn, axes = figure(7.2, 3.8)
    axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(RATIOS[-1], 1.03, "flat", ha="right", va="bottom")
    for colour, (nodes, parts) in zip(SERIES, shown["part"].items(), strict=False):
        axes.plot(RATIOS, parts, color=colour, linewidth=2)
        axes.annotate(
            f"{nodes} nodes",
            (RATIOS[-1], parts[-1]),
            (4, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    axes.set(
        xlim=(1, RATIOS[-1]),
        ylim=(0, 2.6),
        xlabel="bandwidth inside a node / between nodes",
        ylabel="time of two hops / of flat",
    )
    axes.grid(color=INK, alpha=0.2)
    drawn.tight_layout()
    save(drawn, "nodes", shown)
