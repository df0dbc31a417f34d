"""Which expert-parallel rank holds which experts and groups."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Whole groups on one rank, in order: rank r holds the r-th equal slice of both.

    A plain MoE has 0 groups.

    An adjugate expert therefore always sits beside the experts of its group, and a token that
    has crossed to a rank for an expert needs no further traffic for the adjugate.

    Raises:
        ValueError: groups do not divide experts, or ranks do not divide groups, or experts where
            there are none.
    """

    num_experts: int
    num_groups: int
    num_ranks: int

    def __post_init__(self) -> None:
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
