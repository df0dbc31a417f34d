"""``--grove-placement``: a layer's experts and adjugates on the ranks that a file says.

The router stays as it is and numbers experts as the model does. Between it and the dispatcher its
columns are put into the order of the ranks' slices; so a dispatcher sees ranks that hold slices.
"""

import re
from dataclasses import replace

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_layer import ExpertsInterface
from torch import Tensor

from ..checks.problem import Refusal
from ..comm.all_to_all import all_to_all_rows
from ..comm.fake_group import is_fake
from ..functional.index import permute_columns
from ..functional.placement import Placement
from ..placing.file import problems, read


def placed(placement: Placement, path: str, layer: str) -> Placement:
    """``placement`` of a layer with the order that a file has for it.

    Args:
        layer: its name in a record.

    Raises:
        ValueError: the file is none, or not one for these sizes.
    """
    assignment = read(path)
    found = problems(
        assignment,
        path,
        experts=placement.num_experts,
        groups=placement.num_groups,
        ranks=placement.num_ranks,
    )
    if found:
        raise Refusal(found)
    order = assignment.order(layer)
    return replace(placement, order=None if order == tuple(range(len(order))) else order)


class Columns:
    """Puts the columns of a router into the order of the ranks' slices.

    Args:
        order_E: the expert in every place.
        device: of the router's output.
    """

    def __init__(self, order_E: tuple[int, ...], device: torch.device | int | str) -> None:
        self._order_E = torch.tensor(order_E, device=device)
        self._inverse_E = self._order_E.argsort()

    def of_probs(self, probs_TE: Tensor) -> Tensor:
        """[T, E], differentiable."""
        return permute_columns(probs_TE, self._order_E, self._inverse_E)

    def of_map(self, routing_map_TE: Tensor) -> Tensor:
        """[T, E]"""
        return routing_map_TE.index_select(1, self._order_E)


@torch.no_grad()
def move(
    experts: ExpertsInterface,
    placement: Placement,
    order: tuple[int, ...],
    group: dist.ProcessGroup,
) -> None:
    """Send experts, made as ranks hold them in the order of their numbers, to who shall hold them.

    So a model begins with the same weights whoever holds them. Every rank must call.

    Args:
        experts: this rank's, routed ones or adjugates; changed in place.
        order: of all experts, or of all groups.
        group: the expert-parallel ranks.
    """
    ranks, rank = placement.num_ranks, dist.get_rank(group)
    if is_fake(group):
        return
    tensors = _of_each(experts)
    count = len(tensors)
    owner = {one: to for to in range(ranks) for one in placement.held(order, to)}
    mine = range(rank * count, (rank + 1) * count)
    # By rank, then by number; it arrives by rank, then by number, which is by number.
    sent = sorted(mine, key=lambda one: (owner[one], one))
    sizes = [sum(owner[one] == to for one in mine) for to in range(ranks)]
    held = placement.held(order, rank)
    received_sizes = [sum(one // count == source for one in held) for source in range(ranks)]
    device = torch.cuda.current_device()
    for columns in zip(*tensors, strict=True):
        rows = torch.stack([columns[one - mine.start] for one in sent]).to(device)
        received = all_to_all_rows(rows, sizes, received_sizes, group)
        for tensor, row in zip(columns, received, strict=True):
            tensor.copy_(row)


_LOCAL = re.compile(r"(?:^|\.)local_experts\.(\d+)\.|\.(?:weight|bias)(\d+)$")


def _of_each(experts: ExpertsInterface) -> list[list[Tensor]]:
    """Of each of this rank's experts all that it has, whatever module holds them."""
    assert isinstance(experts, torch.nn.Module)
    count = experts.num_local_experts
    assert isinstance(count, int)
    found: list[list[Tensor]] = [[] for _ in range(count)]
    for name, parameter in experts.named_parameters():
        if match := _LOCAL.search(name):
            found[int(match[1] or match[2])].append(parameter.detach())
        elif parameter.dim() == 3 and parameter.shape[0] == count:
            for of_one, one in zip(found, parameter.detach(), strict=True):
                of_one.append(one)
        else:
            raise ValueError(
                f"{name} of {type(experts).__name__} is not of one expert, and grove_placement "
                "moves experts one by one; remove it"
            )
    return found
