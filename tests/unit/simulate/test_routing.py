import pytest
import torch
from torch import Tensor

from grove_megatron.checks.problem import Refusal
from grove_megatron.model.selection import chances
from grove_megatron.simulate.draw import NONE
from grove_megatron.simulate.parse import parse
from grove_megatron.simulate.replay import replay
from grove_megatron.simulate.routing import Routing, correlated, planted, planted_order, zipf
from grove_megatron.simulate.sizes import Sizes
from grove_megatron.simulate.workloads import WORKLOADS, workload

SIZES = Sizes(experts=32, groups=16, topk=4, ranks=8, gpus_per_node=4, tokens=400, row_bytes=2)


def tokens(routing: Routing, step: int = 0, layer: str = "1") -> Tensor:
    """[tokens of all ranks, K]."""
    return torch.cat([routing.experts(layer, step, rank) for rank in range(SIZES.ranks)])


def loads(chosen: Tensor) -> list[float]:
    """Share of the tokens of every expert."""
    return (torch.bincount(chosen.flatten(), minlength=32) / len(chosen)).tolist()


EVERY = ["uniform", "zipf:1.2", "correlated:0.5", "planted:0.5:4", "limited:8:3", *WORKLOADS]


@pytest.mark.parametrize("text", EVERY)
def test_tokens_come_from_the_seed_alone(text: str) -> None:
    one, same, other = (parse(text).draw(SIZES, seed) for seed in (0, 0, 1))
    backwards = [one.experts("1", 0, rank) for rank in reversed(range(8))][::-1]
    assert torch.equal(torch.cat(backwards), tokens(same))
    chosen = tokens(one)
    assert chosen.shape == (3200, 4)
    assert all(len(set(row)) == 4 for row in chosen.tolist())
    assert (chosen >= 0).all()
    assert (chosen < 32).all()
    if text != "w0":
        assert not torch.equal(chosen, tokens(other))
        assert not torch.equal(chosen, tokens(one, layer="2"))
        assert not torch.equal(chosen, tokens(one, step=1))
        assert not torch.equal(one.experts("1", 0, 3)[:200], one.experts("1", 0, 4)[:200])


def test_popularity_falls_as_zipf_says() -> None:
    sizes = Sizes(experts=32, topk=1, ranks=8, tokens=4000, row_bytes=2)
    drawn = zipf(sizes, 0, 1.5)
    shares = sorted(loads(tokens(drawn)), reverse=True)
    total = sum(n**-1.5 for n in range(1, 33))
    assert shares[:3] == pytest.approx([n**-1.5 / total for n in (1, 2, 3)], rel=0.05)


def test_a_share_of_the_experts_is_at_home() -> None:
    chosen = tokens(correlated(SIZES, 0, 0.75, 4))
    homes = chosen // 8
    most = torch.stack([(homes == home).sum(1) for home in range(4)]).amax(0)
    # Its home, and sometimes another one that has as many.
    assert 0.75 <= most.double().mean() / 4 < 0.8
    assert loads(chosen) == pytest.approx([4 / 32] * 32, rel=0.25)


def test_planted_is_correlated_out_of_order() -> None:
    scattered = planted(SIZES, 0, 0.75)
    order = [2 * unit + i for unit in planted_order(SIZES, 0).tolist() for i in range(2)]
    near = correlated(SIZES, 0, 0.75)
    rows = [
        int(replay(routing, SIZES, "1", 0, placed).flat.sent_rows.sum()) / 3200
        for routing, placed in ((near, None), (scattered, order), (scattered, None))
    ]
    assert rows[0] == pytest.approx(rows[1], rel=0.02)
    assert rows[2] > 1.2 * rows[1]


def test_local_experts_take_the_places_that_selection_says() -> None:
    sizes = Sizes(
        experts=32, topk=4, ranks=8, tokens=4000, row_bytes=2, local_experts=8, local_tau=0.75
    )
    for text in ("uniform", "correlated:0.9"):
        kept = (tokens(parse(text).draw(sizes, 0)) != NONE).sum(1)
        share = torch.bincount(kept, minlength=5) / len(kept)
        expected = chances(32, 8, 4, 0.75)
        assert share.tolist() == pytest.approx([expected[n] for n in range(5)], abs=0.01)


def test_balanced_is_exactly_balanced() -> None:
    assert loads(tokens(workload("w0", SIZES, 0))) == [4 / 32] * 32


@pytest.mark.parametrize(("name", "hot"), [("w1", range(8)), ("w3", range(0, 32, 2))])
def test_three_of_four_tokens_choose_where_it_is_hot(name: str, hot: range) -> None:
    share = loads(tokens(workload(name, SIZES, 0)))
    elsewhere = [share[e] for e in range(32) if e not in hot]
    assert [share[e] for e in hot] == pytest.approx(
        [0.75 * 4 / len(hot) + 1 / 32] * len(hot), rel=0.1
    )
    assert elsewhere == pytest.approx([1 / 32] * len(elsewhere), rel=0.4)


def test_the_hot_rank_is_one() -> None:
    found = replay(workload("w2", SIZES, 0), SIZES, "1", 0)
    assert found.pairs.argmax() == 0
    assert found.pairs[0] / 3200 == pytest.approx(3 + 4 / 8 / 4, rel=0.05)


def test_sources_are_uneven_and_their_mean_is_what_was_asked() -> None:
    found = replay(workload("w4", SIZES, 0), SIZES, "1", 0)
    assert found.tokens.tolist() == [200, 257, 314, 371, 429, 486, 543, 600]
    assert found.tokens.sum() == 3200
    assert loads(tokens(workload("w4", SIZES, 0))) == pytest.approx([4 / 32] * 32, rel=0.2)


def test_half_of_the_experts_are_dead() -> None:
    share = loads(tokens(workload("w5", SIZES, 0)))
    assert share[:16] == [0] * 16
    assert share[16:] == pytest.approx([4 / 16] * 16, rel=0.1)


def test_a_hot_spot_moves_every_three_steps() -> None:
    moving = workload("w6", SIZES, 0)
    assert moving.steps == 12
    for step, first in ((0, 0), (2, 0), (3, 8), (11, 24)):
        share = loads(tokens(moving, step))
        hottest = sorted(range(32), key=lambda e: -share[e])[:8]
        assert sorted(hottest) == [*range(first, first + 8)]


def test_one_step_of_four_is_a_burst() -> None:
    burst = workload("w7", SIZES, 0)
    assert burst.steps == 4
    hot = [sum(loads(tokens(burst, step))[:8]) for step in range(4)]
    assert hot == pytest.approx([1, 1, 1, 0.5 * 4 + 0.5], rel=0.1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zipf", "--routing (zipf) is not as (zipf:EXPONENT); give its numbers so"),
        ("zipf:a", "--routing (zipf:a) is not as (zipf:EXPONENT)"),
        ("zipf:1:2", "--routing (zipf:1:2) is not as"),
        ("uniform:1", "--routing (uniform:1) is not as (uniform)"),
        ("w8", "--routing (w8) is not one of (uniform, zipf, correlated, planted, limited, w0,"),
        ("record", "--routing (record) names no file; give it as record:PATH"),
        ("trace:", "--routing (trace:) names no file; give it as trace:PATH"),
        ("zipf:-1", "--routing zipf exponent (-1) is not a number from 0 up"),
        ("zipf:nan", "--routing zipf exponent (nan) is not a number from 0 up"),
        ("zipf:inf", "--routing zipf exponent (inf) is not a number from 0 up"),
        ("zipf:500", "--routing zipf exponent (500) leaves fewer experts (3) a weight that fp64"),
        ("limited:8", "--routing (limited:8) is not as (limited:GROUPS:TOPK); give its numbers"),
        (
            "limited:0:1.5",
            "--routing limited groups (0) is no whole number from 1 up; correct it; ",
        ),
        ("limited:4:0", "--routing limited topk (0) is no whole number from 1 up"),
        ("limited:nan:inf", "--routing limited groups (nan) is no whole number from 1 up"),
        ("limited:4:5", "--routing limited topk (5) is above its groups (4)"),
        ("limited:5:2", "--routing limited groups (5) does not divide --experts (32)"),
        ("limited:32:3", "--routing limited topk (3) holds fewer experts (3) than --topk (4)"),
        ("correlated:1.5", "--routing share (1.5) is not between 0 and 1"),
        ("planted:nan", "--routing share (nan) is not between 0 and 1"),
        ("planted:0.5:3", "--routing units (3) does not divide --groups (16)"),
        ("planted:0.5:0", "--routing units (0) does not divide --groups (16)"),
        ("planted:0.5:inf", "--routing units (inf) is no whole number"),
    ],
)
def test_what_is_no_routing_is_refused(text: str, said: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse(text).draw(SIZES, 0)
    assert str(refused.value).startswith(said)


def test_the_steepest_popularity_still_has_experts_to_choose() -> None:
    # Five of 32 experts have a weight.
    chosen = tokens(zipf(SIZES, 0, 400))
    assert all(len(set(row)) == 4 for row in chosen.tolist())
    assert len(chosen.unique()) == 4


def test_paths_may_have_colons() -> None:
    assert str(parse("trace:a:b").place) == "a:b"
