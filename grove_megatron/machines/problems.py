"""From what the ranks have said and measured to what is wrong with it: no rank is asked here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ..checks.problem import Problem
from ..failure.message import ranks_named
from .records import Card, Node, Pair, Seen, Survey

CLOCK_SECONDS = 1.0
"""Clocks further apart are refused: logs and the times of files no longer have one order."""
SLOW = 0.5
"""A pair with less than this of the median is slow."""
FILES = 64
"""Files that a rank has open beside a socket for every other rank."""
NCCL_SHARED_MEMORY = 2**30
"""What NVIDIA's containers are to be started with in /dev/shm."""
_MIB, _GIB = 2**20, 2**30


@dataclass(frozen=True)
class Findings:
    """What is wrong, what may be, and what should be known; all in one order on every run.

    Attributes:
        problems: why the job would fail, or not do what it says.
        warnings: slow, and it would run; problems with ``--strict``.
        notes: one line each.
    """

    problems: list[Problem]
    warnings: list[Problem]
    notes: list[str]


def findings(survey: Survey) -> Findings:
    """Everything that a survey tells."""
    problems = [one for look in _PROBLEMS for one in look(survey)]
    warnings = [one for look in _WARNINGS for one in look(survey)]
    return Findings(problems, warnings, [note for look in _NOTES for note in look(survey)])


def _same(survey: Survey) -> Iterator[Problem]:
    """What every rank, or every node, has to have alike."""
    of_ranks = {rank.rank: rank.same for rank in survey.ranks}
    of_nodes = {node: says.same for node, says in survey.said.items()}
    for name, values in _differing(of_ranks, ranks_named):
        yield Problem(name, values, "differs between ranks; give every rank the same")
    for name, values in _differing(of_nodes, _nodes_named):
        yield Problem(name, values, "differs between nodes; give every node the same")


def _differing[K](
    same: Mapping[K, Mapping[str, str]], named: Callable[[Sequence[K]], str]
) -> Iterator[tuple[str, str]]:
    """Names of what is not alike, and who has what."""
    for name in dict.fromkeys(name for one in same.values() for name in one):
        values = {key: one.get(name, "absent") for key, one in same.items()}
        if len({*values.values()}) > 1:
            yield name, _grouped(values, named)


def _grouped[K](values: Mapping[K, str], named: Callable[[Sequence[K]], str]) -> str:
    """``a on ranks 0-3; b on rank 4``."""
    owners: dict[str, list[K]] = {}
    for key, value in values.items():
        owners.setdefault(value, []).append(key)
    return "; ".join(f"{value} on {named(keys)}" for value, keys in owners.items())


def _nodes_named(nodes: Sequence[str]) -> str:
    """``node 3``, or ``nodes 1-3, 5``; hosts as they are."""
    if all(node.isdecimal() for node in nodes):
        return ranks_named([*map(int, nodes)]).replace("rank", "node", 1)
    return f"node{'s' if len(nodes) > 1 else ''} {', '.join(nodes)}"


def _gpus(survey: Survey) -> Iterator[Problem]:
    if survey.needs.device != "cuda":
        return
    needed = survey.needs.rank_bytes
    for rank in survey.ranks:
        if rank.gpu is not None and needed is not None and rank.gpu.free < needed:
            yield Problem(
                f"free memory of the GPU of rank {rank.rank}",
                f"{_size(rank.gpu.free)} of {_size(rank.gpu.total)}",
                f"is below what a rank needs ({_size(needed)}, planned without a margin); end what "
                "else is on it, or see grove doctor --gpu-memory",
            )
    for node, card in _cards(survey):
        if card.users:
            text = "is used by others before the job has begun; end them, or leave the GPU out"
            yield Problem(f"GPU {card.index} of node {node}", ", ".join(card.users), text)
        if card.uncorrected:
            yield Problem(
                f"uncorrected ECC errors of GPU {card.index} of node {node}",
                card.uncorrected,
                "is above 0 since its driver was loaded; reset the GPU, or leave the node out",
            )


def _cards(survey: Survey) -> Iterator[tuple[str, Card]]:
    """GPUs that ranks have, by node: others of a shared node are no matter of the job."""
    for node, says in survey.said.items():
        taken = {rank.gpu.uuid for rank in survey.nodes[node] if rank.gpu is not None}
        # Parts of a GPU (MIG) have names of their own: any card may be theirs.
        known = taken <= {card.uuid for card in says.cards}
        yield from ((node, card) for card in says.cards if card.uuid in taken or not known)


def _clocks(survey: Survey) -> Iterator[Problem]:
    for one in survey.reached:
        if one.offset is not None and abs(one.offset) - one.uncertainty > CLOCK_SECONDS:
            yield Problem(
                f"clock of node {one.node}",
                f"{one.offset:+.3f} s of rank 0's, +-{one.uncertainty:.3f}",
                f"is further off than ({CLOCK_SECONDS:g} s); set it by NTP or chrony",
            )


def _connections(survey: Survey) -> Iterator[Problem]:
    for one in survey.reached:
        for node, why in one.unreachable.items():
            yield Problem(
                f"node {node}",
                survey.said[node].address,
                f"cannot be reached from node {one.node}: {why}; allow connections between the "
                "nodes on all ports, as NCCL and gloo need it",
            )
    machines = {rank.machine for rank in survey.ranks}
    for node, says in survey.said.items():
        if (
            len(machines) > 1
            and _is_local(says.resolves)
            and "GLOO_SOCKET_IFNAME" not in (says.chosen)
        ):
            yield Problem(
                f"hostname of node {node}",
                says.hostname,
                f"is {says.resolves} on its own node, the address that gloo would give to others; "
                f"set GLOO_SOCKET_IFNAME{_as_interface(says)}, or take the line out of /etc/hosts",
            )


def _is_local(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _as_interface(says: Node) -> str:
    return f"={says.interface}" if says.interface and says.interface != "lo" else ""


SHARED = {
    "--save": "every node would keep its own part of a checkpoint, and none could be loaded",
    "--non-persistent-global-ckpt-dir": "every node would keep its own part of a checkpoint, and "
    "none could be loaded",
    "--data-cache-path": "rank 0 alone writes the order of samples, and every rank reads it",
    "--data-path": "rank 0 alone writes the order of samples beside the data, and every rank reads "
    "it",
}
"""What a folder that only one node sees does to a job."""


def _folders(survey: Survey) -> Iterator[Problem]:
    for flag, looks in _of_folders(survey).items():
        unseen = {look.node: look.unseen for look in looks if look.unseen}
        if flag not in SHARED or not unseen or all(look.filled for look in looks):
            continue
        by, of = next(iter(unseen.items()))
        where = next(look.folder for look in looks if look.node == by)
        others = f" ({len(unseen)} nodes missed some)" if len(unseen) > 1 else ""
        fix = "use a folder that all nodes share"
        if flag == "--data-path":
            fix = "give --data-cache-path, a folder that all nodes share"
        yield Problem(
            flag,
            where,
            f"is not shared: within {survey.bound:g} s node {by} did not see what "
            f"{_nodes_named(of)} wrote{others}; {SHARED[flag]}; {fix}",
        )


def _of_folders(survey: Survey) -> dict[str, list[Seen]]:
    found: dict[str, list[Seen]] = {}
    for look in survey.seen:
        if not look.error:
            found.setdefault(look.flag, []).append(look)
    return found


def _memory(survey: Survey) -> Iterator[Problem]:
    needs, machines = survey.needs, _machines(survey)
    for machine, nodes in machines.items():
        ranks = [rank for rank in survey.ranks if rank.machine == machine]
        says = survey.said[nodes[0]]
        if needs.device == "cpu" and needs.rank_bytes is not None:
            needed = needs.rank_bytes * len(ranks)
            if needed > says.memory:
                yield Problem(
                    f"memory of {_nodes_named(nodes)}",
                    _size(says.memory),
                    f"is below what its {len(ranks)} ranks need ({_size(needed)}, planned without "
                    "a margin); use more nodes, or see grove doctor",
                )
        loaders = needs.loader_bytes * len(ranks)
        if says.shared_memory is not None and loaders > says.shared_memory:
            yield Problem(
                f"/dev/shm of {_nodes_named(nodes)}",
                _size(says.shared_memory),
                f"is below what the data loaders of {len(ranks)} ranks hand over "
                f"({_size(loaders)}); start the container with a larger --shm-size, or use "
                "--num-workers 0",
            )


def _machines(survey: Survey) -> dict[str, list[str]]:
    """The nodes of every machine; one launcher is a node."""
    found: dict[str, list[str]] = {}
    for node, ranks in survey.nodes.items():
        found.setdefault(ranks[0].machine, []).append(node)
    return found


def _open_files(survey: Survey) -> Iterator[Problem]:
    needed = len(survey.ranks) + FILES
    few = [rank for rank in survey.ranks if rank.open_files < needed]
    if few:
        fewest = min(rank.open_files for rank in few)
        yield Problem(
            f"open files of {ranks_named([rank.rank for rank in few])}",
            fewest,
            f"is below {needed}, a socket for each of {len(survey.ranks)} ranks and {FILES}; "
            "ulimit -n 65536",
        )


def _nodes_split(survey: Survey) -> Iterator[Problem]:
    """Two machines that go by one name, and a hierarchical dispatch whose nodes are others."""
    for node, ranks in survey.nodes.items():
        machines = {rank.machine: rank.rank for rank in ranks}
        if len(machines) > 1:
            yield Problem(
                f"node {node}",
                ranks_named([rank.rank for rank in ranks]),
                f"is {len(machines)} machines; give every launcher a --node-rank, or every machine "
                "a hostname of its own",
            )
    per_node = survey.per_node
    if not survey.needs.hierarchical or per_node is None:
        return
    taken = {rank.rank: rank.rank // per_node for rank in survey.ranks}
    for node, ranks in survey.nodes.items():
        if len(ranks) != per_node or len({taken[rank.rank] for rank in ranks}) > 1:
            yield Problem(
                "--grove-hierarchical-dispatch",
                True,
                f"takes every {per_node} ranks in a row for a node (LOCAL_WORLD_SIZE), and node "
                f"{node} has {ranks_named([rank.rank for rank in ranks])}; number ranks node by "
                "node, or leave the flag out",
            )
            return


def _wrong_bytes(survey: Survey) -> Iterator[Problem]:
    measured = survey.measured
    fix = "leave one of the two out, and test its memory, cable and network card"
    wrong = "were not those that were sent"
    for kind, pairs in (("nodes", measured.between), ("ranks", measured.inside)):
        for pair in pairs:
            if pair.wrong:
                said = f"bytes between {kind} {pair.names}"
                yield Problem(said, measured.backend, f"{wrong}; {fix}")
    node_of = {rank.rank: rank.node for rank in survey.ranks}
    for crossing in measured.crossings:
        for source, target in crossing.wrong:
            yield Problem(
                f"bytes of the all-to-all from rank {source} (node {node_of[source]}) to rank "
                f"{target} (node {node_of[target]})",
                measured.backend,
                f"{wrong}; {fix}",
            )


def _slow_pairs(survey: Survey) -> Iterator[Problem]:
    for kind, pairs in (("nodes", survey.measured.between), ("ranks", survey.measured.inside)):
        if len(pairs) < 2:
            continue
        middle = median(pair.gigabytes for pair in pairs)
        for pair in slow(pairs):
            rail = "" if kind == "ranks" else f" (its slowest: {ranks_named(pair.ranks)})"
            yield Problem(
                f"{kind} {pair.names}",
                f"{pair.gigabytes:.3g} GB/s",
                f"is {pair.gigabytes / middle:.2g} of the median of {len(pairs)} pairs "
                f"({middle:.3g} GB/s), below {SLOW:g}{rail}; look at the links of both",
            )


def slow(pairs: Sequence[Pair]) -> list[Pair]:
    """Those far below the median, the slowest first."""
    middle = median(pair.gigabytes for pair in pairs)
    below = [pair for pair in pairs if pair.gigabytes < SLOW * middle]
    return sorted(below, key=lambda pair: pair.gigabytes)


def _slow_crossings(survey: Survey) -> Iterator[Problem]:
    crossings = survey.measured.crossings
    if len(crossings) < 2:
        return
    middle = median(one.gigabytes for one in crossings)
    for one in crossings:
        if one.gigabytes < SLOW * middle:
            yield Problem(
                f"all-to-all of {ranks_named(one.ranks)}",
                f"{one.gigabytes:.3g} GB/s",
                f"is {one.gigabytes / middle:.2g} of the median of {len(crossings)} groups "
                f"({middle:.3g} GB/s), below {SLOW:g}; look at the slow pairs",
            )


def _slowed_cards(survey: Survey) -> Iterator[Problem]:
    for node, card in _cards(survey):
        if card.slowed:
            yield Problem(
                f"clocks of GPU {card.index} of node {node}",
                ", ".join(card.slowed),
                "are held down; look at its cooling and power",
            )


def _notes_of_nodes(survey: Survey) -> Iterator[str]:
    for nodes in _machines(survey).values():
        hosts = dict.fromkeys(survey.said[node].hostname for node in nodes)
        if len(nodes) > 1:
            yield (
                f"{_nodes_named(nodes)} ({', '.join(hosts)}) are one machine: what is measured "
                "between them crosses no network"
            )
    for node, says in survey.said.items():
        there = not any(map(_is_local, (says.resolves or "127.", says.address)))
        if there and says.resolves != says.address and not says.chosen:
            yield (
                f"the hostname of node {node} ({says.hostname}) is {says.resolves} there, and it "
                f"reaches rank 0 from {says.address}{f' ({says.interface})' * bool(says.interface)}"
                "; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose"
            )
        small = says.shared_memory is not None and says.shared_memory < NCCL_SHARED_MEMORY
        if survey.needs.device == "cuda" and small:
            yield (
                f"/dev/shm of node {node} has {_size(says.shared_memory or 0)} free, and NCCL "
                "uses it between the GPUs of a node; --shm-size=1g or more"
            )


def _notes_of_folders(survey: Survey) -> Iterator[str]:
    for flag, looks in _of_folders(survey).items():
        unseen = [look for look in looks if look.unseen]
        if unseen and flag not in SHARED:
            yield (
                f"{flag} ({unseen[0].folder}) is not shared: what is written there stays on the "
                "node of the rank that writes it"
            )
        elif unseen and all(look.filled for look in looks):
            yield (
                f"{flag} ({unseen[0].folder}) is not shared, and holds an order of samples on "
                "every node; one that is not there yet would end the job"
            )


def _notes_of_measures(survey: Survey) -> Iterator[str]:
    measured = survey.measured
    for kind, done, wanted, pairs in (
        ("nodes", measured.rounds, measured.all_rounds, measured.between),
        ("ranks of a node", measured.inside_rounds, measured.all_inside_rounds, measured.inside),
    ):
        if done < wanted:
            yield (
                f"{done} of {wanted} rounds of pairs of {kind} were measured in the time there "
                f"was, {len(pairs)} pairs; more with --seconds"
            )


_PROBLEMS = (
    *(_nodes_split, _same, _gpus, _clocks, _connections, _folders, _memory, _open_files),
    _wrong_bytes,
)
_WARNINGS = (_slow_pairs, _slow_crossings, _slowed_cards)
_NOTES = (_notes_of_nodes, _notes_of_folders, _notes_of_measures)


def _size(count: int) -> str:
    return f"{count / _GIB:,.2f} GiB" if count >= _GIB else f"{count / _MIB:,.1f} MiB"
