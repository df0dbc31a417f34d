"""Outside torchrun: one process, unless something else has started several."""

import os

import pytest

from grove_megatron.training.start import _LAUNCHERS, alone


@pytest.fixture(autouse=True)
def _nothing_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})


def test_a_process_by_itself_is_a_job_of_one() -> None:
    alone()
    assert int(os.environ["MASTER_PORT"]) > 0
    assert (
        os.environ.items()
        >= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
        }.items()
    )


def test_what_torchrun_says_stays() -> None:
    os.environ |= {"RANK": "3", "WORLD_SIZE": "8"}
    alone()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("3", "8")
    assert "MASTER_ADDR" not in os.environ


@pytest.mark.parametrize("name", _LAUNCHERS)
def test_one_of_several_processes_does_not_train_alone(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ[name] = "1"
    alone()
    for variable in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        del os.environ[variable]
    os.environ[name] = "4"
    with pytest.raises(SystemExit) as left:
        alone()
    assert left.value.code == 2
    assert f"RANK (unset) is needed beside {name} (4); start" in capsys.readouterr().err
