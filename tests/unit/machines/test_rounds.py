"""Everybody meets everybody once, and nobody two at a time."""

from itertools import combinations

import pytest

from grove_megatron.machines.rounds import between_nodes, inside_nodes, tournament


@pytest.mark.parametrize("players", [0, 1, 2, 3, 4, 7, 64])
def test_a_tournament(players: int) -> None:
    rounds = tournament([*range(players)])
    met = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert sorted(map(sorted, met)) == sorted(map(list, combinations(range(players), 2)))
    for pairs in rounds:
        at_once = [player for pair in pairs for player in pair]
        assert len(at_once) == len(set(at_once))
    least = players - 1 if players % 2 == 0 else players
    assert len([pairs for pairs in rounds if pairs]) == max(0, least if players > 1 else 0)


def test_ranks_of_nodes_meet_those_in_their_place() -> None:
    (only,) = between_nodes([[0, 1], [2, 3]])
    assert only == {0: 2, 2: 0, 1: 3, 3: 1}
    # One without a partner waits.
    (only,) = between_nodes([[0, 1], [2]])
    assert only == {0: 2, 2: 0}


def test_nodes_have_their_tournaments_at_once() -> None:
    rounds = inside_nodes([[0, 1, 2, 3], [4, 5], [6]])
    met = {frozenset(pair) for partners in rounds for pair in partners.items()}
    wanted = [*combinations(range(4), 2), (4, 5)]
    assert met == {frozenset(pair) for pair in wanted}
    assert len(rounds) == 3
    for partners in rounds:
        assert all(partners[other] == one for one, other in partners.items())
