"""A rank that fails ends the job: every process, within seconds, with one message that says why."""

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grove_megatron.training.lock_beat import LOCK
from tests.ranks import Job, Ranks

from .failing_job import FAILED_AT, FOLLOW_SECONDS, SAID
from .flags import MODEL
from .launching import launch, processes_that_name, torchrun, two_nodes

LONG = pytest.mark.long
TRAIN = "tests.integration.recorded_run:train"
FAILING = "tests.integration.failing_job:train"
EP2 = ["--expert-model-parallel-size", "2"]
EP4 = ["--expert-model-parallel-size", "4"]
ENDLESS = [*MODEL, *EP2, "--train-iters", "1000"]
HOST = socket.gethostname()
# Two or three where the machine is idle; without the watch a collective waits for 600 and more.
SECONDS = 120
# One checkpoint of the model is 1.6 MB.
DISK_BYTES = 500 * 4096


def fail(ranks: Ranks, folder: Path, rank: int, how: str, *more: str, world: int = 2) -> Job:
    argv = [*ENDLESS, *more]
    return ranks.run(world, FAILING, str(folder), argv, rank, 3, how, folder=folder, timeout=600)


def messages(job: Job) -> list[str]:
    """What the plugin says at the end, over all ranks."""
    logs = "".join(job.log(rank) for rank in range(len(job.codes)))
    found = re.findall(r"^grove_megatron: (.*(?:\n  .*)*)", logs, re.MULTILINE)
    at_start = ("runtime ", "FLOPs ", "no record ", "--save (")
    return [said for said in found if not said.startswith(at_start)]


def seconds_to_end(folder: Path) -> float:
    """From the failure to now."""
    return time.time() - float((folder / FAILED_AT).read_text())


LOST = (
    "was lost: killed (SIGKILL, out of memory), crashed, or no longer reachable; all ranks end. "
    "See the log of that rank and the system log of its machine"
)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=LONG), 1])
def test_a_killed_rank_ends_the_job(rank: int, ranks: Ranks, tmp_path: Path) -> None:
    job = fail(ranks, tmp_path, rank, "kill")
    assert seconds_to_end(tmp_path) < SECONDS
    assert job.codes[rank] == -9
    assert job.codes[1 - rank] == 1
    assert messages(job) == [f"rank {rank} ({HOST}) {LOST}"]
    # The error of the collective in which the other rank waited says nothing.
    assert "Traceback" not in job.log(1 - rank)


@LONG
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_every_node_has_the_message_once(rank: int, ranks: Ranks, tmp_path: Path) -> None:
    """Four ranks without a launcher, the even ones on one node and the odd ones on another."""
    argv = [*MODEL, *EP4, "--train-iters", "1000"]
    fault = (argv, rank, "kill", {"nodes": "2"})
    target = "tests.integration.fault_job:train"
    job = ranks.run(4, target, str(tmp_path), *fault, folder=tmp_path, timeout=600)
    said = [job.log(r).count(f"rank {rank} ({HOST}) {LOST}") for r in range(4)]
    left = [r for r in range(4) if r != rank]
    speakers = {next(r for r in left if r % 2 == node) for node in (0, 1)}
    assert said == [int(r in speakers) for r in range(4)]


@LONG
def test_an_exception_ends_the_job(ranks: Ranks, tmp_path: Path) -> None:
    rank = 1
    job = fail(ranks, tmp_path, rank, "raise")
    assert seconds_to_end(tmp_path) < SECONDS
    assert job.codes == [1, 1]
    assert messages(job) == [f"rank {rank} ({HOST}) failed: RuntimeError: {SAID}"]
    assert f"RuntimeError: {SAID}" in job.log(rank)[job.log(rank).index("Traceback") :]
    assert "Traceback" not in job.log(1 - rank)


NAN = "tests.integration.failing_job:train_with_nan"
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
# Flags, the rank with the NaN, its layer. With pipeline stages the other rank's loss tells of it.
LAYOUTS = {
    "ep2": (EP2, 1, 2),
    "ep2-recompute": ([*EP2, *RECOMPUTE.split()], 1, 2),
    "pp2": (["--pipeline-model-parallel-size", "2"], 0, 1),
}


@pytest.mark.parametrize("layout", ["pp2", pytest.param("ep2-recompute", marks=LONG)])
def test_nan_in_a_router_is_reported_with_rank_layer_and_values(
    layout: str, ranks: Ranks, tmp_path: Path
) -> None:
    job, found = spoil(layout, ranks, tmp_path, "--rerun-mode", "disabled")
    assert job.codes == [1, 1]
    (said,) = messages(job)
    assert re.match(r"rank [01] \(.*\) failed: RuntimeError: .* Unexpected result nan ", said)
    assert found in said


@LONG
def test_nan_is_reported_where_megatron_saves_and_leaves(ranks: Ranks, tmp_path: Path) -> None:
    """By default it runs the iteration again, saves, and asks to be started on other devices."""
    job, found = spoil(
        "ep2", ranks, tmp_path, "--save", str(tmp_path / "save"), "--save-interval", "99"
    )
    assert job.codes == [16, 16]
    (said,) = messages(job)
    assert said.startswith("all ranks end with exit code 16\n")
    assert found in said


def spoil(layout: str, ranks: Ranks, folder: Path, *more: str) -> tuple[Job, str]:
    """A job that meets NaN at iteration 3, and what it has to say of it.

    3 weights of expert 1 are NaN, so one logit of each of the 32 tokens of a microbatch is.
    """
    flags, rank, layer = LAYOUTS[layout]
    argv = [*MODEL, *flags, "--train-iters", "50", *more]
    job = ranks.run(2, NAN, str(folder), argv, rank, layer, 3, folder=folder, timeout=600)
    assert seconds_to_end(folder) < SECONDS, job.codes
    return job, (
        f"\n  rank {rank}, layer {layer}: 32 of the router's 256 logits (32 tokens x 8 experts) "
        "are nan or infinite, first at iteration 3; 3 of the router's 256 weights are not finite: "
    )


@LONG
def test_a_slow_rank_is_not_taken_for_dead(ranks: Ranks, tmp_path: Path) -> None:
    argv = [*MODEL, *EP2, "--train-iters", "4"]
    job = ranks.run(2, FAILING, str(tmp_path), argv, 1, 3, "sleep", folder=tmp_path)
    assert job.codes == [0, 0]
    assert messages(job) == []


@LONG
def test_a_rank_that_leaves_alone_ends_the_job(ranks: Ranks, tmp_path: Path) -> None:
    job = fail(ranks, tmp_path, 1, "leave")
    assert seconds_to_end(tmp_path) < FOLLOW_SECONDS + SECONDS
    assert job.codes == [1, 7]
    ended = f"rank 1 ({HOST}) ended with exit code 7, and the other ranks did not follow"
    assert messages(job) == [ended]


@LONG
def test_a_rank_that_is_asked_to_end_ends_the_job(ranks: Ranks, tmp_path: Path) -> None:
    job = fail(ranks, tmp_path, 1, "terminate")
    assert seconds_to_end(tmp_path) < SECONDS
    assert job.codes == [1, 143]
    assert messages(job) == [f"rank 1 ({HOST}) was asked to end (SIGTERM); all ranks end"]


def test_ctrl_c_ends_with_a_line(ranks: Ranks, tmp_path: Path) -> None:
    """What is saved, how to go on, and no traceback of any rank."""
    save = str(tmp_path / "save")
    job = fail(ranks, tmp_path, 1, "interrupt", "--save", save, "--save-interval", "2")
    assert seconds_to_end(tmp_path) < SECONDS
    assert job.codes == [1, 130]
    assert messages(job)[-1:] == [
        f"interrupted (Ctrl-C); the last complete checkpoint in --save ({save}) is iteration 2; "
        f"the same command with --load {save} goes on from it"
    ]
    assert "Traceback" not in job.log(0) + job.log(1)
    # The next start is alone.
    assert not (tmp_path / "save" / LOCK).exists()


# ------------------------------------------------------------------- flags that ranks have alone

SCRIPT = str(Path(__file__).with_name("stock_entry_script.py"))
OTHERS = "tests.integration.failing_job:train_with_others"


@pytest.mark.parametrize("entry", ["pretrain", pytest.param("run", marks=pytest.mark.long)])
def test_flags_that_differ_between_ranks_are_refused(
    entry: str, ranks: Ranks, tmp_path: Path
) -> None:
    # The second would be refused on rank 1 alone, and paths may differ.
    alone = "--moe-router-topk 3 --grove-adjugate-scale 0.6 --data-cache-path /b --lr 1e-2"
    more = [["--data-cache-path", "/a"], alone.split()]
    argv = [*([SCRIPT] if entry == "run" else []), *MODEL, *EP2]
    started = time.time()
    job = ranks.run(2, OTHERS, str(tmp_path), entry, argv, more, folder=tmp_path)
    assert time.time() - started < 120  # a collective would wait for 600
    assert job.codes == [2, 2]
    assert messages(job) == [
        "--data-cache-path (/a on rank 0; /b on rank 1) differs between ranks",
        "2 problems, nothing was started:\n"
        "  1. --grove-adjugate-scale (0.3 on rank 0; 0.6 on rank 1) differs between ranks; give "
        "every node the same flags\n"
        "  2. --moe-router-topk (2 on rank 0; 3 on rank 1) differs between ranks; give every node "
        "the same flags",
    ]
    assert "nothing was started" in job.log(0)


@pytest.mark.parametrize("entry", ["pretrain", "run"])
def test_what_one_machine_lacks_every_rank_hears(entry: str, ranks: Ranks, tmp_path: Path) -> None:
    """Rank 1 is the first of its machine, and its folder is the one that cannot be."""
    more = [["--grove-metrics-dir", str(tmp_path / "metrics")], ["--grove-metrics-dir", "/proc/x"]]
    argv = [*([SCRIPT] if entry == "run" else []), *MODEL, *EP2, "--eval-interval", "10"]
    target, machines = (str(tmp_path), entry, argv, more), {"LOCAL_RANK": "0"}
    job = ranks.run(2, OTHERS, *target, folder=tmp_path, env=machines)
    assert job.codes == [2, 2]
    assert "1. rank 1: --grove-metrics-dir (/proc/x) cannot be written: " in job.log(0)
    assert not (tmp_path / "metrics").exists()


def test_flags_of_a_checkpoint_that_one_machine_has_not(ranks: Ranks, tmp_path: Path) -> None:
    """Rank 0 goes on to what every rank looks at, and must not wait for the other there."""
    save = ["--train-iters", "1", "--save", str(tmp_path / "there"), "--save-interval", "1"]
    argv = [*MODEL, "--eval-interval", "10"]
    ranks.run(1, OTHERS, str(tmp_path), "pretrain", [*argv, *save], [[]], folder=tmp_path).check()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "latest_checkpointed_iteration.txt").write_text("1")
    more = [["--load", str(tmp_path / name)] for name in ("there", "half")]
    read = [*argv, "--use-checkpoint-args", "--distributed-timeout-minutes", "2"]
    machines = {"LOCAL_RANK": "0"}
    target = (2, OTHERS, str(tmp_path), "pretrain", read, more)
    job = ranks.run(*target, folder=tmp_path, env=machines)
    assert job.codes == [2, 2]
    assert f"in {tmp_path / 'half'} is complete: " in job.log(0)


# ------------------------------------------------------------------------------- under torchrun


@LONG
def test_the_launcher_does_not_cut_off_the_message(tmp_path: Path) -> None:
    """It ends the other ranks of a node as soon as one has ended."""
    rank = 1
    job = ["-m", "tests.integration.failing_job", str(tmp_path), str(rank), "3", "kill", *ENDLESS]
    done = launch(torchrun(*job), timeout=600, GROVE_RUNTIME="cpu")
    assert seconds_to_end(tmp_path) < SECONDS
    assert done.code != 0
    assert done.output.count(LOST) == 1, done.output
    assert f"grove_megatron: rank {rank} ({HOST}) {LOST}" in done.output
    assert not processes_that_name(str(tmp_path))


@LONG
def test_a_node_that_is_lost_ends_the_others(tmp_path: Path) -> None:
    """Two launchers on one machine; that of rank 0, with the job's store, is killed whole."""
    failing = [str(tmp_path), "0", "3", "kill_node", *ENDLESS, *EP4]
    with two_nodes("-m", "tests.integration.failing_job", *failing) as nodes:
        outputs = [node.communicate(timeout=600)[0] for node in nodes]
    assert seconds_to_end(tmp_path) < 120
    assert nodes[0].returncode == -9
    assert nodes[1].returncode not in (0, -9)
    said = re.findall(r"^grove_megatron: (ranks? .*) (?:was|were) lost", outputs[1], re.M)
    # Who speaks for a lost rank 0 cannot know of the others of its node.
    assert said == [f"rank 0 ({HOST})"]
    assert not processes_that_name(str(tmp_path))


# ---------------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that one checkpoint fits into, and not a second one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@LONG
def test_a_full_disk_ends_the_job_and_keeps_the_checkpoint_before(
    small_disk: Path, ranks: Ranks, tmp_path: Path
) -> None:
    argv = [*MODEL, *EP2, "--save", str(small_disk), "--load", str(small_disk)]
    argv += ["--save-interval", "1"]
    started = time.time()
    job = ranks.run(2, TRAIN, str(tmp_path), argv, folder=tmp_path, timeout=600)
    assert time.time() - started < 120  # with the start of the job and the save that fits
    assert job.codes == [1, 1]
    (said,) = messages(job)
    # Megatron keeps the type of a worker's exception alone; the rest is in a log line of its own.
    failed, room = said.split("\n")
    worker = r"RuntimeError: Worker failure: .* error: <class '(OS|Runtime)Error'>"
    writing = rf"{worker} \(writing on ranks? (0|1|0-1)\)"
    prefix = rf"rank 0 \({HOST}\) failed: CheckpointException: "
    assert re.fullmatch(rf"{prefix}{writing}(; {writing})?", failed), failed
    assert re.fullmatch(
        rf"  --save \({small_disk}\) on {HOST} has \d+ of {DISK_BYTES} bytes free; this "
        r"checkpoint is not complete. If it is full, make room; the last complete checkpoint in "
        rf"--save \({small_disk}\) is iteration 1; the same command goes on from it",
        room,
    )
    # The same command goes on where the last complete checkpoint is.
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    again = ranks.run(
        2, TRAIN, str(tmp_path), [*argv, "--exit-interval", "2"], folder=tmp_path
    ).check()
    assert "at iteration 1\n" in again.log()
