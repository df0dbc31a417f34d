"""Ranks of srun and mpirun: by their variables, and never N jobs of one rank."""

import os

import pytest

from grove_megatron.training.launchers import counts, first_host, take_ranks
from grove_megatron.training.start import alone

# Of the last of srun --nodes 2 --ntasks 3, as Slurm 22.05 gives them.
TASK = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "n[001-002]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "MASTER_ADDR": "n001",
    "MASTER_PORT": "29500",
}


def test_a_task_is_a_rank() -> None:
    found, line, problems = take_ranks(TASK)
    assert not problems
    port = found.pop("MASTER_PORT")
    assert found == {
        "RANK": "2",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "n001",
    }
    assert line == f"srun: 3 tasks, a rank each; they meet at n001:{port}"
    first = TASK | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    assert take_ranks(first)[0]["LOCAL_WORLD_SIZE"] == "2"
    # The same for all ranks, another for another step.
    assert take_ranks(first)[0]["MASTER_PORT"] == port
    assert take_ranks(TASK | {"SLURM_STEP_ID": "2"})[0]["MASTER_PORT"] != port
    meet = {"MASTER_ADDR": "here", "MASTER_PORT": "5"}
    assert take_ranks(TASK | meet)[0].items() >= meet.items()


def test_a_process_of_mpirun_is_a_rank() -> None:
    # mpirun reaches its nodes by srun: then its processes have srun's variables of their node.
    for others in ({}, TASK | {"SLURM_STEP_NUM_TASKS": "2"}):
        found, line, problems = take_ranks(others | MPI)
        assert not problems
        assert (found["RANK"], found["WORLD_SIZE"]) == ("3", "4")
        assert (found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("1", "2")
        assert line == "mpirun: 4 processes, a rank each; they meet at n001:29500"


@pytest.mark.parametrize(
    "one",
    [
        {},
        # A batch script.
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NUM_NODES": "2"},
        TASK | {"SLURM_STEP_NUM_TASKS": "1"},
        # torchrun in a task of srun.
        TASK | {"RANK": "9", "WORLD_SIZE": "24", "LOCAL_RANK": "1"},
        TASK | {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"},
    ],
)
def test_nothing_is_taken(one: dict[str, str]) -> None:
    assert take_ranks(one) == ({}, "", [])


def test_a_shell_with_a_terminal_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """srun --ntasks 8 --pty bash; tasks that srun starts there have its SLURM_PTY_PORT."""
    shell = TASK | {"SLURM_PTY_PORT": "44081"}
    assert take_ranks(shell)[0]["RANK"] == "2"
    monkeypatch.setattr(os, "isatty", lambda _: True)
    assert take_ranks(shell) == ({}, "", [])


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (
            TASK | {"RANK": "0", "WORLD_SIZE": "1"},
            "WORLD_SIZE (1) is below the number of processes (3)",
        ),
        (MPI | {"RANK": "0"}, "WORLD_SIZE (1) is below the number of processes (4)"),
        (TASK | {"WORLD_SIZE": "4"}, "WORLD_SIZE (4) differs from what srun says (3); unset it"),
        (TASK | {"LOCAL_RANK": "1"}, "LOCAL_RANK (1) differs from what srun says (0); unset it"),
        (
            TASK | {"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "5"},
            "LOCAL_RANK (1) is not below the number of GPUs that this process sees",
        ),
        (
            {name: value for name, value in TASK.items() if name != "SLURM_NODEID"},
            "SLURM_NODEID (unset) is needed beside SLURM_STEP_NUM_TASKS (3)",
        ),
        (
            {name: value for name, value in MPI.items() if name != "MASTER_PORT"},
            "MASTER_PORT (unset) is needed beside OMPI_COMM_WORLD_SIZE (4); mpirun -x",
        ),
    ],
)
def test_what_contradicts_is_refused(one: dict[str, str], said: str) -> None:
    found, _, problems = take_ranks(one)
    assert not found
    assert [str(problem)[: len(said)] for problem in problems] == [said]


def test_every_process_of_a_step_gets_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", {**TASK, "PATH": os.environ["PATH"]})
    alone()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("2", "3")
    assert not capsys.readouterr().err
    monkeypatch.setattr(os, "environ", {**TASK, "SLURM_PROCID": "0"})
    alone()
    assert "grove_megatron: srun: 3 tasks, a rank each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[001-004,7],login", "n001"),
        ("rack[2,4]-n[10-11]", "rack2-n10"),
        ("gpu-a,gpu-[1-2]", "gpu-a"),
    ],
)
def test_the_first_host(nodelist: str, first: str) -> None:
    assert first_host(nodelist) == first


def test_counts() -> None:
    assert counts("4(x2),2") == [4, 4, 2]
    assert counts("8") == [8]
