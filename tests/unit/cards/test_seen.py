"""What rows say of other tokens is what their steps do."""

from typing import Any

import pytest
import torch

from grove_megatron.cards import card, small
from grove_megatron.parts import registry
from grove_megatron.parts.part import Draws, Part, Routed, Seen

TOKENS, SEQUENCES = 24, 2


class Fixed(Draws):
    def uniform(self, like):
        return torch.rand(like.shape, generator=torch.Generator().manual_seed(7))


def built(part: Part) -> tuple[Any, int]:
    """Its step, and the columns of the router."""
    config = small.parsed(part.tried)
    config.params_dtype, config.num_moe_experts = torch.float32, config.num_experts
    return part.build(config), config.num_experts + registry.local_experts(config)


def logits(seed: int, columns: int) -> torch.Tensor:
    return torch.randn(TOKENS, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("part", registry.of_slot("selector"), ids=card.name_of)
def test_a_selector_sees_what_its_row_says(part):
    if not part.needs <= {"reward"} or part.name == "topk":
        # By ids, or without a step of its own.
        assert part.sees == "nothing"
        return
    step, columns = built(part)

    def depends(training: bool) -> bool:
        seen = Seen(training=training, draws=Fixed())
        for seed in range(8):
            one = logits(seed, columns)
            other = torch.cat([one[:-1], -9 * one[-1:]])
            if not torch.equal(step.choose(one, seen)[:-1], step.choose(other, seen)[:-1]):
                return True
        return False

    found = {"nothing": (False, False), "training": (True, False), "always": (True, True)}
    assert (depends(True), depends(False)) == found[part.sees]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("part", registry.of_slot("drop"), ids=card.name_of)
def test_a_capacity_is_of_the_sequences_that_its_card_says(part, training):
    step, columns = built(part)
    seen = Seen(training=training, batch_size=SEQUENCES)

    def routed(z_TE: torch.Tensor) -> Routed:
        weights_TK, index_TK = z_TE.softmax(1).topk(2, dim=1)
        map_TE = torch.zeros_like(z_TE, dtype=torch.bool).scatter(1, index_TK, True)
        probs_TE = torch.zeros_like(z_TE).scatter(1, index_TK, weights_TK)
        return Routed(index_TK=index_TK, selected_TE=map_TE, probs_TE=probs_TE, map_TE=map_TE)

    changed = False
    for seed in range(8):
        one, other = logits(seed, columns), logits(seed, columns)
        other[1::SEQUENCES] = logits(seed + 100, columns)[1::SEQUENCES]
        kept = [step(routed(z), seen).map_TE[::SEQUENCES] for z in (one, other)]
        changed |= not torch.equal(*kept)
    alone = small.parsed(part.tried).grove_capacity_scope == "sequence"
    assert part.crowds
    assert changed == (not alone)
