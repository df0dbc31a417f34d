"""From a routing over experts to the routing over groups that it implies."""

from torch import Tensor


def group_map(routing_map_TE: Tensor, num_groups: int) -> Tensor:
    """The groups every token meets: [T, E] bool -> [T, G] bool.

    Group ``j`` holds experts ``j*m .. j*m + m - 1`` (arXiv 2508.07785, Eq. 2, contiguous). Take
    the *final* routing map: after dropping, before any padding. It comes from the map and not
    from the weights: a selected expert whose weight underflowed still counts. Without groups
    (G = 0) it has no columns.
    """
    return _by_group(routing_map_TE, num_groups).any(-1)


def group_probs(probs_TE: Tensor, num_groups: int) -> Tensor:
    """The weight of every adjugate expert: [T, E] -> [T, G], the sum over its group (Eq. 5).

    Args:
        probs_TE: combine weights, 0 where unrouted; the dtype is kept, fp32 is advised.
        num_groups: G, divides E; or 0.
    """
    return _by_group(probs_TE, num_groups).sum(-1)


def _by_group(x_TE: Tensor, num_groups: int) -> Tensor:
    num_tokens, num_experts = x_TE.shape
    if num_groups == 0:
        return x_TE.new_zeros(num_tokens, 0, 1)
    return x_TE.reshape(num_tokens, num_groups, num_experts // num_groups)


def scale_bound(num_groups: int, num_experts: int) -> float:
    """The paper's upper bound of the adjugate scale, g/n (section 3.1).

    Below it an adjugate never outweighs the heaviest selected expert of its group.
    """
    return num_groups / num_experts
