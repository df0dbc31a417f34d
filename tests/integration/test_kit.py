"""The kit is built, and does what it can on a machine without a network and without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grove_megatron.benchmarks.kit.build import LIMIT_BYTES
from grove_megatron.benchmarks.kit.import_rows import import_rows
from grove_megatron.benchmarks.kit.journal import notes
from grove_megatron.benchmarks.records import read_rows

from .bare_machine import make
from .launching import REPOSITORY

pytestmark = pytest.mark.long

KIT = "grove_megatron.benchmarks.kit"


def call(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit") / "bundle"
    done = call([sys.executable, "-m", f"{KIT}.build", str(folder)], PYTHONPATH=str(REPOSITORY))
    if "pip download failed" in done.stderr:
        pytest.skip(f"no index to build the kit from: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    if sys.version_info[:2] != (3, 12):
        pytest.skip("the kit is for Python 3.12")
    return str(make(tmp_path_factory.mktemp("machine") / "environment"))


def offline(command: list[str]) -> list[str]:
    """The command where there is no network, if this machine lets a user have that."""
    wrapped = [sys.executable, "-m", "tests.integration.without_network"]
    if call([*wrapped, "true"]).returncode:
        pytest.skip("this machine has no network namespaces for users")
    return [*wrapped, *command]


def test_the_bundle_is_small_and_has_no_torch(bundle: Path) -> None:
    files = [path for path in bundle.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LIMIT_BYTES
    names = {path.name.split("-")[0].lower() for path in (bundle / "wheels").iterdir()}
    assert {"grove_megatron", "megatron_core", "pytest_timeout"} <= names
    assert not names & {"torch", "triton", "numpy", "wandb"}


def test_it_runs_offline_without_a_gpu_and_what_it_writes_is_imported(
    bundle: Path, python: str, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    done = call(offline([str(bundle / "run.sh"), "400", str(results)]), PYTHON=python)
    assert done.returncode == 0, done.stdout + done.stderr
    found = list(notes(results))
    (imported,) = (one for one in found if one["kind"] == "imported")
    assert (imported["cuda"], imported["failed"]) == (False, "")
    ended = {one["item"]: one for one in found if one["kind"] == "ended"}
    bad = {
        name: one["last"]
        for name, one in ended.items()
        if one["code"] or one["cut_off"] or (name.startswith("bench") and not one["rows"])
    }
    assert not bad, bad
    assert {name for name in ended if name.startswith("bench")} == {
        f"bench_{name}"
        for name in ("layer", "kernels", "step", "dispatch", "routers", "layer_deterministic")
    }
    tests = [one for one in found if one["kind"] == "test"]
    assert len(tests) > 150
    assert {(one["outcome"], one["text"]) for one in tests} == {("skipped", "needs CUDA")}
    page = (results / "SUMMARY.md").read_text()
    assert "No time below says anything of a GPU" in page
    assert "## Failures" not in page
    rows = read_rows(results / "rows.csv")
    assert {row.device for row in rows} == {"cpu"}
    built = json.loads((bundle / "bundle.json").read_text())
    assert {row.commit for row in rows} == {built["commit"]}
    quantities = {row.quantity for row in rows if row.benchmark == "step"}
    assert {"metrics counting", "watch of logits"} <= quantities
    import_rows(results, tmp_path / "into", cpu=True)
    kept = [row for file in (tmp_path / "into").iterdir() for row in read_rows(file)]
    assert sorted(map(str, kept)) == sorted(map(str, rows))


def test_what_it_cannot_do_is_refused(bundle: Path, python: str, tmp_path: Path) -> None:
    cases = {
        ("ten",): "SECONDS (ten) is not a number above (0)",
        ("5",): "SECONDS (5) is below",
        ("400", str(bundle)): "is there and not empty; name another folder",
        (): "usage: run.sh SECONDS",
    }
    for words, message in cases.items():
        done = call([str(bundle / "run.sh"), *words], PYTHON=python)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    wheel = next((bundle / "wheels").glob("typer-*"))
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-1])
    try:
        done = call([str(bundle / "run.sh"), "400", str(tmp_path / "r")], PYTHON=python)
    finally:
        wheel.write_bytes(whole)
    assert done.returncode == 2
    assert f"wheels ({wheel.name}) are missing or damaged" in done.stderr
    assert not (tmp_path / "r").exists()


def test_the_plan_begins_with_the_kernels(bundle: Path, python: str) -> None:
    done = call([str(bundle / "run.sh"), "--plan", "480"], PYTHON=python)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    names = [line.split()[2] for line in lines[3:6]]
    assert names == ["environment", "test_kernels_33b", "test_layer"]
    assert any("needs transformer_engine (not installed)" in line for line in lines)
