"""A conversion killed at any moment leaves no destination; the same command goes on."""

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import Ranks

from .killed_conversion import READ
from .weights_folders import hashes, write_small

TARGET = "tests.integration.killed_conversion:convert"
KILLED = -signal.SIGKILL
# No conversion can have ended sooner: it reads all tensors once.
TENSORS = 2 * (9 + 3 * (4 + 2)) + 3
Run = Callable[..., int]


@pytest.fixture
def run(ranks: Ranks, tmp_path: Path) -> Run:
    """Exit code of one conversion."""

    def run(argv: list[str], *moment: float | None) -> int:
        job = ranks.run(1, TARGET, argv, *moment, folder=tmp_path / "log")
        (code,) = job.codes
        assert code in (0, KILLED), job.log()
        return code

    return run


@pytest.fixture(scope="module")
def sources(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``hf`` and ``megatron``: a model in both formats, from undisturbed conversions."""
    folder = tmp_path_factory.mktemp("sources")
    write_small(folder / "hf")
    argv = ["import", "--hf", str(folder / "hf"), "--save", str(folder / "megatron")]
    ranks.run(1, TARGET, argv, folder=folder / "log").check()
    return folder


def command(direction: str, sources: Path, out: Path) -> list[str]:
    if direction == "import":
        return ["import", "--hf", str(sources / "hf"), "--save", str(out)]
    # Files of about 20 kB.
    small = ["--max-shard-size", str(20_000 / 2**30)]
    return ["export", "--load", str(sources / "megatron"), "--hf", str(out), *small]


@pytest.fixture(scope="module", params=["import", "export"])
def direction(request: pytest.FixtureRequest) -> str:
    direction: str = request.param
    return direction


@pytest.fixture(scope="module")
def undisturbed(
    direction: str, ranks: Ranks, sources: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Hashes of all files of a conversion that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    argv = command(direction, sources, folder / "out")
    ranks.run(1, TARGET, argv, folder=folder / "log").check()
    found = hashes(folder / "out")
    assert sum(file.endswith((".safetensors", ".distcp")) for file in found) > 4
    return found


def finished_files(out: Path) -> dict[str, Any]:
    """What the journal says is done, and which file on the disk that is."""
    place = out.with_name(out.name + ".incomplete")
    if not place.exists():
        return {}
    lines = (place / "journal.jsonl").read_bytes().split(b"\n")[1:-1]
    files = [json.loads(line)["file"] for line in lines]
    return {file: stamp(place / "content" / file) for file in files}


def stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_ino, found.st_mtime_ns


def moments(count: int) -> list[float]:
    """Seconds, spread over the whole time a slow conversion reads."""
    rng = random.Random(11)
    whole = TENSORS * READ
    return [round((i + rng.random()) * whole / count, 4) for i in range(count)]


@pytest.mark.parametrize(
    "seconds",
    [
        # Half of them, in both directions, are 10 moments.
        pytest.param(seconds, marks=[pytest.mark.long] if i % 2 else [])
        for i, seconds in enumerate(moments(10))
    ],
)
def test_killed_at_any_moment_it_goes_on(
    seconds: float, direction: str, run: Run, sources: Path, undisturbed: Any, tmp_path: Path
) -> None:
    out, before = tmp_path / "out", hashes(sources)
    argv = command(direction, sources, out)
    assert run(argv, seconds) == KILLED
    assert not out.exists()
    kept = finished_files(out)
    assert run(argv) == 0
    assert hashes(out) == undisturbed
    assert {file: stamp(out / file) for file in kept} == kept
    assert not (tmp_path / "out.incomplete").exists()
    assert hashes(sources) == before


def test_killed_again_and_again_it_gets_further(
    direction: str, run: Run, sources: Path, undisturbed: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = command(direction, sources, out)
    kept: list[dict[str, Any]] = [{}]
    # Each time enough for a file.
    while run(argv, None, 30) == KILLED:
        assert not out.exists()
        kept.append(finished_files(out))
        # What was done before is still the same file.
        assert kept[-2].items() <= kept[-1].items()
        assert len(kept) < 20
    assert len(kept) > 1
    assert hashes(out) == undisturbed


@pytest.mark.parametrize("step", [0, 3])
def test_killed_while_it_gets_its_name(
    step: int, direction: str, run: Run, sources: Path, undisturbed: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = command(direction, sources, out)
    assert run(argv, None, None, step) == KILLED
    assert not out.exists()
    kept = finished_files(out)
    assert len(kept) > 4
    assert run(argv) == 0
    assert hashes(out) == undisturbed
    assert {file: stamp(out / file) for file in kept} == kept
