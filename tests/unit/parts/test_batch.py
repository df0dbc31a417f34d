"""What else is in a batch: where it changes the experts of a sequence, and where it must not."""

import pytest
import torch

from grove_megatron.moe.carried import Carried, digits
from grove_megatron.parts import registry
from grove_megatron.parts.part import Part
from tests.unit.parts.test_parts import (
    HIDDEN,
    Fixed,
    config_of,
    make_router,
    name_of,
)

pytestmark = pytest.mark.usefixtures("on_one_rank")
LENGTH, VOCABULARY = 12, 300
LIMITED = {
    "--moe-expert-capacity-factor 1.0": True,
    "--moe-expert-capacity-factor 1.0 --moe-token-drop-policy position": True,
    "--moe-expert-capacity-factor 1.0 --grove-capacity-scope sequence": False,
    "--grove-expert-capacity 3 --grove-capacity-scope sequence": False,
    "--grove-expert-capacity 3": True,
    "": False,
}


def beside(parse, flags: str, other: int, training: bool) -> torch.Tensor:
    """Where the tokens of one sequence go, and how they weigh, beside another one: [S, E]."""
    router = make_router(config_of(flags, parse, groups=True)).train(training)
    router.draws = Fixed()
    pair = [torch.randn(LENGTH, HIDDEN, dtype=torch.float64, generator=seed(n)) for n in (0, other)]
    ids = [torch.randint(VOCABULARY, (LENGTH,), generator=seed(n)) for n in (0, other)]
    found = {
        "ids": digits(torch.stack(ids, dim=1), torch.float64),
        "reward": torch.zeros(LENGTH, 2, 4, dtype=torch.float64),
        "logits": torch.zeros(LENGTH, 2, router.num_experts, dtype=torch.float64),
    }
    router.carried = Carried(**{name: found[name] for name in router.needs})
    probs, _ = router(torch.stack(pair, dim=1))
    return probs.reshape(LENGTH, 2, -1)[:, 0].detach()


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("flags", LIMITED)
def test_a_capacity_of_a_rank_makes_a_sequence_depend_on_the_others(flags: str, parse) -> None:
    """Also in evaluation; one of the sequence itself, and none, do not."""
    found = [beside(parse, flags, other, training=False) for other in (1, 2, 3, 4)]
    alike = [torch.equal(found[0], one) for one in found[1:]]
    assert all(alike) != LIMITED[flags]


def test_first_choices_are_first_in_evaluation_too(parse) -> None:
    """Where nothing but the capacity asks for an order of choices."""
    flags = (
        "--moe-expert-capacity-factor 0.5 --grove-capacity-first-choices "
        "--moe-token-drop-policy position --moe-router-topk 8"
    )
    x = torch.randn(64, 2, HIDDEN, dtype=torch.float64, generator=seed(0))
    router = make_router(config_of(flags, parse, groups=True))
    trained = router.train()(x)[1]
    with torch.no_grad():
        evaluated = router.eval()(x)[1]
    assert torch.equal(trained, evaluated)


@pytest.mark.parametrize("part", registry.of_slot("selector"), ids=name_of)
@pytest.mark.parametrize("training", [True, False])
def test_a_selector_sees_others_where_it_says_so(part: Part, training: bool, parse) -> None:
    found = [beside(parse, part.tried, other, training) for other in (1, 2, 3, 4)]
    sees = part.sees == "always" or (training and part.sees == "training")
    assert any(not torch.equal(found[0], one) for one in found[1:]) == sees


def test_expert_choice_lets_the_future_in(parse) -> None:
    """The experts of the first token are others when the last ones are."""
    flags = "--grove-router-selector expert_choice --grove-expert-choice-sees-future"
    router = make_router(config_of(flags, parse, groups=True)).eval()
    x = torch.randn(LENGTH, 1, HIDDEN, dtype=torch.float64, generator=seed(0))
    first = []
    for other in range(8):
        x[LENGTH // 2 :] = torch.randn(LENGTH // 2, 1, HIDDEN, generator=seed(other))
        first.append(router(x)[1][: LENGTH // 2])
    assert any(not torch.equal(first[0], one) for one in first[1:])
