"""The file of a placement: what is read is what was written, and what is none is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grove_megatron.placing.file import Assignment, problems, read, write

GOOD: dict[str, Any] = {
    "format": "grove_placement",
    "version": 1,
    "experts": 8,
    "groups": 4,
    "ranks": 2,
    "layers": {"1": [3, 0, 1, 2]},
}
A = Assignment(8, 4, 2, {"1": (3, 0, 1, 2)})


@st.composite
def assignments(draw: Any) -> Assignment:
    ranks, in_rank = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    units, size = ranks * in_rank, draw(st.integers(1, 3))
    orders = st.permutations(range(units)).map(tuple)
    names = st.from_regex(r"(mtp )?[1-9][0-9]?", fullmatch=True)
    layers = draw(st.dictionaries(names, orders, max_size=3))
    return Assignment(units * size, units, ranks, layers)


@settings(max_examples=30)
@given(assignments())
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, one: Assignment
) -> None:
    path = tmp_path_factory.mktemp("written") / "placement.json"
    write(path, one)
    assert read(path) == one
    assert [*path.parent.iterdir()] == [path]


@given(assignments())
def test_ranks_hold_their_slices_in_ascending_order(one: Assignment) -> None:
    size = one.units // one.ranks
    for name in [*one.layers, "99"]:
        order, given_ = one.order(name), one.layers.get(name, tuple(range(one.units)))
        for begin in range(0, one.units, size):
            held = order[begin : begin + size]
            assert [*held] == sorted(given_[begin : begin + size])
        assert (name in one.moved) == (order != tuple(range(one.units)))
        experts = one.expert_order(name)
        of_each = one.experts // one.units
        assert [e // of_each for e in experts[::of_each]] == [*order]
        assert sorted(experts) == [*range(one.experts)]


def test_experts_without_groups_are_the_units() -> None:
    one = Assignment(4, 0, 2, {"2": (3, 0, 2, 1)})
    assert one.units == 4
    assert one.expert_order("2") == one.order("2") == (0, 3, 1, 2)


def test_files_that_put_the_same_on_every_rank_have_the_same_digest() -> None:
    turned = Assignment(8, 4, 2, {"1": (0, 3, 2, 1), "2": (1, 0, 2, 3)})
    assert turned.digest == A.digest
    assert len(str(A.digest)) == 16
    others = [
        Assignment(8, 4, 2, {"2": (3, 0, 1, 2)}),
        Assignment(8, 4, 2, {"1": (2, 0, 1, 3)}),
        Assignment(16, 4, 2, {"1": (3, 0, 1, 2)}),
        Assignment(8, 4, 4, {"1": (3, 0, 1, 2)}),
    ]
    assert len({A.digest, *(other.digest for other in others)}) == 5
    # Nothing has moved.
    assert Assignment(8, 4, 2, {"1": (1, 0, 3, 2)}).digest is None
    assert Assignment(8, 4, 1, {"1": (3, 0, 1, 2)}).digest is None


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("[" * 100_000, "is not JSON: maximum recursion depth"),
        ("\ud800", None),
        ("[]", "is no placement, whose format would be (grove_placement)"),
        ('{"format": "x"}', "is no placement, whose format would be"),
        (GOOD | {"version": 2}, "has version (2), this package reads (1)"),
        (GOOD | {"version": True}, "has version (true), this package reads (1)"),
        (without("version"), "has version (null), this package reads (1)"),
        (without("layers"), "lacks (layers); make it anew with grove place"),
        (GOOD | {"layer": {}}, "has entries (layer) that say nothing; remove them"),
        (GOOD | {"ranks": 0}, "has ranks (0), not a number from 1 up"),
        (GOOD | {"groups": -1}, "has groups (-1), not a number from 0 up"),
        (GOOD | {"experts": 8.0}, "has experts (8.0), not a number from 1 up"),
        (GOOD | {"experts": 9}, "has experts (9), not a multiple of its groups (4)"),
        (GOOD | {"ranks": 3}, "has groups (4), not a multiple of its ranks (3), each of which"),
        (GOOD | {"groups": 0, "ranks": 3}, "has experts (8), not a multiple of its ranks (3)"),
        (GOOD | {"layers": []}, "has layers ([]), not a list for each"),
        (GOOD | {"layers": {"0": [0, 1, 2, 3]}}, "names a layer (0), where names are as (3) and"),
        (GOOD | {"layers": {"1\x1b[m": [0, 1, 2, 3]}}, "names a layer (1\\u001b[m), where"),
        (GOOD | {"layers": {"1": "0123"}}, "has for layer (1) no list of numbers"),
        (GOOD | {"layers": {"1": [0, 1, 2, "3"]}}, "has for layer (1) no list of numbers"),
        (GOOD | {"layers": {"1": [False, True, 2, 3]}}, "has for layer (1) no list of numbers"),
        (GOOD | {"layers": {"1": [0, 1, 2]}}, "has in layer (1) (3) groups, not (4)"),
        (
            GOOD | {"layers": {"mtp 1": [0, 1, 1, 3]}},
            "has in layer (mtp 1) not every one of groups 0 to 3 once: (2) are left out",
        ),
        (
            GOOD | {"groups": 0, "layers": {"1": [8, 1, 2, 3, 4, 5, 6, 7]}},
            "has in layer (1) not every one of experts 0 to 7 once: (0) are left out",
        ),
        ('{"layers": {"1": [0], "1": [1]}}', "is not JSON: 1 stands twice in it"),
    ],
)
def test_what_is_no_placement_is_refused_by_name(
    text: Any, found: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "placement.json"
    if found is None:
        path.write_bytes(b"\xff\xfe")
        found = "is not JSON: 'utf-8' codec can't decode"
    else:
        path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(ValueError, match="placement") as refused:
        read(path)
    assert str(refused.value).startswith(f"placement ({path}) {found}")
    assert "; " in str(refused.value)


def test_all_layers_that_are_wrong_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    path.write_text(json.dumps(GOOD | {"layers": {"1": [0], "2": [0, 0, 1, 2], "3": [0, 1, 2, 3]}}))
    with pytest.raises(ValueError, match="layer") as refused:
        read(path)
    assert [line.split(" (", 2)[2][:2] for line in str(refused.value).split("anew")[:2]] == [
        "1)",
        "2)",
    ]


@pytest.mark.parametrize("name", ["nothing.json", "."])
def test_a_file_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read: .*; name another file"):
        read(tmp_path / name)


def test_a_file_is_replaced_at_once_or_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    write(path, A)
    with pytest.raises(AssertionError):
        write(path, Assignment(8, 4, 2, {"1": (0, 0, 1, 2)}))
    assert read(path) == A
    path.with_suffix(".d").mkdir()
    with pytest.raises(OSError, match="directory"):
        write(path.with_suffix(".d"), A)
    assert {p.name for p in tmp_path.iterdir()} == {"placement.json", "placement.d"}


def test_a_placement_of_another_model_or_job_is_refused() -> None:
    model: dict[str, Any] = {"experts": 8, "groups": 4}
    assert problems(A, "a", **model) == []
    assert problems(A, "a", **model, ranks=2, layers=("1", "2")) == []
    found = problems(A, "a", experts=16, groups=8, ranks=4, layers=("2", "mtp 1"))
    assert [*map(str, found)] == [
        "placement (a) is for experts (8), the model has (16); make one from a record of this "
        "model",
        "placement (a) is for groups (4), the model has (8); make one from a record of this model",
        "placement (a) is for expert-parallel ranks (2), the job has (4), whose slices would be "
        "others than were chosen; make one with grove place --expert-parallel 4",
        "placement (a) has layers (1) that are no MoE layers of the model (2, mtp 1); make one "
        "from a record of this model",
    ]
