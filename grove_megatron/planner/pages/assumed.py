"""What a plan goes by: every number of a cluster, and where it is from."""

from dataclasses import dataclass

from ..speed.cluster import GIB, Cluster, Link


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """One number.

    Attributes:
        name: as the file of a machine has it, or a word.
        value: in the plan, with its unit; empty where it is in none.
        source: where it was published; empty where the file says nothing.
    """

    name: str
    value: str
    source: str = ""


def of_cluster(cluster: Cluster) -> list[Assumed]:
    """Its numbers, and what else the machine's file has a source of."""
    machine = cluster.machine
    forward, backward = machine.attention
    known = {
        "nodes": f"{cluster.nodes:,} of {cluster.per_node} {machine.name}",
        "memory_gib": f"{_short(cluster.memory / GIB)} GiB",
        **{f"{kind}_tflops": f"{_short(rate / 1e12)}" for kind, rate in machine.peak.items()},
        "bf16_matmul_tflops": f"{_short(machine.achieved / 1e12)} that large products reach, "
        f"{_short(machine.grouped / 1e12)} grouped ones",
        "attention": f"{_short(forward / 1e12)} TFLOP/s forward, {_short(backward / 1e12)} "
        "backward, all pairs counted",
        "hbm_tb_s": f"{_short(machine.bandwidth / 1e12)} TB/s that kernels reach",
        "scale_up_gpus": f"{cluster.domain}",
        "scale_up_gb_s": f"{_short(machine.near.rate / 1e9)} GB/s one way",
        "scale_up_measured_gb_s": _reached(machine.near),
        "scale_out_gb_s": f"{_short(machine.far.rate / 1e9)} GB/s one way",
        "scale_out_measured_gb_s": _reached(machine.far),
        "slack": f"a step takes {_short(cluster.slack)} times the sum of its parts",
    }
    if cluster.price is not None:
        known["price"] = f"{_short(cluster.price)} for a GPU and hour"
    names = dict.fromkeys([*known, *machine.sources])
    return [
        Assumed(name=name, value=known.get(name, ""), source=machine.sources.get(name, ""))
        for name in names
    ]


def _reached(link: Link) -> str:
    shares = {name: share for name, share in link.shares.items() if name != "default"}
    others = link.rate * link.shares.get("default", 1.0)
    rates = [f"{name} {_short(link.rate * share / 1e9)}" for name, share in shares.items()]
    last = f"{'others ' if rates else ''}{_short(others / 1e9)}"
    return f"GB/s that collectives reach: {', '.join([*rates, last])}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1e4 else f"{number:.4g}"
