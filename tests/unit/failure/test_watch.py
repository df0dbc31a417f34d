"""What the watch keeps of a job, and how it ends one from inside."""

import socket
from argparse import Namespace

import pytest

from grove_megatron.failure import watch


@pytest.fixture(autouse=True)
def _own_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_watch", watch._Watch())
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_flags_are_kept_as_they_were_given() -> None:
    """Megatron sets --finetune itself once it has loaded --pretrained-checkpoint."""
    args = Namespace(finetune=False)
    watch.begin(args)
    args.finetune = True
    assert watch._watch.args == Namespace(finetune=False)


def test_a_job_can_be_ended_from_any_thread(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(watch, "end_process", ended.append)
    watch.fail("the folder is another's")
    assert ended == [1]
    said = f"grove_megatron: rank 0 ({socket.gethostname()}) failed: the folder is another's"
    assert capsys.readouterr().err.strip() == said
