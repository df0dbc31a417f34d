"""What the tables of several systems have in common."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .layout import Take
from .settings import Settings
from .system import Loss, System, aux, z

Experts = Callable[[Take, int, int, int], Iterator[tuple[str, Tensor]]]
"""Makes experts of a folder's tensors: of so many, of a width, of a hidden size."""


def router_flags(settings: Settings, *, top_k: str = "top_k") -> list[str]:
    """Experts, and experts of a token."""
    experts, topk = settings.size("num_experts"), settings.size(top_k)
    if topk > experts:
        settings.problems.append(
            f"{top_k} ({topk}) of config.json is above num_experts ({experts})"
        )
    return ["--num-experts", str(experts), "--moe-router-topk", str(topk)]


def pre_softmax(normalised: bool) -> list[str]:
    """Weights as they are among all experts, or divided by their sum.

    The softmax over the selected logits is what the softmax over all, divided by the sum of the
    selected, comes to.
    """
    return [] if normalised else ["--moe-router-pre-softmax"]


def swiglu_flags(width: int) -> list[str]:
    """Experts of a width, without biases."""
    return ["--swiglu", "--moe-ffn-hidden-size", str(width)]


def shared_flags(width: int) -> list[str]:
    """A shared expert of a width."""
    return ["--moe-shared-expert-intermediate-size", str(width)]


def hf_losses(settings: Settings) -> dict[str, Loss]:
    """Of folders of transformers' models: its load balancing loss, the Switch paper's, and z.

    transformers adds the shares of the k slots, where Megatron takes their mean.
    """
    return {"hf_aux": aux(settings.size("top_k")), "switch_aux": aux(1.0), "z": z(1.0)}


def gated(gate: Tensor, up: Tensor, down: Tensor, expert: int) -> Iterator[tuple[str, Tensor]]:
    """An expert of Megatron's: gate over up [2F, H], and down [H, F]."""
    yield f"experts.{expert}.linear_fc1.weight", torch.cat([gate, up])
    yield f"experts.{expert}.linear_fc2.weight", down


def separate(
    take: Take,
    experts: int,
    width: int,
    hidden: int,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Iterator[tuple[str, Tensor]]:
    """Experts with three matrices each, under ``names`` of gate, up and down."""
    gate, up, down = names
    for e in range(experts):
        yield from gated(
            take(f"experts.{e}.{gate}.weight", width, hidden),
            take(f"experts.{e}.{up}.weight", width, hidden),
            take(f"experts.{e}.{down}.weight", hidden, width),
            e,
        )


def stacked(take: Take, experts: int, width: int, hidden: int) -> Iterator[tuple[str, Tensor]]:
    """All experts in two tensors, with the gate first: transformers 5."""
    up = take("experts.gate_up_proj", experts, 2 * width, hidden)
    down = take("experts.down_proj", experts, hidden, width)
    for e in range(experts):
        yield f"experts.{e}.linear_fc1.weight", up[e]
        yield f"experts.{e}.linear_fc2.weight", down[e]


def behind_a_gate(
    settings: Settings, *, normalised: tuple[bool, ...], experts: Experts = separate
) -> System:
    """SwiGLU experts and nothing else, behind ``gate.weight``: most of transformers' models.

    Args:
        settings: of a folder.
        normalised: what ``norm_topk_prob`` may be.
        experts: takes their tensors, given their number, width, and the hidden size.
    """
    sizes = settings.size("num_experts"), settings.size("expert_intermediate_size")
    hidden = settings.size("hidden_size")
    settings.choice("shared_expert_intermediate_size", None)
    is_normalised = settings.choice("norm_topk_prob", *normalised)

    def parameters(take: Take) -> dict[str, Tensor]:
        gate = {"router.weight": take("gate.weight", sizes[0], hidden)}
        return gate | dict(experts(take, *sizes, hidden))

    return System(
        flags=[*router_flags(settings), *pre_softmax(is_normalised), *swiglu_flags(sizes[1])],
        parameters=parameters,
        losses=hf_losses(settings),
    )


def shared(take: Take, name: str, width: int, hidden: int) -> Iterator[tuple[str, Tensor]]:
    """Megatron's shared expert."""
    gate = take(f"{name}.gate_proj.weight", width, hidden)
    up = take(f"{name}.up_proj.weight", width, hidden)
    yield "shared_experts.linear_fc1.weight", torch.cat([gate, up])
    yield "shared_experts.linear_fc2.weight", take(f"{name}.down_proj.weight", hidden, width)
