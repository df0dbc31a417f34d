"""``grove report`` of several jobs: one page, one table, one figure."""

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from grove_megatron.report.record import FILE, Writer
from tests.unit.report.intervals import RUN, a_training
from tests.unit.report.jobs import a_run, grove_report, recorded, written


def routers_and_seeds(folder: Path) -> list[Path]:
    """Three routers, two seeds each; the last run is half as long as the others."""
    places = []
    for router, seed in product("abc", (1, 2)):
        settings = {"moe_router_load_balancing_type": router, "seed": seed}
        run = a_run(f"{router}{seed}", **settings)
        number = 2 if (router, seed) == ("c", 2) else 4
        places.append(recorded(folder / f"{router}-seed{seed}", run, number))
    return places


def test_two_jobs_are_drawn_side_by_side(tmp_path: Path) -> None:
    recorded(tmp_path / "one", RUN, number=2)
    settings = RUN.settings | {"lr": 0.5, "seed": 7}
    other = replace(RUN, id="b", experts=16, ranks=4, settings=settings)
    recorded(tmp_path / "two", other, number=3)
    result = grove_report(tmp_path / "one", tmp_path / "two")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "one" / "comparison.html").read_text()
    assert "<h1>one and two: what the experts do</h1>" in page
    assert page.count("<img alt=") == len(list((tmp_path / "one").glob("*.png"))) == 5
    assert page.count("2 MoE layers of 8 experts") == page.count("2 MoE layers of 16 experts") == 1
    settings_that_differ = page.partition("Settings that differ")[2]
    rows = re.findall(r"<code>([^<]*)</code>", settings_that_differ)
    assert rows == [
        *("lr", "0.001", "0.5"),
        *("expert-model-parallel-size", "2", "4"),
        *("num-experts", "8", "16"),
        *("seed", "(unset)", "7"),
    ]


def test_two_seeds_of_a_system_are_one_row_and_two_lines(tmp_path: Path) -> None:
    for seed in (1, 2):
        recorded(tmp_path / f"x-{seed}", a_run(str(seed), seed=seed), number=2)
    result = grove_report(tmp_path / "x-1", tmp_path / "x-2", "--out", tmp_path / "c.html")
    assert result.exit_code == 0, result.output
    (row,) = (tmp_path / "c.md").read_text().splitlines()[2:3]
    assert row.startswith("| x | 2 | 20 |")
    page = (tmp_path / "c.html").read_text()
    assert "<h1>x-1 and x-2: what the experts do</h1>" in page
    assert '<tr><th>name</th><th class="number">x-1</th><th class="number">x-2</th>' in page


def test_many_jobs_are_one_page_one_table_and_one_figure(tmp_path: Path) -> None:
    places = routers_and_seeds(tmp_path)
    page = tmp_path / "page.html"
    result = grove_report(*places, "--out", page, "--json")
    assert result.exit_code == 0, result.output
    files = [tmp_path / name for name in ("page.html", "page.md", "page-lines.png")]
    assert sorted(tmp_path.glob("page*")) == sorted(files)
    *said, last = result.stdout.splitlines()
    assert said == []
    assert "a comparison of 6 runs; 1 figure beside it" in result.stderr
    found = json.loads(last)
    assert found["files"] == [str(file) for file in files]
    assert [one["name"] for one in found["systems"]] == ["a", "b", "c"]
    assert [[run["run_dir"] for run in one["runs"]] for one in found["systems"]] == [
        [str(place) for place in places[n : n + 2]] for n in (0, 2, 4)
    ]
    text = page.read_text()
    assert "<h1>6 runs of 3 systems: what the experts do</h1>" in text
    assert text.count("<img alt=") == 1
    assert '<h2 id="lines">' in text
    assert re.findall(r"<b>([^<]*)</b>", text) == [
        f"{router}, {router}-seed{seed}, seed {seed}, run {router}{seed}"
        for router, seed in product("abc", (1, 2))
    ]
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:5]] == [
        ["| a", "2", "40"],
        ["| b", "2", "40"],
        ["| c", "2", "20..40"],
    ]
    assert "training loss at 20" in lines[0]
    assert "training loss at 20" in text


def test_more_systems_than_settings_have_a_row_each(tmp_path: Path) -> None:
    result = grove_report(*routers_and_seeds(tmp_path), "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    settings = (tmp_path / "page.html").read_text().partition("Settings that differ")[2]
    rows = re.findall(r"<tr>(.*?)</tr>", settings)
    assert [re.findall(r"<t[hd][^>]*>(?:<code>)?([^<]*)", row) for row in rows] == [
        ["system", "moe-router-load-balancing-type", "seed"],
        *([router, router, "1, 2"] for router in "abc"),
    ]


def test_one_job_has_its_figures_as_json_too(tmp_path: Path) -> None:
    result = grove_report(recorded(tmp_path / "it", RUN, number=2), "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["files"][0] == str(tmp_path / "it" / "report.html")
    (system,) = found["systems"]
    assert system["runs"][0]["iterations"] == [11, 20]
    assert system["runs"][0]["figures"]["loss"] == 3.5


def test_a_record_that_is_being_written_is_compared(tmp_path: Path) -> None:
    """Another line has begun, and the run is not over."""
    recorded(tmp_path / "a", a_run("a", train_iters=30), number=3)
    recorded(tmp_path / "b", a_run("b", train_iters=30, seed=2), number=2)
    with (tmp_path / "b" / FILE).open("a") as file:
        file.write('{"run":"b","itera')
    recorded(tmp_path / "c", a_run("c", lr=7), number=3)
    places = [tmp_path / name for name in "abc"]
    result = grove_report(*places, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "| 2 | 20..30 of 30 |" in (tmp_path / "page.md").read_text()


def test_what_records_hold_beside_is_said_with_the_job(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "a", a_run("old"), number=1)
    recorded(folder, a_run("new"), number=1)
    recorded(tmp_path / "b", a_run("b", lr=7), number=1)
    result = grove_report(folder, tmp_path / "b", "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "note: a: run old (begun" in result.stdout


def test_every_problem_is_said_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    good = recorded(tmp_path / "good", RUN, number=1)
    copied = written(tmp_path / "copied", RUN, a_training(RUN, 1, 40))
    Writer(tmp_path / "empty").run(a_run("b"))
    (tmp_path / "none").mkdir()
    before = sorted(tmp_path.rglob("*"))
    places = [good, tmp_path / "none", good / FILE, tmp_path / "empty", copied]
    result = grove_report(*places, "--run", "a", "--out", tmp_path / "page.pdf", "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    first, *lines = result.stderr.splitlines()
    assert first == "grove_megatron: 6 problems, nothing was drawn:"
    for number, (line, said) in enumerate(
        zip(
            lines,
            [
                f"--out ({tmp_path / 'page.pdf'}) does not end in (.html); name the page",
                "--run (a) is of one record, RUN_DIR are (5); name one job",
                f"RUN_DIR ({tmp_path / 'none'}) has no routing.jsonl",
                f"RUN_DIR ({good / FILE}) is of the same run (a) as RUN_DIR ({good}); name it once",
                f"record ({tmp_path / 'empty' / FILE}) holds no interval (0); let the job report",
                f"RUN_DIR ({copied}) is of the same run (a) as RUN_DIR ({good}); name it once",
            ],
            strict=True,
        ),
        1,
    ):
        assert line.startswith(f"  {number}. {said}")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_given_twice_is_refused(tmp_path: Path) -> None:
    folder = recorded(tmp_path, RUN, number=1)
    result = grove_report(folder, folder)
    assert result.exit_code == 2
    assert f"RUN_DIR ({folder}) is of the same run (a) as RUN_DIR ({folder})" in result.stderr


@pytest.mark.long
def test_the_same_records_give_the_same_files(tmp_path: Path) -> None:
    places = routers_and_seeds(tmp_path)
    made = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        result = grove_report(*places, "--out", tmp_path / name / "page.html")
        assert result.exit_code == 0, result.output
        made.append([file.read_bytes() for file in sorted((tmp_path / name).iterdir())])
    assert made[0] == made[1]
