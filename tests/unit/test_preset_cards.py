"""The cards of presets: what ``grove verify`` found, kept, and the pages made of it."""

import json
import shutil
from pathlib import Path

import pytest

from grove_megatron.presets import cards, goldens, measured
from grove_megatron.presets.__main__ import main
from grove_megatron.presets.goldens import CHECKOUT, OF_PRESETS, Golden
from grove_megatron.presets.table import PRESETS


def test_every_golden_was_measured_as_it_is_now_and_the_pages_say_so() -> None:
    assert cards.stale() == []
    rows = measured.rows()
    assert len(rows) > 25
    assert all(row["passed"] for row in rows.values())
    for row in rows.values():
        assert row["result"]["grads_compared"] == row["result"]["grads_in_file"] > 0


def test_every_preset_has_goldens_that_there_are() -> None:
    known = {golden.name for golden in goldens.goldens()}
    assert OF_PRESETS.keys() == PRESETS.keys()
    assert {name for names in OF_PRESETS.values() for name in names} <= known


def test_a_golden_is_a_command_and_a_file() -> None:
    one = Golden("layer", "switch", "drop")
    assert one.words == ["verify", "--layer", "tests/data/goldens/switch", "--variant", "drop"]
    assert (CHECKOUT / one.file).is_file()
    model = Golden("model", "mixtral-tiny")
    assert model.words[1:3] == ["--hf", "tests/data/mixtral-tiny"]
    assert model in goldens.goldens()


def test_what_is_out_of_date_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "presets"
    shutil.copytree(cards.FOLDER, folder)
    rows = {name: dict(row) for name, row in measured.rows().items()}
    del rows["dbrx"]
    rows["mixtral"]["sha256"] = "0" * 64
    measured.write(rows, folder / "figures.json")
    (folder / "gone.md").write_text("")
    monkeypatch.setattr(cards, "FOLDER", folder)
    monkeypatch.setattr(measured, "rows", lambda: rows)
    said = [line.split(";")[0] for line in cards.stale()]
    assert "dbrx: not measured" in said
    file = "tests/data/goldens/mixtral/layer.safetensors"
    assert f"mixtral: {file} is not the file that was measured" in said
    assert "docs/presets/gone.md: nothing makes it" in said
    assert "docs/presets/dbrx.md: out of date" in said
    assert main(["--check"]) == 1


def test_a_card_says_where_the_golden_is_not_the_preset() -> None:
    pages = cards.pages()
    assert "| `--moe-router-topk-scaling-factor 2.5` |  |" in pages["deepseekmoe-16b.md"]
    assert "`--quick-geglu` |" in pages["grok-1.md"]
    assert "deepseek_v2:greedy (nearest)" in pages["README.md"]
    assert "mixtral (nearest)" not in pages["README.md"]
    assert not [page for page in pages.values() if "`--grove-whole-qk-norm` |" in page]
    assert "Router and experts have the preset's flags" in pages["mixtral-8x7b.md"]
    assert "131,597,021,184" in pages["dbrx.md"]


def test_the_worst_error_is_a_relative_one_of_output_or_gradients() -> None:
    rows = {name: dict(row) for name, row in measured.rows().items()}
    rows["grovemoe-tiny"]["result"]["max_logit_error"] = 0.5
    rows["grovemoe-tiny"]["result"]["max_grad_error"] = 3e-4
    (line,) = (
        one for one in cards.pages(rows)["README.md"].splitlines() if "(grovemoe-33b." in one
    )
    assert line.endswith("| grovemoe-tiny | 3.00e-04 |")


def test_a_golden_is_measured_by_the_command_itself() -> None:
    golden = Golden("layer", "mixtral")
    row = measured.measure(golden)
    kept = measured.rows()["mixtral"]
    assert row["passed"]
    for name in ("golden", "command", "tensors", "flags", "fields", "losses", "sha256"):
        assert row[name] == kept[name]
    # Another processor rounds otherwise.
    assert row["result"].keys() == kept["result"].keys()
    assert row["result"]["grads_compared"] == kept["result"]["grads_compared"]
    json.dumps(row)
