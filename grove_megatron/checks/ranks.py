"""Rules of a Grove layer about the ranks that divide it, asked without importing Megatron."""

from collections.abc import Iterator, Sequence
from math import lcm
from typing import Any

from .problem import Problem
from .rules import Check


def groups_over_ranks(settings: Any) -> Iterator[Problem]:
    """Groups, with an adjugate each, and the expert-parallel ranks that have them.

    Args:
        settings: a configuration or an argument namespace, with groups.
    """
    check = Check(settings)
    groups, ranks = settings.grove_num_groups, settings.expert_model_parallel_size
    yield from check.at_least("expert_model_parallel_size", 1)
    if ranks >= 1 and groups > 0:
        fix = f"a group and its adjugate stay on one rank, so use one of {divisors(groups)}"
        yield from check.divides("expert_model_parallel_size", "grove_num_groups", fix)


def adjugates_over_ranks(settings: Any, split: int) -> Iterator[Problem]:
    """The width of an adjugate, and the ranks that split it.

    Args:
        settings: as above.
        split: the size of expert tensor parallelism.
    """
    check = Check(settings, expert_tensor_parallel_size=split)
    both = ("grove_adjugate_ffn_hidden_size", "expert_tensor_parallel_size")
    fix = "use a width or a size that fits"
    yield from check.multiple(*both, fix, why=", which splits it")


def experts_over_ranks(settings: Any, num_experts: int) -> Iterator[Problem]:
    """Experts without groups, and the ranks that have them."""
    ranks = settings.expert_model_parallel_size
    if ranks < 1 or num_experts % ranks:
        yield Check(settings, num_experts=num_experts).problem(
            "{expert_model_parallel_size} does not divide {num_experts}; use one of {sizes}",
            sizes=divisors(num_experts),
        )


def whole_norm_over_ranks(settings: Any) -> Iterator[Problem]:
    """One norm over the keys of all heads, and the ranks that have these."""
    if not settings.grove_whole_qk_norm:
        return
    # Megatron reads the number of groups of a command line only beside the switch.
    grouped = getattr(settings, "group_query_attention", True)
    groups = (grouped and settings.num_query_groups) or settings.num_attention_heads
    if groups % settings.tensor_model_parallel_size:
        # Some ranks would have the same head.
        yield Check(settings).problem(
            "{tensor_model_parallel_size} does not divide the heads of keys ({groups}), over which "
            "{grove_whole_qk_norm} goes; use a size that does",
            groups=groups,
        )


def capacity_over_ranks(settings: Any) -> Iterator[Problem]:
    """A capacity of whole sequences, by position, and the ranks that have parts of them."""
    rule = (
        "{context_parallel_size} gives a rank two parts of a sequence, not in a line with "
        "those of others, and {grove_capacity_scope} is by position; use --moe-token-drop-policy "
        "probs"
    )
    is_so = (
        settings.grove_capacity_scope == "sequence"
        and settings.context_parallel_size > 1
        and settings.moe_token_drop_policy == "position"
    )
    yield from Check(settings).those({rule: is_so})


def spread_over_nodes(ranks: Sequence[int], per_node: int) -> list[list[int]]:
    """The ranks of an expert-parallel group, a list for every node.

    Raises:
        ValueError: a node holds more of them than another, or they are not in order of nodes, so
            that a node's experts would not be one slice.
    """
    nodes: dict[int, list[int]] = {}
    for rank in ranks:
        nodes.setdefault(rank // per_node, []).append(rank)
    by_node = list(nodes.values())
    uneven = len({len(node) for node in by_node}) > 1
    if uneven or [rank for node in by_node for rank in node] != list(ranks):
        raise ValueError(
            f"--grove-hierarchical-dispatch needs as many ranks of an expert-parallel group on "
            f"every node; ranks {list(ranks)} with {per_node} a node are {by_node}; change "
            "--expert-model-parallel-size, or leave the flag out"
        )
    return by_node


def groups_over_nodes(experts: int, split: int, world_size: int, per_node: int) -> list[Problem]:
    """Expert-parallel groups that do not lie evenly on nodes.

    Args:
        experts, split: sizes of expert parallelism and of expert tensor parallelism.
        world_size, per_node: ranks of the job, and of a node.
    """
    block = experts * split
    # From there on groups lie on nodes as the first ones do.
    for first in range(0, min(world_size, lcm(block, per_node)), block):
        for place in range(first, first + split):
            try:
                spread_over_nodes(range(place, place + block, split), per_node)
            except ValueError as error:
                return [Problem.of_text(str(error))]
    return []


def divisors(n: int) -> str:
    """To choose from."""
    # As large as any that is used; somebody may have given 10^18 experts.
    return ", ".join(str(d) for d in range(1, min(n, 4096) + 1) if n % d == 0)
