"""What a system's file says of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from ..parts import part as parts
from .layout import Parameters


@dataclass(frozen=True)
class Loss:
    """A loss of a folder, as Megatron computes it.

    Attributes:
        metric: its name among Megatron's MoE metrics, which are without the coefficient.
        coefficient: with which it is the folder's.
        fields: of the layer's configuration, that switch it on.
        own: what computes it, given to the router, where nobody trains with it.
    """

    metric: str
    coefficient: float
    fields: dict[str, Any] = field(default_factory=dict)
    own: parts.Loss | None = None


def aux(coefficient: float) -> Loss:
    """Megatron's aux_loss: N / (k T) * sum_i count_i * mean P_i, over all tokens."""
    return _balancing("aux_loss", "load_balancing_loss", coefficient)


def seq_aux(coefficient: float) -> Loss:
    """The same of every sequence, and the mean over sequences."""
    return _balancing("seq_aux_loss", "seq_load_balancing_loss", coefficient)


def counted(loss: Loss, counts: str) -> Loss:
    """A loss with other pairs as the load of experts: ``--grove-aux-loss-counts``."""
    return replace(loss, fields=loss.fields | {"grove_aux_loss_counts": counts})


def z(coefficient: float) -> Loss:
    """mean logsumexp(logits)^2."""
    return Loss("z_loss", coefficient, {"moe_z_loss_coeff": coefficient})


def _balancing(kind: str, metric: str, coefficient: float) -> Loss:
    fields = {"moe_router_load_balancing_type": kind, "moe_aux_loss_coeff": coefficient}
    return Loss(metric, coefficient, fields)


def routing_map(extras: Mapping[str, Tensor]) -> Tensor:
    """[T, E] bool of most folders."""
    return extras["routing_map"].bool()


ROUTING = frozenset(
    ("router_logits", "router_probs", "routing_weights", "routing_map", "topk_idx", "topk_weight")
)
"""What most folders say of the routing beside ``routing_map``, which is what is compared."""


@dataclass(frozen=True, kw_only=True)
class System:
    """A system with the sizes of one folder.

    Attributes:
        flags: for Megatron's parser: experts, router, widths.
        parameters: makes the layer's parameters of the folder's ``w.`` tensors; experts count over
            all ranks.
        fields: of the layer's configuration, which no flag sets.
        buffers: the layer's buffers, and the tensors of the folder that they are.
        losses: of the folder, by name.
        experts: builds expert modules where Megatron has none of the form.
        ids: the tensor of the folder that holds token ids [T], where the router reads them.
        training: is the layer's mode training?
        draws: the tensor of the folder that the router is given where it would draw numbers:
            ``uniform`` [T], for a token's second expert, or ``normal`` [T, E], for its logits.
        extras: names of other tensors that the folder may have.
        needs_extras: those of them that must be there.
        routing: which expert gets which token, [T, E] bool, of those tensors.
        layers: of which each but the first gets the router logits of the one before; rows of ``x``,
            ``r``, ``y`` and of the routing are theirs side by side.
        columns: of a router; None for the experts of ``flags``.
        prepare: makes the tensors of a file such as the others have.
        check: what else is wrong with the tensors of a file.
    """

    flags: list[str]
    parameters: Parameters
    fields: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, str] = field(default_factory=dict)
    losses: dict[str, Loss] = field(default_factory=dict)
    experts: Callable[..., Any] | None = None
    ids: str | None = None
    training: bool = True
    draws: Literal["uniform", "normal"] | None = None
    extras: frozenset[str] = ROUTING
    needs_extras: frozenset[str] = frozenset({"routing_map"})
    routing: Callable[[Mapping[str, Tensor]], Tensor] = routing_map
    layers: int = 1
    columns: int | None = None
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    check: Callable[[Mapping[str, Tensor]], list[str]] = lambda tensors: []
