"""Which expert-parallel rank holds which experts and groups."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Whole groups on one rank: rank r holds the r-th equal slice of both.

    A plain MoE has 0 groups.

    Args:
        order: where that is not the order of their numbers, the group (without groups: the expert)
            in every place of all slices. Every rank's slice is ascending, so that its experts keep
            the order in which their outputs are summed.

    An adjugate expert therefore always sits beside the experts of its group, and a token that
    has crossed to a rank for an expert needs no further traffic for the adjugate.

    Raises:
        ValueError: groups do not divide experts, or ranks do not divide groups, or experts where
            there are none.
    """

    num_experts: int
    num_groups: int
    num_ranks: int
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._check_sizes()
        if self.order is not None:
            assert sorted(self.order) == [*range(self.num_groups or self.num_experts)]
            slices = (self.held(self.order, rank) for rank in range(self.num_ranks))
            assert all([*held] == sorted(held) for held in slices), self.order

    def _check_sizes(self) -> None:
        if self.num_groups == 0:
            if self.num_ranks < 1 or self.num_experts % self.num_ranks:
                raise ValueError(
                    f"num_experts ({self.num_experts}) is not a multiple of "
                    f"num_ranks ({self.num_ranks}); every rank holds as many experts"
                )
            return
        if self.num_groups < 0 or self.num_experts % self.num_groups:
            raise ValueError(
                f"num_experts ({self.num_experts}) is not a multiple of "
                f"num_groups ({self.num_groups}); choose a number of groups that divides it"
            )
        if self.num_ranks < 1 or self.num_groups % self.num_ranks:
            raise ValueError(
                f"num_groups ({self.num_groups}) is not a multiple of "
                f"num_ranks ({self.num_ranks}); a group and its adjugate stay on one rank"
            )

    @property
    def experts_per_group(self) -> int:
        return self.num_experts // self.num_groups

    @property
    def experts_per_rank(self) -> int:
        return self.num_experts // self.num_ranks

    @property
    def groups_per_rank(self) -> int:
        return self.num_groups // self.num_ranks

    @property
    def expert_order(self) -> tuple[int, ...] | None:
        """``order`` of experts."""
        if self.order is None or self.num_groups == 0:
            return self.order
        size = self.experts_per_group
        return tuple(group * size + i for group in self.order for i in range(size))

    def held(self, order: tuple[int, ...], rank: int) -> tuple[int, ...]:
        """What a rank holds of an order of all experts, or of all groups."""
        size = len(order) // self.num_ranks
        return order[rank * size : (rank + 1) * size]
