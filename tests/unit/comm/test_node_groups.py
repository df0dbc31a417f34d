"""Which ranks of an expert-parallel group share a node."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grove_megatron.comm.node_groups import ranks_per_node, spread_over_nodes


class TestRanksPerNode:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [("8", 8), ("1", 1), ("", None), ("x", None), ("0", None), ("-2", None), ("2.0", None)],
    )
    def test_it_is_the_launcher_s_number_or_nothing(self, value, expected):
        assert ranks_per_node({"LOCAL_WORLD_SIZE": value}) == expected

    def test_a_launcher_may_say_nothing(self):
        assert ranks_per_node({"WORLD_SIZE": "8"}) is None

    def test_it_is_read_from_this_process_when_it_is_asked_for(self, monkeypatch):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "6")
        assert ranks_per_node() == 6
        monkeypatch.delenv("LOCAL_WORLD_SIZE")
        assert ranks_per_node() is None


class TestSpreadOverNodes:
    @pytest.mark.parametrize(
        ("ranks", "per_node", "by_node"),
        [
            (range(8), 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
            (range(4), 8, [[0, 1, 2, 3]]),
            (range(3), 1, [[0], [1], [2]]),
            # A group that starts on the second node, and one that starts in the middle of one.
            (range(4, 8), 2, [[4, 5], [6, 7]]),
            (range(2, 6), 4, [[2, 3], [4, 5]]),
        ],
    )
    def test_a_list_for_every_node(self, ranks, per_node, by_node):
        assert spread_over_nodes(ranks, per_node) == by_node

    @pytest.mark.parametrize(
        ("ranks", "by_node"),
        [
            # Two tensor-parallel ranks side by side: every other rank is of one group.
            ((0, 2, 4, 6), [[0, 2], [4, 6]]),
            ((1, 3, 5, 7), [[1, 3], [5, 7]]),
            # Four of them: one rank of every group on every node.
            ((3, 7, 11), [[3], [7], [11]]),
        ],
    )
    def test_ranks_between_which_tensor_parallel_ranks_lie(self, ranks, by_node):
        assert spread_over_nodes(ranks, 4) == by_node

    @given(
        nodes=st.integers(1, 4),
        places=st.integers(1, 4),
        stride=st.integers(1, 3),
        first_node=st.integers(0, 3),
        data=st.data(),
    )
    def test_every_node_has_its_own_ranks_in_their_order(
        self, nodes, places, stride, first_node, data
    ):
        offset = data.draw(st.integers(0, stride - 1))
        per_node = places * stride
        expected = [
            [node * per_node + place * stride + offset for place in range(places)]
            for node in range(first_node, first_node + nodes)
        ]
        ranks = [rank for node in expected for rank in node]
        assert spread_over_nodes(ranks, per_node) == expected

    @pytest.mark.parametrize(
        ("ranks", "per_node", "by_node"),
        [
            ((0, 1, 2), 2, "[[0, 1], [2]]"),
            ((1, 2, 3, 4), 4, "[[1, 2, 3], [4]]"),
            ((0, 2, 4, 6, 8, 10), 8, "[[0, 2, 4, 6], [8, 10]]"),
            # As many on every node, but the experts of a node would not be one slice.
            ((0, 2, 1, 3), 2, "[[0, 1], [2, 3]]"),
            ((0, 4, 1, 5), 4, "[[0, 1], [4, 5]]"),
        ],
        ids=["one too few", "starts late", "strides", "out of order", "dealt out"],
    )
    def test_others_are_refused_with_the_numbers(self, ranks, per_node, by_node):
        message = (
            "--grove-hierarchical-dispatch needs as many ranks of an expert-parallel group on "
            f"every node; ranks {list(ranks)} with {per_node} a node are {by_node}; change "
            "--expert-model-parallel-size, or leave the flag out"
        )
        with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
            spread_over_nodes(ranks, per_node)
