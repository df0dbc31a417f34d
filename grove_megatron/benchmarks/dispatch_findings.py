"""What ``grove bench dispatch`` says about its measurements."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from .harness import Samples, ratio
from .records import Value
from .report import Findings, Table, spread
from .shape import Settings


@dataclass(frozen=True)
class Traffic:
    """Of all ranks together, in one forward and backward pass.

    Attributes:
        hops: rows a token, sent in each of the four crossings of a hop (the most, should they
            differ), rows to the own rank included. One hop to the ranks; or one to the nodes, then
            one inside them; none where one rank keeps everything.
        leaving_rows_per_token: those of one crossing that go to another node; None where nodes are
            not told apart.
        sent_bytes, metadata_bytes: everything sent, and what of it is no hidden state.
    """

    hops: tuple[float, ...]
    leaving_rows_per_token: float | None
    sent_bytes: float
    metadata_bytes: float

    @property
    def rows_per_token(self) -> float:
        """Rows that come to the experts' ranks."""
        return self.hops[-1] if self.hops else 0.0

    @property
    def node_rows_per_token(self) -> float | None:
        """Rows that come to nodes, the own one included; None without a hop to nodes."""
        return self.hops[0] if len(self.hops) > 1 else None

    @property
    def metadata_share(self) -> float:
        return self.metadata_bytes / self.sent_bytes if self.sent_bytes else 0.0


def findings(
    settings: Settings, samples: Mapping[str, Samples], traffic: Mapping[str, Traffic]
) -> Findings:
    """Rows, table and summary, for variants by name."""
    values, lines = [], []
    for name, sent in traffic.items():
        of_variant = _values(settings, name, samples[name], sent)
        values += of_variant
        rows = " + ".join(f"{hop:.2f}" for hop in sent.hops) or "0.00"
        leaving = sent.leaving_rows_per_token
        lines.append(
            (
                name,
                spread(of_variant[0]),
                f"{ratio(samples[name], samples['stock']):.3f}",
                rows,
                *([] if leaving is None else [f"{leaving:.2f}"]),
                f"{sent.sent_bytes / settings.ranks / 1e6:.1f}",
                f"{sent.metadata_share:.2%}",
            )
        )
    nodes = ("rows leaving",) if settings.ranks_per_node else ()
    table = Table(
        title=f"Dispatch and combine, forward and backward: {_words(settings)}",
        header=(
            *("", "ms p50 (p20-p80)", "of stock", "rows a token"),
            *nodes,
            *("MB a rank", "metadata"),
        ),
        lines=lines,
    )
    return Findings(
        values=values,
        summary=_summary(samples, traffic),
        tables=[table],
        notes=_notes(settings),
    )


def _values(settings: Settings, name: str, samples: Samples, sent: Traffic) -> list[Value]:
    once = partial(Value.once, name, "")
    values = [
        Value.milliseconds(name, "", samples),
        once("rows_per_token", "rows", sent.rows_per_token),
        once("sent_bytes", "bytes a rank", sent.sent_bytes / settings.ranks),
        once("metadata_share", "of bytes", sent.metadata_share),
    ]
    if sent.node_rows_per_token is not None:
        values.append(once("node_rows_per_token", "rows", sent.node_rows_per_token))
    if sent.leaving_rows_per_token is not None:
        values.append(once("leaving_rows_per_token", "rows", sent.leaving_rows_per_token))
    return values


def _summary(
    samples: Mapping[str, Samples], traffic: Mapping[str, Traffic]
) -> dict[str, float | None]:
    stock, ours, nodes = traffic["stock"], traffic["grove"], traffic.get("hierarchical")
    sends = stock.sent_bytes > 0
    return {
        "ratio_vs_plain": ratio(samples["grove"], samples["stock"]),
        "rows_per_token": ours.rows_per_token,
        "stock_rows_per_token": stock.rows_per_token,
        "rows_ratio": ours.rows_per_token / stock.rows_per_token if sends else None,
        "bytes_ratio": ours.sent_bytes / stock.sent_bytes if sends else None,
        "metadata_share": ours.metadata_share if sends else None,
        "leaving_rows_per_token": ours.leaving_rows_per_token,
        "node_rows_per_token": nodes.node_rows_per_token if nodes else None,
        "inside_rows_per_token": nodes.rows_per_token if nodes else None,
        "hierarchical_leaving_rows_per_token": nodes.leaving_rows_per_token if nodes else None,
        "hierarchical_ratio_vs_plain": (
            ratio(samples["hierarchical"], samples["stock"]) if nodes else None
        ),
        "hierarchical_ratio_vs_grove": (
            ratio(samples["hierarchical"], samples["grove"]) if nodes else None
        ),
    }


def _notes(settings: Settings) -> list[str]:
    notes = ["Rows to the own rank are counted; MB is everything sent in the four crossings."]
    if settings.ranks_per_node:
        notes += [
            "hierarchical: rows to the nodes + rows inside them. Leaving: rows to other nodes.",
            "Nodes are simulated where all ranks share one machine: the network costs nothing.",
        ]
    return notes


def _words(settings: Settings) -> str:
    s = settings.shape
    nodes = f" on nodes of {settings.ranks_per_node}" if settings.ranks_per_node else ""
    return (
        f"{settings.ranks} ranks{nodes}, {s.tokens} tokens a rank, hidden {s.hidden} {s.dtype}, "
        f"{s.experts} experts in {s.groups} groups, top-{s.topk}"
    )
