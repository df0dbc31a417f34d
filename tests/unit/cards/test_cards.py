"""The cards are of the parts there are, whole, and say nothing that the code does not."""

import json
import re
import shlex
from functools import cache

import pytest

from grove_megatron.cards import card, figures, goldens, refused, small, write
from grove_megatron.parts import registry
from grove_megatron.parts.part import Part
from grove_megatron.training.doctor import diagnose

PARTS = registry.parts()
# Of the commands grove data and grove verify.
OF_COMMANDS = {"--check", "--counts", "--layer", "--variant", "--write"}


@cache
def pages() -> dict[str, str]:
    return write.pages()


def page_of(part: Part) -> str:
    return pages()[f"{card.name_of(part)}.md"]


def section(text: str, title: str) -> str:
    found = text.split(f"\n## {title}\n\n")
    assert len(found) == 2, title
    return found[1].split("\n## ")[0].strip()


def part_of(name: str) -> Part:
    (part,) = [one for one in PARTS if card.name_of(one) == name]
    return part


def beside(name: str) -> dict[str, str]:
    return {r.flags: " ".join(map(str, r.why)) for r in refused.excluded(part_of(name))}


def test_the_cards_there_are_are_those_that_would_be_written():
    there = {path.name: path.read_text(encoding="utf-8") for path in write.FOLDER.glob("*.md")}
    stale = "run python -m grove_megatron.parts --write"
    assert sorted(there) == sorted(pages()), stale
    assert [name for name in there if there[name] != pages()[name]] == [], stale


@pytest.mark.parametrize("part", PARTS, ids=card.name_of)
def test_a_card_has_every_section_and_none_is_empty(part):
    text = page_of(part)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(card.SECTIONS)
    assert all(section(text, title) for title in card.SECTIONS)
    assert part.formula.strip()
    assert len(part.formula.splitlines()) <= 7
    assert re.search(r"[a-z].*\.$", part.when), "a sentence"
    assert part.formula in section(text, "Formula")
    assert f"]({card.name_of(part)}.md)" in pages()["README.md"]


@pytest.mark.parametrize("part", PARTS, ids=card.name_of)
def test_every_flag_in_a_card_is_a_flag(part):
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*\w", page_of(part)))
    assert named
    assert named - small.known_flags() - OF_COMMANDS == set()


@pytest.mark.parametrize("part", PARTS, ids=card.name_of)
def test_what_a_card_has_to_try_is_a_job_with_the_part(part, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    command = section(page_of(part), "To try it").split("```sh\n")[1].split("```")[0]
    example, *flags = shlex.split(command.replace("\\\n", " "))
    assert (small.CHECKOUT / example).is_file()
    assert part.is_on(small.parsed(" ".join(flags)))
    job = [*small.flags(), "--expert-model-parallel-size", "2", *flags]
    assert diagnose(job, 2, "cpu").problems == []


def test_what_excludes_a_part_is_what_the_rules_refuse():
    of_base = beside("selector-base")
    for flags in ("--moe-router-enable-expert-bias", "--grove-importance-loss-coeff 0.1"):
        assert (
            "--grove-router-selector (base), which selects experts by a rule of its own"
            in (of_base[flags])
        )
    assert "--grove-router-selector sinkhorn --moe-aux-loss-coeff 0" not in of_base, "in its place"
    assert "--moe-z-loss-coeff 0.1" not in of_base
    assert "--moe-z-loss-coeff 0.1" in beside("selector-hash")
    assert "--mtp-num-layers 1" in beside("selector-reinforce")
    # Refused without the part, too, because it is there by default.
    assert "--moe-router-fusion" in beside("scoring-grove")
    # In a plain MoE alone: with groups Megatron's fused router is refused in any case.
    assert "--moe-router-fusion" in beside("counts-first")
    assert not beside("selector-topk")


def test_a_card_knows_no_more_than_the_rules(monkeypatch):
    monkeypatch.setattr(refused, "grove_problems", lambda args, num_experts: [])
    part = part_of("selector-hash")
    assert [*refused.needed(part), *refused.excluded(part)] == []
    assert "is refused, neither" in section(card.card(part, None), "What it needs and excludes")


def test_what_a_part_needs_is_what_it_is_refused_without():
    found = {r.flags: str(r.why[0]) for r in refused.needed(part_of("selector-base"))}
    assert sorted(found) == ["--moe-aux-loss-coeff 0", "--moe-router-topk 1"]
    assert "gives a token one expert, not --moe-router-topk (2)" in found["--moe-router-topk 1"]
    assert [r.flags for r in refused.needed(part_of("loss-load"))] == ["--grove-noisy-topk"]
    assert list(refused.needed(part_of("logits-bias"))) == []


@pytest.mark.parametrize("part", PARTS, ids=card.name_of)
def test_a_card_says_what_depends_on_other_tokens(part):
    text = section(page_of(part), "What it sees")
    of_training = part.sees == "training"
    assert text.startswith("In training the choice of a token depends on all") == of_training
    assert ("Generation refuses" in text) == (part.sees == "always")
    assert ("take places of an expert from one another" in text) == part.crowds
    assert part.crowds == (part.slot == "drop")
    assert ("draws random numbers" in text) == part.draws


def test_a_capacity_says_of_what_it_is():
    def seen(name: str) -> str:
        return section(page_of(part_of(name)), "What it sees").replace("\n", " ")

    assert "depends on the sequences beside it" in seen("drop-capacity")
    assert "--grove-capacity-scope sequence" in seen("drop-capacity")
    assert "does not depend on the sequences beside it" in seen("drop-sequence")
    assert "--grove-capacity-scope sequence" in seen("drop-heterogeneous")


def test_parameters_are_those_of_the_planner():
    hidden, experts = 32, 8

    def numbers(name: str) -> list[int]:
        text = " ".join(section(page_of(part_of(name)), "Weights").split())
        (found,) = re.findall(r"has ([\d,]+) parameters, and ([\d,]+) without", text)
        return [int(number.replace(",", "")) for number in found]

    plain = hidden * experts
    assert numbers("gate-attention") == [3 * plain, plain]
    assert numbers("gate-two_layer") == [8 * plain + 8 * experts**2, plain]
    assert numbers("selector-hash") == [0, plain]
    assert numbers("selector-reinforce") == [plain + hidden + 1, plain]
    assert numbers("logits-bias") == [plain + experts, plain]
    letters = [d for p in PARTS for n in (p.weights, p.buffers) for ds in n.values() for d in ds]
    assert set(letters) <= set(card.DIMS)


def test_the_folders_of_a_part_are_those_whose_layers_have_it():
    def folders(name: str) -> list[str]:
        found = goldens.of_part(part_of(name))
        return [
            folder if variant == "default" else f"{folder}/{variant}" for folder, variant in found
        ]

    assert folders("selector-base") == ["base", "base/eval_greedy"]
    assert folders("select-max") == ["deepseek_v2"]
    assert folders("loss-load") == ["noisy_topk"]
    assert folders("gate-two_layer") == ["moepp"]
    assert "moepp" in folders("loss-heterogeneous")
    assert folders("counts-first") == [
        *("st_moe", "st_moe/capacity", "st_moe/gshard", "st_moe/gshard_capacity")
    ]
    assert folders("update-sign") == []
    assert folders("selector-sinkhorn") == []


MEASURED = {
    "command": "examples/compare.py parts",
    "machine": "a machine, 2 cores",
    "date": "2026-11-28",
    "rows": [
        {
            "part": "selector-base",
            "name": "BASE",
            "seeds": 3,
            "loss": 2.25,
            "loss_spread": 0.0709,
            "max_vio": 0.5,
            "dead_experts": 0,
            "pairs_per_token": 1.0,
            "rows_per_token": 1.0,
            "tokens_per_second": 12345,
        }
    ],
}


def test_figures_are_those_of_the_file_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FILE", tmp_path / "figures.json")
    assert figures.measured() is None
    assert list(figures.lines("selector-base", None)) == ["Not measured."]
    figures.FILE.write_text(json.dumps(MEASURED))
    found = figures.measured()
    assert list(figures.lines("selector-hash", found)) == ["Not measured."]
    text = section(card.card(part_of("selector-base"), found), "Figures")
    assert text.startswith("*Measured* on a machine, 2 cores, 2026-11-28, with")
    assert "examples/compare.py parts" in text
    assert "| BASE | 3 | 2.25 | 0.0709 | 0.5 | 0 | 1 | 1 | 12,345 |" in text


def test_the_card_of_a_part_that_is_gone_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "pages", lambda: {"README.md": "a", "gate-new.md": "b"})
    for name in ("gate-old.md", "figures.json"):
        (tmp_path / name).write_text("")
    write.write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "figures.json",
        "gate-new.md",
    ]
