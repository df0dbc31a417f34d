"""What is said of invented clusters: nothing of a healthy one, everything of one that is not."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest

from grove_megatron.machines.problems import findings
from grove_megatron.machines.records import Rank, Survey

from .invented import (
    GIB,
    GPU,
    NODES,
    cluster,
    rank,
    with_card,
    with_node,
    with_pair,
    with_rank,
    with_reached,
    with_seen,
)

Fault = Callable[[Survey], Survey]
LATE = ("1",)

PROBLEMS: dict[str, tuple[Fault, str]] = {
    "another NCCL": (
        lambda s: with_rank(s, 9, same={"device": "cuda", "version of NCCL": "2.20.5"}),
        "version of NCCL (2.27.7 on ranks 0-8, 10-511; 2.20.5 on rank 9) differs between ranks; "
        "give every rank the same",
    ),
    "other data": (
        lambda s: with_node(s, 5, same=s.said["5"].same | {"--data-path: text.idx": "gone"}),
        "--data-path: text.idx (100 bytes, def on nodes 0-4, 6-63; gone on node 5) differs between "
        "nodes; give every node the same",
    ),
    "a GPU too full": (
        lambda s: with_rank(s, 17, gpu=replace(GPU, free=59 * GIB, uuid="gpu 1")),
        "free memory of the GPU of rank 17 (59.00 GiB of 80.00 GiB) is below what a rank needs "
        "(60.00 GiB, planned without a margin); end what else is on it, or see grove doctor "
        "--gpu-memory",
    ),
    "somebody else": (
        lambda s: with_card(s, 2, users=("process 77 python 512 MiB",)),
        "GPU 3 of node 2 (process 77 python 512 MiB) is used by others before the job has begun; "
        "end them, or leave the GPU out",
    ),
    "ECC errors": (
        lambda s: with_card(s, 4, uncorrected=2),
        "uncorrected ECC errors of GPU 3 of node 4 (2) is above 0 since its driver was loaded; "
        "reset the GPU, or leave the node out",
    ),
    "a clock": (
        lambda s: with_reached(s, 7, offset=-1.2),
        "clock of node 7 (-1.200 s of rank 0's, +-0.000) is further off than (1 s); set it by NTP "
        "or chrony",
    ),
    "a firewall": (
        lambda s: with_reached(s, 8, unreachable={"20": "timed out (port 40000)"}),
        "node 20 (10.0.0.20) cannot be reached from node 8: timed out (port 40000); allow "
        "connections between the nodes on all ports, as NCCL and gloo need it",
    ),
    "a hostname": (
        lambda s: with_node(s, 11, resolves="127.0.1.1"),
        "hostname of node 11 (gpu011) is 127.0.1.1 on its own node, the address that gloo would "
        "give to others; set GLOO_SOCKET_IFNAME=bond0, or take the line out of /etc/hosts",
    ),
    "a folder of its own": (
        lambda s: with_seen(s, "--save", range(12, 14), unseen=LATE, seconds=None),
        "--save (/shared/run) is not shared: within 10 s node 12 did not see what node 1 wrote "
        "(2 nodes missed some); every node would keep its own part of a checkpoint, and none could "
        "be loaded; use a folder that all nodes share",
    ),
    "a cache of its own": (
        # That one node has an order of samples does not help the others.
        lambda s: with_seen(
            s, "--data-cache-path", range(3, 4), unseen=LATE, seconds=None, filled=True
        ),
        "--data-cache-path (/shared/run) is not shared: within 10 s node 3 did not see what node 1 "
        "wrote; rank 0 alone writes the order of samples, and every rank reads it; use a folder "
        "that all nodes share",
    ),
    "little shared memory": (
        lambda s: with_node(s, 15, shared_memory=2 * GIB),
        "/dev/shm of node 15 (2.00 GiB) is below what the data loaders of 8 ranks hand over "
        "(8.00 GiB); start the container with a larger --shm-size, or use --num-workers 0",
    ),
    "few files": (
        lambda s: with_rank(with_rank(s, 21, open_files=256), 22, open_files=512),
        "open files of ranks 21-22 (256) is below 576, a socket for each of 512 ranks and 64; "
        "ulimit -n 65536",
    ),
    "one name for two": (
        lambda s: with_rank(s, 30, machine="boot of another"),
        "node 3 (ranks 24-31) is 2 machines; give every launcher a --node-rank, or every machine a "
        "hostname of its own",
    ),
    "nodes of other ranks": (
        lambda s: with_rank(
            with_rank(s, 39, node="5", machine="boot 5", says=s.said["5"]),
            *(40,),
            node="4",
            machine="boot 4",
            says=None,
        ),
        "--grove-hierarchical-dispatch (True) takes every 8 ranks in a row for a node "
        "(LOCAL_WORLD_SIZE), and node 4 has ranks 32-38, 40; number ranks node by node, or leave "
        "the flag out",
    ),
    "nodes of fewer ranks": (
        lambda s: replace(s, per_node=16),
        "--grove-hierarchical-dispatch (True) takes every 16 ranks in a row for a node "
        "(LOCAL_WORLD_SIZE), and node 0 has ranks 0-7; number ranks node by node, or leave the "
        "flag out",
    ),
    "wrong bytes between nodes": (
        lambda s: with_pair(s, "between", 0, wrong=True),
        "bytes between nodes 0 and 1 (nccl) were not those that were sent; leave one of the two "
        "out, and test its memory, cable and network card",
    ),
    "wrong bytes inside": (
        lambda s: with_pair(s, "inside", 1, wrong=True),
        "bytes between ranks 2 and 3 (nccl) were not those that were sent; leave one of the two "
        "out, and test its memory, cable and network card",
    ),
    "wrong bytes of all": (
        lambda s: with_pair(s, "crossings", 2, wrong=((16, 23),)),
        "bytes of the all-to-all from rank 16 (node 2) to rank 23 (node 2) (nccl) were not those "
        "that were sent; leave one of the two out, and test its memory, cable and network card",
    ),
}

WARNINGS: dict[str, tuple[Fault, str]] = {
    "a slow pair": (
        lambda s: with_pair(s, "between", 64, gigabytes=30.3),
        "nodes 1 and 3 (30.3 GB/s) is 0.1 of the median of 2016 pairs (303 GB/s), below 0.5 (its "
        "slowest: ranks 8, 24); look at the links of both",
    ),
    "slow ranks": (
        lambda s: with_pair(s, "inside", 3, gigabytes=35),
        "ranks 6 and 7 (35 GB/s) is 0.1 of the median of 256 pairs (350 GB/s), below 0.5; look at "
        "the links of both",
    ),
    "a slow all-to-all": (
        lambda s: with_pair(s, "crossings", 1, seconds=0.04),
        "all-to-all of ranks 8-15 (25 GB/s) is 0.25 of the median of 64 groups (100 GB/s), below "
        "0.5; look at the slow pairs",
    ),
    "heat": (
        lambda s: with_card(s, 6, slowed=("hardware thermal slowdown",)),
        "clocks of GPU 3 of node 6 (hardware thermal slowdown) are held down; look at its cooling "
        "and power",
    ),
}


def test_a_healthy_cluster_has_nothing() -> None:
    found = findings(cluster())
    assert (found.problems, found.warnings, found.notes) == ([], [], [])


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem(name: str) -> None:
    fault, line = PROBLEMS[name]
    found = findings(fault(cluster()))
    assert [*map(str, found.problems)] == [line]
    assert (found.warnings, found.notes) == ([], [])


@pytest.mark.parametrize("name", WARNINGS)
def test_a_warning(name: str) -> None:
    fault, line = WARNINGS[name]
    found = findings(fault(cluster()))
    assert [*map(str, found.warnings)] == [line]
    assert (found.problems, found.notes) == ([], [])


def test_everything_at_once() -> None:
    # These are of the nodes, and change what others say of theirs.
    apart = {"one name for two", "nodes of other ranks", "nodes of fewer ranks"}
    survey = cluster()
    expected = []
    for name, (fault, line) in {**PROBLEMS, **WARNINGS}.items():
        if name not in apart:
            survey = fault(survey)
            expected.append(line)
    found = findings(survey)
    assert sorted(map(str, [*found.problems, *found.warnings])) == sorted(expected)


@pytest.mark.parametrize(
    "fault",
    [
        # A cache that is filled everywhere is read, wherever it is.
        lambda s: with_seen(
            s, "--data-cache-path", range(NODES), unseen=LATE, seconds=None, filled=True
        ),
        lambda s: with_seen(s, "--grove-metrics-dir", range(3, 4), unseen=LATE, seconds=None),
        lambda s: with_reached(s, 7, offset=1.2, uncertainty=0.3),
        lambda s: with_pair(s, "between", 64, gigabytes=160),
        lambda s: with_node(s, 11, resolves="127.0.1.1", chosen={"GLOO_SOCKET_IFNAME": "bond0"}),
        lambda s: with_rank(s, 17, gpu=replace(GPU, free=61 * GIB, uuid="gpu 1")),
        # GPU 3 is another job's: no rank of this one has it.
        lambda s: with_rank(
            with_card(s, 2, users=("process 77",), uncorrected=2, slowed=("heat",)),
            *(19,),
            gpu=replace(GPU, uuid="gpu 2"),
        ),
        lambda s: with_seen(s, "--save", range(3, 4), error="Read-only file system", seconds=None),
    ],
)
def test_what_is_no_problem(fault: Fault) -> None:
    found = findings(fault(cluster()))
    assert (found.problems, found.warnings) == ([], [])


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            lambda s: with_seen(s, "--grove-metrics-dir", range(3, 4), unseen=LATE, seconds=None),
            "--grove-metrics-dir (/shared/run) is not shared: what is written there stays on the "
            "node of the rank that writes it",
        ),
        (
            lambda s: with_seen(
                s, "--data-cache-path", range(NODES), unseen=LATE, seconds=None, filled=True
            ),
            "--data-cache-path (/shared/run) is not shared, and holds an order of samples on every "
            "node; one that is not there yet would end the job",
        ),
        (
            lambda s: replace(s, measured=replace(s.measured, rounds=10)),
            "10 of 63 rounds of pairs of nodes were measured in the time there was, 2016 pairs; "
            "more with --seconds",
        ),
        (
            lambda s: replace(s, measured=replace(s.measured, inside_rounds=3)),
            "3 of 7 rounds of pairs of ranks of a node were measured in the time there was, 256 "
            "pairs; more with --seconds",
        ),
        (
            lambda s: with_node(s, 1, resolves="192.168.0.1"),
            "the hostname of node 1 (gpu001) is 192.168.0.1 there, and it reaches rank 0 from "
            "10.0.0.1 (bond0); GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose",
        ),
    ],
)
def test_a_note(fault: Fault, line: str) -> None:
    assert findings(fault(cluster())).notes == [line]


def test_a_part_of_a_gpu_may_be_of_any_card() -> None:
    survey = with_card(cluster(), 2, uncorrected=2)
    in_parts = with_rank(survey, 19, gpu=replace(GPU, uuid="part 1 of gpu 2"))
    assert findings(in_parts).problems == findings(survey).problems != []


def test_two_launchers_on_one_machine_are_told() -> None:
    survey = cluster()
    ranks = tuple(replace(one, machine="boot") for one in survey.ranks)
    (note,) = findings(replace(survey, ranks=ranks)).notes
    assert note.startswith("nodes 0-63 (gpu000, gpu001, ")
    assert note.endswith(") are one machine: what is measured between them crosses no network")


def test_ranks_of_one_machine_share_its_memory() -> None:
    """Two launchers with 8 ranks each, on CPUs."""
    survey = cluster()
    needs = replace(survey.needs, device="cpu", rank_bytes=100 * GIB, loader_bytes=0)
    apart = replace(survey, ranks=survey.ranks[:16], needs=needs, measured=survey.measured)
    assert findings(apart).problems == []
    together = replace(apart, ranks=tuple(replace(r, machine="boot") for r in apart.ranks))
    assert [*map(str, findings(together).problems)] == [
        "memory of nodes 0-1 (1,024.00 GiB) is below what its 16 ranks need (1,600.00 GiB, planned "
        "without a margin); use more nodes, or see grove doctor"
    ]


def test_a_rank_travels_whole() -> None:
    for number in (0, 1):
        one = rank(number)
        assert Rank.unpacked(json.loads(json.dumps(asdict(one)))) == one
