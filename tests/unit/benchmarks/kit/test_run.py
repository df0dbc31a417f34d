"""What the runner keeps of an item, and what it says of one left out, cut off or stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from grove_megatron.benchmarks.harness import UNTIL
from grove_megatron.benchmarks.kit import run as runs
from grove_megatron.benchmarks.kit.items import Item
from grove_megatron.benchmarks.kit.journal import notes
from grove_megatron.benchmarks.kit.perform import of_triton
from grove_megatron.benchmarks.kit.plan import END

GOOD = Item(name="good", kind="bench", expected=3, least=1, limit=60)
BAD = Item(name="bad", kind="bench", expected=3, least=1, limit=60)
SLOW = Item(name="slow", kind="bench", expected=3, least=1, limit=1)
LATE = Item(name="late", kind="bench", expected=300, least=200, limit=400)
ELSEWHERE = Item(name="elsewhere", kind="bench", expected=3, least=1, limit=60, needs="no_such_one")


def start(item: Item, results: Path, scratch: Path, on_cuda: bool) -> int:
    """Two rows and a part of one, whatever becomes of the item."""
    (scratch / "rows.csv").write_text(f"a,b\n{item.name},1\n{item.name},2\n{item.name}")
    if item.name == "slow":
        time.sleep(300)
    print(f"said by {item.name}")
    return 4 if item is BAD else 0


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Items without Megatron; pytest's handlers of signals and its environment afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(runs, "_imported", lambda results: (start, False))
    monkeypatch.setattr(runs, "write_summary", lambda results: None)
    # Is set by a run, and taken back here.
    monkeypatch.setenv(UNTIL, "inf")
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def test_rows_are_those_of_items_that_ended_well_or_were_cut_off(results: Path) -> None:
    again = Item(name="again", kind="bench", expected=3, least=1, limit=60)
    runs.run(results, 100 + END, time.time(), (GOOD, BAD, SLOW, LATE, ELSEWHERE, again))
    rows = (results / "rows.csv").read_text().splitlines()
    assert rows == [
        "a,b",
        *(f"{name},{number}" for name in ("good", "slow", "again") for number in (1, 2)),
    ]
    found = list(notes(results))
    ended = {one["item"]: one for one in found if one["kind"] == "ended"}
    codes = {name: (one["code"], one["rows"]) for name, one in ended.items()}
    assert codes["good"] == codes["again"] == (0, 2)
    assert codes["bad"] == (4, 0)
    assert ended["bad"]["last"].endswith("===== bad\nsaid by bad")
    # Three times its limit, as there was time.
    assert ended["slow"]["cut_off"] == 3.0
    assert codes["slow"][1] == 2
    assert ended["good"]["cut_off"] is None
    left_out = {one["item"]: one["why"] for one in found if one["kind"] == "left out"}
    assert left_out["elsewhere"] == "needs no_such_one (not installed, or it does not load)"
    assert left_out["late"].endswith(" s were left of the 200 s it needs")
    assert found[-1]["why"] == "all items were looked at"


def test_a_card_that_no_forked_process_can_use_has_fresh_ones(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = replace(GOOD, name="environment", kind="environment")

    def forked(item: Item, results: Path, scratch: Path, on_cuda: bool) -> int:
        return 1

    monkeypatch.setattr(runs, "_imported", lambda results: (forked, True))
    monkeypatch.setattr(runs, "_afresh", start)
    runs.run(results, 100, time.time(), (environment, GOOD))
    ended = [(one["item"], one["code"]) for one in notes(results) if one["kind"] == "ended"]
    assert ended == [("environment", 1), ("environment", 0), ("good", 0)]


def test_an_item_ends_with_the_time_that_was_given(results: Path) -> None:
    began = time.monotonic()
    runs.run(results, END + 2, time.time(), (replace(SLOW, limit=300),))
    assert time.monotonic() - began < 60
    (ended,) = (one for one in notes(results) if one["kind"] == "ended")
    assert 1 < ended["cut_off"] <= 2


def test_a_run_that_is_stopped_says_by_what(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(item: Item, results: Path, scratch: Path, on_cuda: bool) -> int:
        if item.name == "slow":
            os.kill(runner, signal.SIGTERM)
        return start(item, results, scratch, on_cuda)

    runner = os.getpid()
    monkeypatch.setattr(runs, "_imported", lambda results: (stopped, False))
    runs.run(results, 400, time.time(), (GOOD, replace(SLOW, limit=300), BAD))
    found = list(notes(results))
    assert found[-1]["why"] == "stopped by SIGTERM"
    assert [one["item"] for one in found if one["kind"] == "begun"] == ["good", "slow"]
    assert (results / "rows.csv").read_text().splitlines()[1:] == ["good,1", "good,2"]


BROKEN = """
import sys
from pathlib import Path
from grove_megatron.benchmarks.kit import run
import torch
torch.cuda.is_available = lambda: True
run._imported(Path(sys.argv[1]))
print(run._is_there("transformer_engine"), "megatron.training" in sys.modules)
"""


def test_an_engine_that_does_not_load_is_done_without(tmp_path: Path) -> None:
    engine = tmp_path / "site" / "transformer_engine"
    (engine / "pytorch").mkdir(parents=True)
    (engine / "__init__.py").write_text("raise OSError('libcublas.so.12: cannot open')\n")
    (engine / "pytorch" / "__init__.py").write_text("")
    places = f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout.split() == ["False", "True"], done.stderr
    changed, imported = notes(tmp_path)
    assert "OSError: libcublas.so.12" in changed["why"]
    assert imported["failed"] == ""


def test_what_triton_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/some/cc")
    assert "/some/cc" in of_triton() or "no C compiler" not in of_triton()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "/nowhere")
    assert of_triton().startswith("Triton's kernels cannot be built: no C compiler (set CC")
