"""What is run, in which order, and what a number of seconds is enough for."""

from pathlib import Path
from typing import Any

import pytest

from grove_megatron.benchmarks import commands
from grove_megatron.benchmarks.kit import plan as plans
from grove_megatron.benchmarks.kit.items import ITEMS, Item
from grove_megatron.benchmarks.kit.plan import END, START, plan, seconds_of, shown, smallest
from grove_megatron.benchmarks.refusals import problems
from grove_megatron.benchmarks.shape import Settings
from grove_megatron.training.installed import Installed, Package, package_problems
from tests.gpu.flags import LOCAL

ROOT = Path(__file__).parents[4]
BENCHES = [item for item in ITEMS if item.kind == "bench"]
H100_BYTES = 79e9


def settings(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What ``grove bench`` makes of the words of an item."""
    found: list[Settings] = []

    def run(benchmark: str, options: Any, default_ranks: int) -> None:
        found.append(commands.settings_of(benchmark, options, default_ranks))

    monkeypatch.setattr(commands, "_run", run)
    commands.app(words, standalone_mode=False)
    (made,) = found
    return made


@pytest.mark.parametrize("item", BENCHES, ids=lambda item: item.name)
def test_the_words_of_a_benchmark_are_taken(item: Item, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (item.words, item.small):
        made = settings(words, monkeypatch)
        assert made.ranks == 1
        assert problems(made) == []
    small, whole = (settings(words, monkeypatch).shape for words in (item.small, item.words))
    assert small.tokens * small.hidden < whole.tokens * whole.hidden / 100


def test_a_step_fits_the_smallest_card_that_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    (item,) = (one for one in ITEMS if one.name == "bench_step")
    made = settings(item.words, monkeypatch)
    s = made.shape
    experts = 3 * s.hidden * (s.experts * s.expert_width + s.groups * s.adjugate_width)
    weights = s.layers * (experts + 4 * s.hidden**2)
    # bf16 weight, fp32 gradient, fp32 copy and two moments; attention's scores in fp32 and bf16.
    scores = 3 * (s.hidden // 64) * s.tokens**2 * 6
    assert len(made.variants) * weights * 18 + scores < 0.8 * H100_BYTES
    assert made.megatron_flags == tuple(LOCAL[2:])


def test_a_step_starts_on_cuda_with_nothing_but_torch_and_triton(
    parse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grove_megatron.benchmarks.step import flags

    (item,) = (one for one in ITEMS if one.name == "bench_step")
    args = parse(" ".join(flags(settings(item.words, monkeypatch))))
    nothing = Package("TransformerEngine", None), Package("Apex", None)
    found = Installed(*nothing, Package("Triton", "3.6.0"))
    assert [str(problem) for problem in package_problems(args, found)] == []
    args.apply_rope_fusion = True
    assert len(list(package_problems(args, found))) == 1, "it would be said"


def test_every_file_of_gpu_tests_is_an_item() -> None:
    there = sorted(f"tests/gpu/{path.name}" for path in (ROOT / "tests/gpu").glob("test_*.py"))
    assert sorted({item.words[0] for item in ITEMS if item.kind == "tests"}) == there
    parts = [item.words[1:] for item in ITEMS if item.words[:1] == ("tests/gpu/test_kernels.py",)]
    assert parts == [("-k", "released"), ("-k", "not released")]


def test_items_have_names_of_their_own_and_limits_above_what_they_take() -> None:
    assert len({item.name for item in ITEMS}) == len(ITEMS)
    for item in ITEMS:
        assert item.least <= item.expected < item.limit, item.name


def test_the_machine_and_the_kernels_come_first() -> None:
    first = ["environment", "test_kernels_33b", "test_layer"]
    assert [item.name for item in ITEMS[:3]] == first


A = Item(name="a", kind="bench", expected=10, least=5, limit=30)
B = Item(name="b", kind="bench", expected=50, least=20, limit=90)
C = Item(name="c", kind="bench", expected=4, least=2, limit=9, needs="nowhere")


def begins(seconds: float, there: Any = lambda module: True) -> dict[str, float | None]:
    found = plan(seconds, (A, B, C), there)
    return {one.item.name: one.begins for one in found}


def test_items_follow_each_other_and_a_smaller_one_fills_what_is_left() -> None:
    first = START
    assert begins(1000) == {"a": first, "b": first + 10, "c": first + 60}
    # b is begun for what it finds until its end.
    assert begins(START + END + 30) == {"a": first, "b": first + 10, "c": None}
    assert begins(START + END + 29) == {"a": first, "b": None, "c": first + 10}
    assert begins(START + END + 3) == {"a": None, "b": None, "c": first}


def test_why_an_item_is_left_out() -> None:
    found = plan(START + END + 15, (A, B, C), lambda module: False)
    assert [one.why for one in found] == [
        "",
        "5 s were left of the 20 s it needs",
        "needs nowhere (not installed)",
    ]
    assert found[1].begins is found[2].begins is None


def test_the_plan_is_shown_with_what_may_be_cut_off() -> None:
    lines = shown(START + END + 30, plan(START + END + 30, (A, B))).splitlines()
    assert lines[0] == f"{START + END + 30:.0f} s; estimates for one H100"
    assert lines[-2].split() == [f"{START:.0f}", "10", "a"]
    assert lines[-1].split()[2:] == ["b", "(may", "be", "cut", "off)"]


@pytest.mark.parametrize("word", ["", "ten", "nan", "-3", "0", "inf"])
def test_what_is_no_number_of_seconds_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"^SECONDS \(.*\) is not a number above \(0\); give one"):
        seconds_of(word)


def test_too_few_seconds_are_refused() -> None:
    assert seconds_of(str(smallest())) == smallest()
    with pytest.raises(ValueError, match=rf"^SECONDS \(7\) is below \({smallest()}\)"):
        seconds_of("7")
    assert plans.is_begun(ITEMS[0], smallest() - START) is None
